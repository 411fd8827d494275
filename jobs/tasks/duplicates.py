"""Finds tasks that test the same samples with the same labels, before anything runs.

Takes tasks; gives pairs of duplicates. The published averages counted SVHN twice because a second
task read its files under another name. So tasks are compared by the source of the test part and
its settings, never by name. The files' contents are compared later, by the digest of the test data
that each cell records (`jobs.tuning.digest`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jobs.corpus.reader_spec import AnyReader
from jobs.tasks.spec import Task


def duplicate_tests(tasks: Sequence[Task]) -> Iterator[tuple[str, str]]:
    """Pairs of names of tasks with the same test, in the order of `tasks`.

    Two OOD tasks on the same samples are different tests if their heads come from different ID
    tasks.
    """
    seen: dict[str, str] = {}
    for task in tasks:
        if task.corpus is None:
            continue
        test = json.dumps(_test_fields(task), sort_keys=True)
        if test in seen:
            yield seen[test], task.name
        seen.setdefault(test, task.name)


def counted_twice(cells: Iterable[Mapping[str, Any]]) -> tuple[str, str] | None:
    """Two tasks whose finished cells were tested on the same features and labels, or None.

    A cell has its encoder (noise and pretrain_seed, or a pretrained encoder's name), method,
    domain, trained_on, task and test_digest. Two tasks have the same test if their digests agree
    for every encoder and method that both have. One encoder is not enough: a collapsed encoder
    gives every image the same features. Methods are compared separately, because one that trains
    the encoder is tested on images.
    """
    digests: dict[tuple[Any, ...], dict[str, tuple[Any, ...]]] = defaultdict(dict)
    for cell in cells:
        if cell.get("test_digest"):
            what = (cell["domain"], cell["trained_on"], cell["test_digest"])
            encoder = (
                cell["noise"],
                cell["pretrain_seed"],
                cell.get("encoder"),
                cell.get("method"),
            )
            digests[encoder][cell["task"]] = what
    same: dict[tuple[str, str], bool] = {}
    for found in digests.values():
        for first in found:
            for second in found:
                if first < second:
                    pair = (first, second)
                    same[pair] = same.get(pair, True) and found[first] == found[second]
    return next((pair for pair, alike in sorted(same.items()) if alike), None)


def _test_fields(task: Task) -> dict[str, Any]:
    """The fields of a task that decide the samples and labels of its test."""
    assert task.corpus is not None
    parts = task.corpus.parts
    source = parts.sources.get("test")
    cut: dict[str, Any] = {}
    if source is None:  # a share of the rows, chosen by the corpus's name and seed
        source = task.corpus.reader
        if parts.shares[2] < 1:
            cut = {"corpus": task.corpus.name, "seed": task.corpus.seed, "shares": parts.shares}
    return {
        "domain": task.domain,
        "trained_on": task.trained_on,
        "source": _source_fields(source),
        "cut": cut,
        "shift": task.shift.semantic() if task.shift else None,
        "classes": [list(members) for members in (task.classes or {}).values()],
    }


def _source_fields(source: AnyReader) -> dict[str, Any]:
    return source.model_dump(mode="json", exclude={"version"})

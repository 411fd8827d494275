"""Tasks that would test the same samples by the same labels, found before anything is run.

Takes tasks, gives pairs of them. The published averages counted SVHN twice because a second task
read its files under another name: so what is compared is the source of the test part and what is
made of it, never a name. What lies in the files is compared later, by the digest that each cell
records of its test (`jobs.tuning.digest`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jobs.corpus.spec import AnyReader
from jobs.tasks.spec import Task


def twins(tasks: Sequence[Task]) -> Iterator[tuple[str, str]]:
    """Names of tasks that are one test under two names, in the order of `tasks`.

    Two OOD tasks over the same samples are different tests when their heads come from different
    ID tasks.
    """
    seen: dict[str, str] = {}
    for task in tasks:
        if task.corpus is None:
            continue
        mark = json.dumps(_tested(task), sort_keys=True)
        if mark in seen:
            yield seen[mark], task.name
        seen.setdefault(mark, task.name)


def counted_twice(cells: Iterable[Mapping[str, Any]]) -> tuple[str, str] | None:
    """Two tasks whose finished cells were tested on the same features and labels; None: no two.

    A cell says its encoder (noise and pretrain_seed, or the name of one not trained here), method,
    domain, trained_on, task and test_digest. Two tasks are one test when they agree under every
    encoder and method that saw both: an encoder that has collapsed gives every image the same
    features, and a method that trains the encoder is tested on images instead.
    """
    digests: dict[tuple[Any, ...], dict[str, tuple[Any, ...]]] = defaultdict(dict)
    for cell in cells:
        if cell.get("test_digest"):
            what = (cell["domain"], cell["trained_on"], cell["test_digest"])
            seen_by = (
                cell["noise"],
                cell["pretrain_seed"],
                cell.get("encoder"),
                cell.get("method"),
            )
            digests[seen_by][cell["task"]] = what
    same: dict[tuple[str, str], bool] = {}
    for found in digests.values():
        for first in found:
            for second in found:
                if first < second:
                    pair = (first, second)
                    same[pair] = same.get(pair, True) and found[first] == found[second]
    return next((pair for pair, alike in sorted(same.items()) if alike), None)


def _tested(task: Task) -> dict[str, Any]:
    """What decides the samples of a test and their labels."""
    assert task.corpus is not None
    parts = task.corpus.parts
    source = parts.sources.get("test")
    cut: dict[str, Any] = {}
    if source is None:  # a share of the rows, which the corpus's name and seed choose
        source = task.corpus.reader
        if parts.shares[2] < 1:
            cut = {"corpus": task.corpus.name, "seed": task.corpus.seed, "shares": parts.shares}
    return {
        "domain": task.domain,
        "trained_on": task.trained_on,
        "source": _told_apart(source),
        "cut": cut,
        "shift": task.shift.semantic() if task.shift else None,
        "classes": [list(members) for members in (task.classes or {}).values()],
    }


def _told_apart(source: AnyReader) -> dict[str, Any]:
    return source.model_dump(mode="json", exclude={"version"})

"""The noise stage: every level asked of a corpus, planned in one reading, on Ray.

Works over the same corpus and noise share one task, which plans once and writes each level's
overlay. What is changed is decided from keys alone, so Ray's workers never bear on it. Nothing
here decides what to run, commits an output or retries.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import ray

from jobs.contract import Hooks, Outcome, StageError, Work
from jobs.noise.derive import Plan, derive
from jobs.noise.spec import NoiseStep
from jobs.storage.folder import Folder

WRITERS = 4  # levels encoded and sent to storage at a time


def run(works: Sequence[Work], hooks: Hooks) -> None:
    """Lay each work's level (spec: `NoiseStep`; input: `corpus`) over its corpus.

    Output: `changed.parquet` and `overlay.json` (see `overlay.py`). Counts: rows, eligible,
    changed, and what could not be changed, by reason. Metrics: noise/realised_percent, of the
    corpus's training rows.
    """
    groups: dict[tuple[Folder, str], list[Work]] = defaultdict(list)
    for work in works:
        step = cast(NoiseStep, work.spec)
        noise = step.noise.model_dump_json(exclude={"name", "levels"})
        groups[work.inputs["corpus"], noise].append(work)
    pending = {_lay.remote(group): group for group in groups.values()}
    for work in works:
        hooks.say(work.address, 0.0, "planning the noise")
    while pending and not hooks.stopping():
        finished, _ = ray.wait(list(pending), timeout=1.0)
        for reference in finished:
            group = pending.pop(reference)
            try:
                results: list[Any] = ray.get(reference)
            except Exception as error:
                results = [error] * len(group)
            for work, result in zip(group, results, strict=True):
                hooks.done(work.address, result)
    for reference in pending:
        ray.cancel(reference)


@ray.remote
def _lay(works: list[Work]) -> list[Outcome | StageError]:
    """Plan once, write each level; a level that cannot be reached fails alone."""
    return lay(works)


def lay(works: Sequence[Work]) -> list[Outcome | StageError]:
    """The levels of one noise over one corpus, planned once; an outcome for each work."""
    try:
        plan = derive(cast(NoiseStep, works[0].spec).noise, works[0].inputs["corpus"])
    except StageError as error:
        return [error] * len(works)
    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(lambda work: _level(plan, work), works))


def _level(plan: Plan, work: Work) -> Outcome | StageError:
    level, output = cast(NoiseStep, work.spec).level, work.output
    try:
        changed = plan.levels.changed(level)
    except StageError as error:
        return error
    overlay = plan.overlay(level, changed)
    overlay.write(output, changed)
    return Outcome(
        counts={
            "rows": overlay.rows,
            "eligible": overlay.eligible,
            "changed": overlay.changed,
            **plan.levels.counts,
        },
        metrics={"noise/realised_percent": overlay.realised_percent},
    )

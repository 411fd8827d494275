"""The noise stage: writes the overlays of all requested levels of a corpus, on Ray.

Works with the same corpus and noise share one Ray task, which reads the corpus and plans the noise
once, and writes each level's overlay. Changes depend on keys alone, never on Ray's workers. Nothing
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

WRITERS = 4  # levels encoded and written to storage at a time


def run(works: Sequence[Work], hooks: Hooks) -> None:
    """Write the overlay of each work's level (spec: `NoiseStep`; input: `corpus`).

    Output: `changed.parquet` and `overlay.json` (see `overlay.py`). Counts: rows, eligible,
    changed, and rows that cannot be changed, by reason. Metrics: noise/realised_percent, of the
    corpus's training rows.
    """
    groups: dict[tuple[Folder, str], list[Work]] = defaultdict(list)
    for work in works:
        step = cast(NoiseStep, work.spec)
        noise = step.noise.model_dump_json(exclude={"name", "levels"})
        groups[work.inputs["corpus"], noise].append(work)
    pending = {_build_levels_on_ray.remote(group): group for group in groups.values()}
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
def _build_levels_on_ray(works: list[Work]) -> list[Outcome | StageError]:
    """`build_levels` as a Ray task."""
    return build_levels(works)


def build_levels(works: Sequence[Work]) -> list[Outcome | StageError]:
    """Plan one noise over one corpus once and write each work's level.

    Gives an outcome or an error for each work: an impossible level fails alone.
    """
    try:
        plan = derive(cast(NoiseStep, works[0].spec).noise, works[0].inputs["corpus"])
    except StageError as error:
        return [error] * len(works)
    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(lambda work: _build_level(plan, work), works))


def _build_level(plan: Plan, work: Work) -> Outcome | StageError:
    level, output = cast(NoiseStep, work.spec).level, work.output
    try:
        changed = plan.levels.changed(level)
    except StageError as error:
        return error
    overlay = plan.overlay(level, changed)
    overlay.write(output, changed)
    source = getattr(plan.noise, "source", None)
    if source is not None:
        source.keep(output)
    return Outcome(
        counts={
            "rows": overlay.rows,
            "eligible": overlay.eligible,
            "changed": overlay.changed,
            **plan.levels.counts,
        },
        metrics={"noise/realised_percent": overlay.realised_percent},
    )

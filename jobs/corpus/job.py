"""The corpus and noise stages: sources to shards, and levels of noise over them, on Ray.

`run_corpus` reads a source's units through Ray Data and writes its shards and index; `run_noise`
reads a corpus's keys, labels and captions once for all the levels asked of it and writes each
level's overlay. Layout and noise are decided by `shards.py` and `noise.py` from keys alone; Ray
only carries rows, so its blocks and workers never bear on a file's bytes. Nothing here decides
what to run, commits an output or retries.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext

from jobs.contract import Hooks, Outcome, StageError, Work
from jobs.corpus.noise import Flips, Swaps, plan_caption_swap, plan_symmetric
from jobs.corpus.overlay import Overlay
from jobs.corpus.readers import Reader, Unit, reader_of
from jobs.corpus.shards import (
    PARTS,
    SCHEMA,
    File,
    Index,
    Shard,
    layout,
    read_part,
    write_shard,
)
from jobs.corpus.spec import Corpus, NoiseStep
from jobs.place import Place

Refs: TypeAlias = "list[ray.ObjectRef[Any]]"


def run_corpus(works: Sequence[Work], hooks: Hooks) -> None:
    """Build each work's corpus (spec: `Corpus`, no inputs) into its output folder.

    Output: `<part>-<number>.parquet` by `shards.SCHEMA`, and `_index.json`. Counts: rows_read and
    rows_<part>. A work that fails is reported with its error and the others go on.
    """
    _settle()
    for work in works:
        if hooks.stopping():
            return
        try:
            hooks.done(work.address, _build(work, hooks))
        except Exception as error:
            hooks.done(work.address, error)


def _build(work: Work, hooks: Hooks) -> Outcome:
    corpus = cast(Corpus, work.spec)
    reader = reader_of(corpus.reader)
    hooks.say(work.address, 0.0, "reading the source")
    blocks = _read(reader)
    keys = pa.chunked_array(ray.get([_keys.remote(block) for block in blocks]), type=pa.string())
    shards = layout(corpus, keys)
    hooks.say(work.address, 0.5, f"writing {len(shards)} shards of {len(keys):,} rows")
    files = _write_all(work.output, shards, blocks, keys)
    parts = {
        part: tuple(file for shard, file in zip(shards, files, strict=True) if shard.part == part)
        for part in PARTS
    }
    index = Index(corpus.name, reader.classes(), parts)
    index.write(work.output)
    rows = {f"rows_{part}": index.rows(part) for part in PARTS}
    return Outcome(counts={"rows_read": len(keys), **rows})


def _read(reader: Reader) -> Refs:
    """Every unit's rows, as Arrow blocks in the object store."""
    units = list(reader.units())

    def rows(batch: Any) -> pa.Table:
        """One unit: Ray hands its two numbers as arrays of one row."""
        return reader.read(Unit(int(batch["start"][0]), int(batch["stop"][0])))

    items = [{"start": unit.start, "stop": unit.stop} for unit in units]
    source = ray.data.from_items(items, override_num_blocks=len(items))
    read = source.map_batches(rows, batch_size=1, batch_format="numpy")
    refs: Refs = read.to_arrow_refs()
    return refs


@ray.remote
def _keys(block: pa.Table) -> pa.Array:
    return block["key"].combine_chunks()


def _write_all(
    place: Place, shards: Sequence[Shard], blocks: Refs, keys: pa.ChunkedArray
) -> list[File]:
    """Write every shard in a task of its own, given the blocks that its rows lie in."""
    ends = np.cumsum([0, *(len(chunk) for chunk in keys.chunks)])
    pending = []
    for shard in shards:
        block_of = np.searchsorted(ends, shard.rows, side="right") - 1
        needed = np.unique(block_of)
        lengths = ends[needed + 1] - ends[needed]
        within = np.cumsum([0, *lengths])[:-1][np.searchsorted(needed, block_of)]
        local = Shard(shard.part, shard.file, shard.rows - ends[block_of] + within)
        pending.append(_write.remote(place, local, *[blocks[number] for number in needed]))
    return cast(list[File], ray.get(pending))


@ray.remote
def _write(place: Place, shard: Shard, *blocks: pa.Table) -> File:
    rows = pa.concat_tables([block.select(SCHEMA.names) for block in blocks])
    return write_shard(place, shard, rows.take(pa.array(shard.rows)))


@dataclass(frozen=True)
class _Plan:
    """What decides a noise plan for all levels: works that agree in it share one reading."""

    corpus: Place
    kind: str
    seed: int
    name: str


def run_noise(works: Sequence[Work], hooks: Hooks) -> None:
    """Lay each work's level (spec: `NoiseStep`; input: `corpus`) over its corpus.

    Output: `changed.parquet` and `overlay.json` (see `overlay.py`). Counts: eligible, changed.
    Metrics: noise/realised_percent. Levels of one corpus, kind and seed are planned in one task.
    """
    groups: dict[_Plan, list[Work]] = defaultdict(list)
    for work in works:
        step = cast(NoiseStep, work.spec)
        groups[_Plan(work.inputs["corpus"], step.kind, step.seed, step.corpus)].append(work)
    pending = {_lay.remote(plan, group): group for plan, group in groups.items()}
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
def _lay(plan: _Plan, works: list[Work]) -> list[Outcome | StageError]:
    """Plan once, write each level; a level that cannot be reached fails alone."""
    try:
        noise = _noise(plan)
    except StageError as error:
        return [error] * len(works)
    outcomes: list[Outcome | StageError] = []
    for work in works:
        try:
            outcomes.append(_lay_level(noise, cast(NoiseStep, work.spec), work.output))
        except StageError as error:
            outcomes.append(error)
    return outcomes


def _noise(plan: _Plan) -> Flips | Swaps:
    if plan.kind == "caption_swap":
        rows = read_part(plan.corpus, "train", ["key", "caption"])
        return plan_caption_swap(rows["key"], rows["caption"], plan.seed, plan.name)
    rows = read_part(plan.corpus, "train", ["key", "label"])
    missing = rows["label"].null_count
    if missing:
        raise StageError(
            f"corpus {plan.name}: {missing} of {len(rows)} training rows have no label to flip; "
            f"use a kind of noise for captions"
        )
    classes = len(Index.read(plan.corpus).classes)
    return plan_symmetric(rows["key"], rows["label"].to_numpy(), classes, plan.seed, plan.name)


def _lay_level(noise: Flips | Swaps, step: NoiseStep, output: Place) -> Outcome:
    changed = noise.changed(step.level)
    eligible = len(noise.keys)
    overlay = Overlay(
        kind=step.kind,
        field="label" if isinstance(noise, Flips) else "caption",
        level=step.level,
        seed=step.seed,
        corpus=step.corpus,
        eligible=eligible,
        changed=len(changed),
        realised_percent=100 * len(changed) / eligible,
    )
    overlay.write(output, changed)
    return Outcome(
        counts={"eligible": eligible, "changed": len(changed)},
        metrics={"noise/realised_percent": overlay.realised_percent},
    )


def _settle() -> None:
    """Ray Data's settings, the same in every stage, since all of a process's threads share them."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.print_on_execution_start = False
    context.enable_progress_bars = False
    # Rows must come in the order of the units: the layout speaks of their positions.
    context.execution_options.preserve_order = True

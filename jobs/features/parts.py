"""The files of a features folder: units of an encoder's work kept, then joined view by view.

Takes the tables of finished units, or features that somebody gave; gives `features-<part>.parquet`
(schema of `extract.schema`, in the order of view and key, no row group over two views) and what is
to be known of them beside. Of a part that is joined one view is in memory at a time. Nothing here
imports Ray or computes a feature.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.contract import Outcome, StageError
from jobs.corpus.shards import Index
from jobs.features.extract import BATCH, IDENTITY, ROWS, Unit, view_table
from jobs.features.spec import FeaturesStep
from jobs.features.spectrum import Spectrum, spectra, to_table
from jobs.storage.folder import Folder

GROUP_ROWS = 4_096  # rows of a row group, and rows handed to the spectrum at a time

MADE_WITH = "extraction.json"


def keep(scratch: Folder, unit: Unit, table: pa.Table) -> None:
    """Put what `extract` gave of a unit into scratch, a row group a view."""
    rows = max(1, unit.stop - unit.start)
    scratch.write_table(unit.name, table, compression="NONE", row_group_size=rows)


def kept(scratch: Folder, unit: Unit, made_with: str) -> bool:
    """Whether scratch holds the unit's features, of just those rows, made with just that.

    Those of a shard that was built anew, of other weights or another library (see `identity`) are
    extracted again: a step never mixes two.
    """
    if not scratch.exists(unit.name):
        return False
    with _opened(scratch, unit) as file:
        said = file.schema_arrow.metadata or {}
    wanted = {IDENTITY: made_with, ROWS: unit.rows}
    return all(said.get(name.encode()) == value.encode() for name, value in wanted.items())


@contextmanager
def _opened(scratch: Folder, unit: Unit) -> Iterator[pq.ParquetFile]:
    filesystem, path = scratch.open()
    with filesystem.open_input_file(f"{path}/{unit.name}") as source:
        yield pq.ParquetFile(source)


def finish(
    step: FeaturesStep, index: Index, units: Sequence[Unit], scratch: Folder, output: Folder
) -> Outcome:
    """Join the units into `features-<part>.parquet`, sorted by (view, key), with the spectrum.

    Also writes `classes.json` (names in label order), `extraction.json` (what the features were
    made with: weights, input, views, arithmetic, library versions) and, where there is a test part,
    `spectrum.parquet` of its plain features. Metrics: features/sve, features/lsvr and
    features/effective_rank after preprocessing `released`, the others under their own names.
    """
    counts: dict[str, int] = {}
    metrics: dict[str, float] = {}
    for part in step.parts:
        views = step.views.count + 1 if part == "train" else 1
        mine = [unit for unit in units if unit.part == part]
        written = write_part(output, part, _joined(scratch, mine, range(views)))
        counts |= written.counts
        metrics |= written.metrics
    output.write_json("classes.json", list(index.classes))
    output.write_json(MADE_WITH, _made_with(scratch, units))
    return Outcome(counts, metrics)


def _joined(scratch: Folder, units: Sequence[Unit], views: Iterable[int]) -> Iterator[pa.Table]:
    """The units' rows, a table for each view, sorted by key."""
    about = pa.concat_tables(
        [_of_view(scratch, unit, 0, ["key", "label"]) for unit in units]
    ).combine_chunks()
    order = pc.sort_indices(about["key"])
    place = np.empty(len(order), np.int64)  # where each row goes
    place[order.to_numpy()] = np.arange(len(order))
    about = about.take(order).combine_chunks()
    for view in views:
        vectors: npt.NDArray[Any] | None = None
        start = 0
        for unit in units:
            found = _of_view(scratch, unit, view, ["vector"])
            here = _vectors(found["vector"].combine_chunks())
            if vectors is None:
                vectors = np.empty((len(place), here.shape[1]), here.dtype)
            vectors[place[start : start + len(here)]] = here
            start += len(here)
        assert vectors is not None
        yield view_table(about["key"], about["label"], view, vectors)


def _of_view(scratch: Folder, unit: Unit, view: int, columns: list[str]) -> pa.Table:
    with _opened(scratch, unit) as file:
        return file.read_row_group(view, columns=columns)


def _made_with(scratch: Folder, units: Sequence[Unit]) -> dict[str, Any]:
    """What all units say they were made with, and the batches they were made in."""
    found: set[tuple[bytes, bytes]] = set()
    for unit in units:
        with _opened(scratch, unit) as file:
            said = file.schema_arrow.metadata
        found.add((said[IDENTITY.encode()], said[BATCH.encode()]))
    (identity, *others) = {identity for identity, _ in found}
    if others:
        raise StageError(
            f"{scratch.uri} holds features made with {len(others) + 1} different encoders or "
            f"library versions; use one version on all nodes and run the step again"
        )
    return {**json.loads(identity), "batch_sizes": sorted({int(size) for _, size in found})}


def write_part(output: Folder, part: str, views: Iterable[pa.Table]) -> Outcome:
    """Write a part's rows (of `schema`: a table for each view, rising, sorted by key).

    The test part is written with its spectrum. Counts and metrics are as in `finish`.
    """
    rows, dim = 0, 0
    found: list[Spectrum] = []
    with output.new_file(f"features-{part}.parquet") as path:
        writer: pq.ParquetWriter | None = None
        for table in views:
            if writer is None:
                writer = pq.ParquetWriter(
                    path, table.schema, compression="NONE", use_dictionary=["view", "label"]
                )
            writer.write_table(table, row_group_size=GROUP_ROWS)
            rows += len(table)
            dim = table.schema.field("vector").type.list_size
            if part == "test":
                found = spectra(_matrices(table))
        if writer is not None:
            writer.close()
    counts = {f"rows_{part}": rows, "dim": dim}
    if part != "test":
        return Outcome(counts)
    output.write_table("spectrum.parquet", to_table(part, found))
    return Outcome(counts, dict(_summary(found)))


def _matrices(table: pa.Table) -> Iterator[npt.NDArray[Any]]:
    """A part's vectors, some rows at a time, [m, D]."""
    for batch in table.select(["vector"]).to_batches(max_chunksize=GROUP_ROWS):
        yield _vectors(batch.column(0))


def _vectors(column: pa.FixedSizeListArray) -> npt.NDArray[Any]:
    """A column of vectors as a matrix, [N, D], without a copy."""
    if isinstance(column, pa.ChunkedArray):
        (column,) = column.chunks
    vectors: npt.NDArray[Any] = column.flatten().to_numpy().reshape(len(column), -1)
    return vectors


def _summary(found: Sequence[Spectrum]) -> Iterator[tuple[str, float]]:
    for spectrum in found:
        tail = "" if spectrum.preprocessing == "released" else f"_{spectrum.preprocessing}"
        yield f"features/sve{tail}", spectrum.sve
        yield f"features/lsvr{tail}", spectrum.lsvr
        yield f"features/effective_rank{tail}", spectrum.effective_rank

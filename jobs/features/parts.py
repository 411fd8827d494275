"""The files of a features folder: save units in scratch, then concatenate them view by view.

Takes the tables of finished units, or given features; writes `features-<part>.parquet` (schema:
`unit_table.schema`; sorted by view and key; a row group never spans two views), the classes, what
the features were made with, and their spectrum. Holds one view of a part in memory at a time.
Nothing here imports Ray or computes a feature.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.contract import Outcome, StageError
from jobs.corpus.shards import Index
from jobs.corpus.units import Unit
from jobs.features import grids
from jobs.features.spec import FeaturesStep
from jobs.features.spectrum import Dtypes, Spectrum, spectra, to_table
from jobs.features.unit_table import BATCH, COUNTS, IDENTITY, ROWS, view_table
from jobs.storage.folder import Folder

GROUP_ROWS = 4_096  # rows of a row group, and of the pieces that the spectrum reads

MADE_WITH = "extraction.json"
SIZES = "batch_sizes"  # of it: these change features by rounding alone


def save_unit(scratch: Folder, unit: Unit, table: pa.Table) -> None:
    """Write a unit's table (of `extract`) into scratch, one row group for each view."""
    rows = max(1, unit.stop - unit.start)
    scratch.write_table(unit.name, table, compression="NONE", row_group_size=rows)


def has_unit(scratch: Folder, unit: Unit, made_with: str) -> bool:
    """Whether scratch holds features of exactly these rows, made with exactly `made_with`.

    If not, the unit is extracted again: a step never mixes features of a rebuilt shard, of other
    weights or of another library version (see `identity`).
    """
    try:
        with _open_unit(scratch, unit) as file:
            recorded = file.schema_arrow.metadata or {}
    except (OSError, pa.ArrowException):  # there is none, or it is damaged
        return False
    wanted = {IDENTITY: made_with, ROWS: unit.rows}
    return all(recorded.get(name.encode()) == value.encode() for name, value in wanted.items())


@contextmanager
def _open_unit(scratch: Folder, unit: Unit) -> Iterator[pq.ParquetFile]:
    filesystem, path = scratch.open()
    with filesystem.open_input_file(f"{path}/{unit.name}") as source:
        yield pq.ParquetFile(source)


def finish(
    step: FeaturesStep, index: Index, units: Sequence[Unit], scratch: Folder, output: Folder
) -> Outcome:
    """Concatenate the units into `features-<part>.parquet`, sorted by (view, key).

    Also writes `classes.json` (names in label order), `extraction.json` (what the features were
    made with: weights, input, views, arithmetic, library versions) and, where there is a test part,
    `spectrum.parquet` of its plain features. Metrics: features/sve, features/lsvr and
    features/effective_rank after preprocessing `released`; other preprocessings add their name.
    Counts: rows_<part>, dim, patches (of an image with a mask), and what befell the rows of all
    units (`rows_truncated`, of texts).

    Where the output has some parts already, the wanted ones are added, and none of its files is
    written again. Raises StageError if they were made with other weights or library versions.
    """
    made_with = _read_made_with(scratch, units)
    adds = may_add(output, made_with)
    counts: dict[str, int] = dict(_read_counts(scratch, units))
    metrics: dict[str, float] = {}
    dtypes = Dtypes(step.precision, step.dtype)
    for part in step.wanted:
        views = step.views.count + 1 if part == "train" else 1
        mine = [unit for unit in units if unit.part == part]
        if step.grid is not None:
            each = partial(_read_view, scratch)
            found = grids.write_part(output, part, mine, views, len(index.classes), each, dtypes)
            written = _with_spectrum(output, part, found.rows, found.dim, found.spectra, dtypes)
            counts["patches"] = found.patches
        else:
            tables = _concatenate_views(scratch, mine, range(views))
            written = write_part(output, part, tables, dtypes)
        counts |= written.counts
        metrics |= written.metrics
    if not adds:
        output.write_json("classes.json", list(index.classes))
        output.write_json(MADE_WITH, made_with)
    return Outcome(counts, metrics)


def may_add(output: Folder, made_with: Mapping[str, Any]) -> bool:
    """Whether the output has some parts already, so that others are added to them.

    Raises StageError if they were made with other weights, settings or library versions.
    """
    if not output.exists(MADE_WITH):
        return False
    before = output.read_json(MADE_WITH)
    differ = [n for n, now in made_with.items() if n != SIZES and before.get(n) != now]
    if differ:
        raise StageError(
            f"{output.uri} has its test part, which was made with other {' and '.join(differ)}, "
            f"and no part is added to it; do the step again with --redo and its address"
        )
    return True


def _concatenate_views(
    scratch: Folder, units: Sequence[Unit], views: Iterable[int]
) -> Iterator[pa.Table]:
    """Tables of the units' rows, one for each view, sorted by key."""
    rows = pa.concat_tables(
        [_read_view(scratch, unit, 0, ["key", "label"]) for unit in units]
    ).combine_chunks()
    order = pc.sort_indices(rows["key"])
    position = np.empty(len(order), np.int64)  # of each row, once sorted
    position[order.to_numpy()] = np.arange(len(order))
    rows = rows.take(order).combine_chunks()
    for view in views:
        vectors: npt.NDArray[Any] | None = None
        start = 0
        for unit in units:
            found = _read_view(scratch, unit, view, ["vector"])
            here = _to_matrix(found["vector"].combine_chunks())
            if vectors is None:
                vectors = np.empty((len(position), here.shape[1]), here.dtype)
            vectors[position[start : start + len(here)]] = here
            start += len(here)
        assert vectors is not None
        yield view_table(rows["key"], rows["label"], view, vectors)


def _read_view(scratch: Folder, unit: Unit, view: int, columns: list[str]) -> pa.Table:
    with _open_unit(scratch, unit) as file:
        return file.read_row_group(view, columns=columns)


def _read_made_with(scratch: Folder, units: Sequence[Unit]) -> dict[str, Any]:
    """What all units record that they were made with, and their batch sizes."""
    found: set[tuple[bytes, bytes]] = set()
    for unit in units:
        with _open_unit(scratch, unit) as file:
            recorded = file.schema_arrow.metadata
        found.add((recorded[IDENTITY.encode()], recorded[BATCH.encode()]))
    (identity, *others) = {identity for identity, _ in found}
    if others:
        raise StageError(
            f"{scratch.uri} holds features made with {len(others) + 1} different encoders or "
            f"library versions; use one version on all nodes and run the step again"
        )
    return {**json.loads(identity), SIZES: sorted({int(size) for _, size in found})}


def _read_counts(scratch: Folder, units: Sequence[Unit]) -> Counter[str]:
    """The sums of what the units record that befell their rows."""
    counts: Counter[str] = Counter()
    for unit in units:
        with _open_unit(scratch, unit) as file:
            recorded = file.schema_arrow.metadata.get(COUNTS.encode())
        if recorded is not None:
            counts.update(json.loads(recorded))
    return counts


def write_part(output: Folder, part: str, views: Iterable[pa.Table], dtypes: Dtypes) -> Outcome:
    """Write a part's rows: tables of `unit_table.schema`, one for each view, sorted by key.

    Vectors are stored as `dtypes.stored`. Writes the spectrum of the test part too, computed from
    the vectors as they come. Counts and metrics: see `finish`.
    """
    rows, dim = 0, 0
    found: list[Spectrum] = []
    with output.new_file(f"features-{part}.parquet") as path:
        writer: pq.ParquetWriter | None = None
        for table in views:
            if part == "test":
                found = spectra(_vector_pieces(table))
            table = _as_stored(table, dtypes.stored)
            if writer is None:
                writer = pq.ParquetWriter(
                    path, table.schema, compression="NONE", use_dictionary=["view", "label"]
                )
            writer.write_table(table, row_group_size=GROUP_ROWS)
            rows += len(table)
            dim = table.schema.field("vector").type.list_size
        if writer is not None:
            writer.close()
    return _with_spectrum(output, part, rows, dim, found, dtypes)


def _with_spectrum(
    output: Folder, part: str, rows: int, dim: int, found: Sequence[Spectrum], dtypes: Dtypes
) -> Outcome:
    """Write the spectrum of a test part; the counts and metrics of any part."""
    counts = {f"rows_{part}": rows, "dim": dim}
    if part != "test":
        return Outcome(counts)
    output.write_table("spectrum.parquet", to_table(part, found, dtypes))
    return Outcome(counts, dict(_spectrum_metrics(found)))


def _as_stored(table: pa.Table, dtype: str) -> pa.Table:
    """A view's rows with vectors in the stored type; the table itself if they are in it."""
    vectors = _to_matrix(table["vector"].combine_chunks())
    if vectors.dtype == dtype:
        return table
    view = table["view"][0].as_py()
    return view_table(table["key"], table["label"], view, vectors.astype(dtype))


def _vector_pieces(table: pa.Table) -> Iterator[npt.NDArray[Any]]:
    """A part's vectors in pieces of some rows, [m, D]."""
    for batch in table.select(["vector"]).to_batches(max_chunksize=GROUP_ROWS):
        yield _to_matrix(batch.column(0))


def _to_matrix(column: pa.FixedSizeListArray) -> npt.NDArray[Any]:
    """A column of vectors as a matrix, [N, D], without a copy."""
    if isinstance(column, pa.ChunkedArray):
        (column,) = column.chunks
    vectors: npt.NDArray[Any] = column.flatten().to_numpy().reshape(len(column), -1)
    return vectors


def _spectrum_metrics(found: Sequence[Spectrum]) -> Iterator[tuple[str, float]]:
    for spectrum in found:
        tail = "" if spectrum.preprocessing == "released" else f"_{spectrum.preprocessing}"
        yield f"features/sve{tail}", spectrum.sve
        yield f"features/lsvr{tail}", spectrum.lsvr
        yield f"features/effective_rank{tail}", spectrum.effective_rank

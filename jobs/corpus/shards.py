"""Shards: the one copy of a corpus's samples, and the index that lists it.

A corpus's folder holds, for each part, Parquet files `<part>-00000.parquet`, ... in the corpus's
order, `quarantine.parquet` with the refused rows, and `_index.json`. This module has the index,
writes shards from slices of runs, and reads shards; their columns are those of the corpus's form.
Reading raises an error when a shard is missing or is not the one that was built. Nothing here
decodes an image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs import records
from jobs.contract import StageError
from jobs.corpus.form import Form, LabelKind, Modality, form_of
from jobs.corpus.layout import Cut
from jobs.corpus.readers.source import Listing
from jobs.corpus.runs import PARTS as PARTS
from jobs.corpus.runs import Blobs, Run, read_slice
from jobs.corpus.shrunk import Shrunk
from jobs.storage.folder import Folder

INDEX = "_index.json"
QUARANTINE = "quarantine.parquet"
ROW_GROUP = 1_000  # rows, or
ROW_GROUP_BYTES = 128 << 20  # of bulk: bounds the memory of a worker that writes


def build_again(folder: Folder) -> str:
    """What to do about a corpus's folder that is not as it was built, as a command."""
    name = folder.uri.partition("?")[0].rstrip("/").rpartition("/")[2]
    return (
        f"build the corpus again: `nml-orch corpus build` with the same options and "
        f"--redo corpus/{name}"
    )


@dataclass(frozen=True)
class File:
    """One shard as the index lists it."""

    file: str  # name within the corpus's folder
    rows: int
    bytes: int
    sha256: str
    columns_sha256: str = ""  # of all columns but the bulk; an index of an older version lacks it


@dataclass(frozen=True)
class Index:
    """The contents of a corpus's folder."""

    name: str
    classes: tuple[str, ...]  # names in label order; empty without labels
    parts: Mapping[str, tuple[File, ...]]  # part -> its files, in training order
    class_ids: tuple[str, ...] = ()  # the classes in the source's terms: folders, WordNet ids
    rows_read: int = 0
    quarantined: Mapping[str, int] = field(default_factory=dict)  # reason -> rows
    notes: Mapping[str, int] = field(default_factory=dict)  # what is unusual but kept -> rows
    sources: Mapping[str, Listing] = field(default_factory=dict)  # of `reader` and parts' own
    modality: Modality = "image"  # an index of an older version lacks it
    label_kind: LabelKind = "classes"
    shrunk: Shrunk | None = None  # with `corpus.shrink`: the images that are stored smaller

    @property
    def form(self) -> Form:
        """The form of the corpus's rows."""
        return form_of(self.modality, self.label_kind)

    def rows(self, part: str) -> int:
        """How many rows a part has."""
        return sum(file.rows for file in self.parts[part])

    def write(self, folder: Folder) -> None:
        """Write `_index.json` into the corpus's folder; without `shrunk` where nothing can be."""
        values = asdict(self)
        if self.shrunk is None:  # as the index once was
            del values["shrunk"]
        folder.write_json(INDEX, values)

    @staticmethod
    def read(folder: Folder) -> Index:
        """The index of a corpus's folder.

        Raises FileNotFoundError when there is none, StageError when it is broken.
        """
        found = records.read(folder, INDEX, Index, build_again(folder))
        if lost := [part for part in PARTS if part not in found.parts]:
            raise records.RecordError(
                f"{(folder / INDEX).uri} cannot be used (it has no part {lost[0]}); "
                f"{build_again(folder)}"
            )
        return found


# -- reading ---------------------------------------------------------------------------------------


def read_part(folder: Folder, part: str, columns: Sequence[str]) -> pa.Table:
    """The named columns of all rows of a part, in training order.

    Raises StageError when a shard is missing, or its rows are not the ones of the index. To check
    labels, keys and captions, the images are not read.
    """
    index = Index.read(folder)
    files, form = index.parts[part], index.form
    schema = pa.schema([form.shard.field(c) for c in columns])
    tables = []
    for file in files:
        if form.bulk in columns or not file.columns_sha256:
            tables.append(_read_shard(folder, file, list(columns), checked=True))
            continue
        try:
            table = _read_shard(folder, file, form.light, checked=False)
            if columns_sha256(table, form) != file.columns_sha256:
                raise _altered(folder, file.file, "other keys, labels or captions")
        except StageError:
            folder.check(file.file)  # a finished step's says more
            raise
        tables.append(table.select(list(columns)))
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _read_shard(folder: Folder, file: File, columns: list[str], *, checked: bool) -> pa.Table:
    with open_shard(folder, file.file, checked=checked) as parquet:
        if parquet.metadata.num_rows != file.rows:
            raise _altered(folder, file.file, f"{parquet.metadata.num_rows} rows")
        return _read_columns(folder, file.file, parquet, columns)


def columns_sha256(table: pa.Table, form: Form) -> str:
    """A digest of a shard's light columns, [rows]: of their values, whatever their chunks."""
    digest = hashlib.sha256()
    for name in form.light:
        column = pa.concat_arrays([pa.array([], form.shard.field(name).type), *table[name].chunks])
        digest.update(np.packbits(column.is_valid().to_numpy(zero_copy_only=False)).tobytes())
        if not (pa.types.is_string(column.type) or pa.types.is_binary(column.type)):
            digest.update(column.fill_null(0).to_numpy().tobytes())
            continue
        texts = column.fill_null("" if pa.types.is_string(column.type) else b"")
        digest.update(pc.binary_length(texts).to_numpy().tobytes())
        _, offsets, data = texts.buffers()
        ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
        if data is not None:
            digest.update(memoryview(data)[ends[0] : ends[-1]])
    return digest.hexdigest()


def read_rows(folder: Folder, file: str, start: int, stop: int, columns: Sequence[str]) -> pa.Table:
    """The named columns of rows [start, stop) of one shard, opening only their row groups.

    Raises StageError when the shard is missing, damaged or has fewer rows.
    """
    with open_shard(folder, file) as parquet:
        if parquet.metadata.num_rows < stop:
            raise _altered(folder, file, f"{parquet.metadata.num_rows} rows")
        sizes = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
        ends = np.cumsum([0, *sizes])
        groups = [g for g in range(len(sizes)) if ends[g] < stop and ends[g + 1] > start]
        rows = _read_columns(folder, file, parquet, list(columns), groups)
        return rows.slice(start - int(ends[groups[0]]), stop - start)


def open_shard(folder: Folder, file: str, *, checked: bool = True) -> pq.ParquetFile:
    """Open a shard; StageError when it is missing or cannot be read as Parquet.

    `checked`: see `Folder.input_file`.
    """
    try:
        return pq.ParquetFile(folder.input_file(file, checked=checked))
    except FileNotFoundError:
        raise StageError(
            f"shard {file} of {folder.uri} is missing; {build_again(folder)}"
        ) from None
    except (pa.ArrowInvalid, OSError) as error:
        raise _altered(folder, file, str(error)) from None


def _read_columns(
    folder: Folder,
    file: str,
    parquet: pq.ParquetFile,
    columns: list[str],
    groups: list[int] | None = None,
) -> pa.Table:
    try:
        if groups is None:
            return parquet.read(columns=columns)
        return parquet.read_row_groups(groups, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise _altered(folder, file, str(error)) from None


def _altered(folder: Folder, file: str, found: str) -> StageError:
    return StageError(
        f"shard {file} of {folder.uri} is not the one that {INDEX} lists ({found}); "
        f"{build_again(folder)}"
    )


# -- writing ---------------------------------------------------------------------------------------


def rank(
    hashes: npt.NDArray[np.uint64], keys: pa.Array | pa.ChunkedArray | Sequence[str]
) -> npt.NDArray[np.int64]:
    """Row positions by rising hash, ties by key: an order that ignores the rows' own order."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    if len(order) and (ordered[1:] == ordered[:-1]).any():
        texts = keys.to_pylist() if isinstance(keys, (pa.Array, pa.ChunkedArray)) else list(keys)
        order = np.array(sorted(range(len(texts)), key=lambda i: (int(hashes[i]), texts[i])))
    return order.astype(np.int64, copy=False)


def write_shard(scratch: Folder, runs: Sequence[Run], cut: Cut, output: Folder, form: Form) -> File:
    """Write one shard from its slices of the runs; equal rows give equal bytes."""
    tables, buffers = [], []
    for run, rows, at in zip(runs, cut.rows, cut.bytes, strict=True):
        if rows[1] > rows[0]:
            span, within = (int(rows[0]), int(rows[1])), (int(at[0]), int(at[1]))
            piece, encoded = read_slice(scratch, run, span, within)
            tables.append(piece)
            buffers.append(encoded)
    table = pa.concat_tables(tables)
    which = np.repeat(np.arange(len(tables)), [len(piece) for piece in tables])
    stops = np.concatenate([np.cumsum(piece["size"].to_numpy()) for piece in tables])
    sizes = table["size"].to_numpy()
    bulk = Blobs(buffers, which, stops - sizes, stops)
    order = rank(table["order"].to_numpy(), table["key"])
    groups = (_to_table(table, bulk, sizes, rows, form) for rows in _row_groups(order, sizes))
    return _write_groups(output, cut.file, groups, form)


def write_rows(output: Folder, file: str, rows: pa.Table, form: Form | None = None) -> File:
    """Write rows, already in order, as one shard in the format of `write_shard`.

    `form`: of the rows; none: of images.
    """
    groups = (rows.slice(start, ROW_GROUP) for start in range(0, len(rows), ROW_GROUP))
    whole = (group.combine_chunks() for group in groups)
    return _write_groups(output, file, whole, form or form_of("image"))


def _write_groups(output: Folder, name: str, groups: Iterable[pa.Table], form: Form) -> File:
    rows, light = 0, []
    with output.writing(name) as file:
        sink = _HashingFile(file)
        with pq.ParquetWriter(
            pa.PythonFile(sink, mode="w"),
            form.shard,
            compression=form.compression,
            use_dictionary=form.dictionary,
            write_statistics=["key", "label"],
        ) as writer:
            for group in groups:
                writer.write_table(group, row_group_size=len(group))
                rows += len(group)
                light.append(group.select(form.light))
    table = pa.concat_tables(light) if light else form.shard.empty_table()
    digest = columns_sha256(table, form)
    return File(name, rows, sink.bytes, sink.sha256, digest)


def _row_groups(
    order: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]
) -> list[npt.NDArray[np.int64]]:
    """The order in groups of at most ROW_GROUP rows and ROW_GROUP_BYTES, but at least one row."""
    ends = np.cumsum(sizes[order])
    groups, start = [], 0
    while start < len(order):
        done = ends[start - 1] if start else 0
        limit = int(np.searchsorted(ends, done + ROW_GROUP_BYTES, side="right"))
        stop = min(start + ROW_GROUP, max(limit, start + 1), len(order))
        groups.append(order[start:stop])
        start = stop
    return groups


def _to_table(
    table: pa.Table,
    bulk: Blobs,
    sizes: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    form: Form,
) -> pa.Table:
    """The rows at these positions, by the form's schema."""
    offsets = np.concatenate([[0], np.cumsum(sizes[rows])]).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(bulk.join(rows))]
    at = form.shard.get_field_index(form.bulk)
    column = pa.Array.from_buffers(form.shard.field(at).type, len(rows), buffers)
    others = table.select(form.light).take(pa.array(rows))
    whole = others.add_column(at, form.bulk, column).cast(form.shard)
    return whole.combine_chunks()


class _HashingFile:
    """A file that computes the hash and the size of what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self.bytes = file, hashlib.sha256(), 0
        self.closed = False

    def write(self, data: Any) -> int:
        """Append bytes."""
        self._digest.update(data)
        self.bytes += len(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        """Does nothing: there is no buffer."""

    def close(self) -> None:
        """Mark this object closed; the caller closes the file."""
        self.closed = True

    @property
    def sha256(self) -> str:
        """The sha256 of what has been written, in hex."""
        return self._digest.hexdigest()

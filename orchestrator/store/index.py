"""An index of the store's manifests in a few files: 50,000 steps are read in a second.

The index is a cache. Every entry has the stamp (size and modification time) of its manifest and
counts only while the manifest still has that stamp. All other manifests are read again. So the
index may be deleted, be old, or be lost with a killed driver, and results stay the same.

`.index/` holds numbered segments: Parquet files that are written once and never changed, which
suits object stores. A segment's name has a digest of its content; one that has changed is ignored.
`<id>.steps` has one row for each step, `<id>.cells` the result rows of cells. Drivers add a segment
now and then; readers add what they had to look up. A writer that finds many segments writes one in
their place. If two do so at once, some rows are there twice, which does no harm.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.storage.folder import Folder
from jobs.tuning import schema
from orchestrator.store.manifest import Record, Stamp, parsed

if TYPE_CHECKING:
    from orchestrator.store.manifest import Manifest

FOLDER = ".index"
STEPS, CELLS = "steps", "cells"
SEGMENTS = 24  # more than this are written into one
HEAP = 256  # cells' rows that a driver keeps apart; a table of one row weighs 30 kB
FLUSH_ROWS, FLUSH_SECONDS = 5000, 30.0  # what a driver may lose of the cache when it is killed
KEEP_ROWS = 200  # a reader that had to look up fewer leaves no segment


_STEP_SCHEMA = pa.schema(
    [
        pa.field("address", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),  # the manifest's stamp
        pa.field("written", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("finished", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("facts", pa.string(), nullable=False),  # counts, metrics, files, seconds: JSON
    ]
)
_STAMPED = pa.schema([_STEP_SCHEMA.field(name) for name in ("address", "size", "written")])
_CELL = {field.name: (field.type, pa.null()) for field in schema.of(schema.Cell)}


class Index:
    """The segments of one store."""

    def __init__(self, root: Folder) -> None:
        self._root = root
        self._folder = root / FOLDER

    # -- reading ---------------------------------------------------------------------------------

    def records(self, stamps: Mapping[str, Stamp]) -> dict[str, Record]:
        """The records of the steps whose entry is still valid."""
        found: dict[str, Record] = {}
        for table in self._tables(STEPS):
            columns = [table[name].to_pylist() for name in _STEP_SCHEMA.names]
            for address, size, written, *rest in zip(*columns, strict=True):
                if stamps.get(address) == (size, written):
                    with contextlib.suppress(ValueError):  # read from the manifest instead
                        parsed(rest[-1])
                        found[address] = Record(address, *rest)
        return found

    def cells(self, stamps: Mapping[str, Stamp]) -> list[pa.Table]:
        """Tables of cell rows, with the column `address`; each step is in at most one of them."""
        found, seen = [], set[str]()
        for table in self._tables(CELLS):
            columns = [table[name].to_pylist() for name in ("address", "size", "written")]
            here = set[str]()
            holds = []
            for address, size, written in zip(*columns, strict=True):
                holds.append(address not in seen and stamps.get(address) == (size, written))
                if holds[-1]:
                    here.add(address)
            seen |= here
            found.append(
                table.filter(pa.array(holds, pa.bool_())).drop_columns(["size", "written"])
            )
        return [table for table in found if table.num_rows]

    def _tables(self, family: str) -> list[pa.Table]:
        """The readable segments, newest first."""
        found = (self._table(family, name) for name in self._segments(family))
        return [table for table in found if table is not None]

    def _table(self, family: str, name: str) -> pa.Table | None:
        """A segment; None if it was compacted away, is damaged or has another schema."""
        try:
            table = self._read(name)
        except (OSError, pa.ArrowException):
            return None
        types = {field.name: field.type for field in table.schema}
        needed = _STEP_SCHEMA if family == STEPS else _STAMPED
        ours = (
            len(types) == len(table.schema)  # no name is there twice
            and all(types.get(f.name) == f.type for f in needed)
            and all(table[f.name].null_count == 0 for f in needed)
            and (family == STEPS or all(t in _CELL.get(name, (t,)) for name, t in types.items()))
        )
        return table if ours else None

    def _read(self, name: str) -> pa.Table:
        """One segment; ArrowInvalid if its content is not the one that its name has a digest of."""
        data = self._folder.read_bytes(name)
        if _name_end(data) != name.partition("-")[2].partition(".")[0]:
            raise pa.ArrowInvalid(f"{name} has changed since it was written")
        return pq.ParquetFile(pa.BufferReader(data)).read()

    def _segments(self, family: str) -> list[str]:
        try:
            names = [name for name, _ in self._folder.files() if name.endswith(f".{family}")]
        except NotADirectoryError:  # a file has its name
            return []
        return sorted(names, reverse=True)

    # -- writing ---------------------------------------------------------------------------------

    def keep(self, records: Mapping[str, Record], stamps: Mapping[str, Stamp]) -> None:
        """Add a segment of step records."""
        rows = [
            (r.address, *stamps[r.address], r.kind, r.fingerprint, r.finished, r.bytes, r.facts)
            for r in records.values()
        ]
        if rows:
            arrays = [
                pa.array(column, field.type)
                for column, field in zip(zip(*rows, strict=True), _STEP_SCHEMA, strict=True)
            ]
            self._write(STEPS, pa.Table.from_arrays(arrays, schema=_STEP_SCHEMA))

    def keep_cells(self, tables: Iterable[pa.Table], stamps: Mapping[str, Stamp]) -> None:
        """Add a segment of cell rows; each table has the column `address`."""
        found = list(tables)
        if found:
            self._write(CELLS, _stamped(concatenated(found), stamps))

    def _write(self, family: str, table: pa.Table) -> None:
        """Write a new segment. Names rise with time, so the newest is read first."""
        self._write_segment(family, table)
        if len(names := self._segments(family)) > SEGMENTS:
            self._compact(family, names)

    def _write_segment(self, family: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        data = sink.getvalue().to_pybytes()
        self._folder.write_bytes(f"{time.time_ns():020d}-{_name_end(data)}.{family}", data)

    def _compact(self, family: str, names: Sequence[str]) -> None:
        """Write one segment in place of the given ones: the newest entry of each step."""
        tables, seen = [], set[str]()
        for name in names:
            table = self._table(family, name)
            if table is None:
                continue
            addresses = table["address"].to_pylist()
            fresh = pa.array([a not in seen for a in addresses], pa.bool_())
            tables.append(table.filter(fresh))
            seen.update(addresses)
        if not tables:  # another driver has just written all of them into one
            return
        self._write_segment(family, concatenated(tables))
        for name in names:
            self._folder.delete(name)


class Journal:
    """A driver's writer of the index: adds committed steps in segments. Thread-safe.

    Never raises when only the index cannot be written: readers find the manifest.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self._empty()

    def _empty(self) -> None:
        self._stamps: dict[str, Stamp] = {}
        self._records: dict[str, Record] = {}
        self._cells: list[pa.Table] = []
        self._heap: list[pa.Table] = []  # of one cell each

    def add(self, manifest: Manifest, stamp: Stamp, cell: pa.Table | None) -> None:
        """Add a step that was just committed, and its result rows if it is a cell."""
        with self._lock:
            self._stamps[manifest.address] = stamp
            self._records[manifest.address] = Record.of(manifest)
            if cell is not None:
                self._heap.append(addressed(cell, manifest.address))
            if len(self._heap) >= HEAP:
                self._cells.append(concatenated(self._heap))
                self._heap = []

    def flush(self, *, force: bool = False) -> None:
        """Write a segment if much is pending or the last one is old, or if `force` is set."""
        with self._lock:
            due = time.monotonic() - self._last >= FLUSH_SECONDS
            if not (force or due or len(self._records) >= FLUSH_ROWS):
                return
            stamps, records, cells = self._stamps, self._records, [*self._cells, *self._heap]
            self._empty()
            self._last = time.monotonic()
        with contextlib.suppress(OSError):
            self._index.keep(records, stamps)
            self._index.keep_cells(cells, stamps)


def _name_end(data: bytes) -> str:
    """A segment's digest, a part of its name: no manifest has it, and reports read its numbers."""
    return hashlib.sha256(data).hexdigest()[:16]


def addressed(table: pa.Table, address: str) -> pa.Table:
    """The table with the step's address as its first column."""
    return table.add_column(0, "address", pa.array([address] * table.num_rows, pa.string()))


def concatenated(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables concatenated by rows; missing columns are null."""
    return pa.concat_tables(tables, promote_options="permissive").combine_chunks()


def _stamped(table: pa.Table, stamps: Mapping[str, Stamp]) -> pa.Table:
    found = [stamps[address] for address in table["address"].to_pylist()]
    for name, at in (("size", 0), ("written", 1)):
        table = table.append_column(name, pa.array([stamp[at] for stamp in found], pa.int64()))
    return table

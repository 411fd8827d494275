"""Runs: sorted pieces of a corpus in scratch, from which shards are merged.

Takes checked rows of a unit; gives *runs* of some hundred megabytes, each sorted by part and
position in the corpus's order, so the rows of any shard are one slice of every run. This external
merge sort shuffles a corpus of any size in bounded memory: runs are written once, and each shard
reads its slices of them. A row's position is a hash of its key (unshuffled: its position in the
source), so a run may end at any row. Nothing here decodes images or reads sources.

A run is three files: `.bulk` (the bytes of the form's bulk column, concatenated), `.rows` (Arrow
IPC: everything else and each row's size of bulk) and `.places` (an ENTRY for each row, for the
layout).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.corpus.spec import Corpus
from jobs.keyed_hash import hash64, unit
from jobs.storage.folder import Folder

PARTS = ("train", "validation", "test")

RUN_BYTES = 256 << 20  # of bulk in a run: bounds the memory of a worker that scans
WRITE_BYTES = 8 << 20
IPC_ROWS = 1_024

ENTRY = np.dtype([("order", "<u8"), ("hash", "<u8"), ("size", "<i8")])
"""A row for the layout: its position in the corpus's order, its key's hash, its bulk's bytes."""

Order = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Run:
    """A run, by its name in scratch."""

    name: str
    rows: tuple[int, ...]  # how many of each part
    labels: tuple[int, ...] = ()  # the classes of its training rows, each once

    def span(self, part: str) -> tuple[int, int]:
        """The rows of a part in the run: start and stop."""
        number = PARTS.index(part)
        first = sum(self.rows[:number])
        return first, first + self.rows[number]


def part_numbers(corpus: Corpus, keys: pa.ChunkedArray, part: str | None) -> npt.NDArray[np.int64]:
    """Each row's part, as its number in PARTS, [N].

    `part` is the part whose own source the rows come from. Without it, a row's part is the one
    whose share of [0, 1) contains u(key).
    """
    if part is not None:
        return np.full(len(keys), PARTS.index(part), np.int64)
    u = unit(hash64(keys, seed=corpus.seed, scope=corpus.name, stream="part"))
    shares = corpus.parts.shares
    last = max(number for number, share in enumerate(shares) if share > 0)
    edges = np.cumsum(shares)
    edges[last:] = 1.0  # the shares' sum may round below 1: every key needs a part
    return np.searchsorted(edges, u, side="right").astype(np.int64)


def write_run(
    scratch: Folder, name: str, rows: pa.Table, corpus: Corpus, part: str | None, positions: Order
) -> Run:
    """Sort rows (by `Form.checked`) and write them as a run.

    `positions` are the rows' positions in the source, [N], for a corpus that is not shuffled.
    """
    keys = rows["key"]
    hashes = hash64(keys, seed=corpus.seed, scope=corpus.name, stream="order")
    order = hashes if corpus.shuffle == "global" else positions
    part_of = part_numbers(corpus, keys, part)
    sorting = np.lexsort((order, part_of))
    form = corpus.form
    bulk = Blobs.of(rows[form.bulk])
    sizes = bulk.stops - bulk.starts
    entries = np.empty(len(rows), ENTRY)
    entries["order"], entries["hash"], entries["size"] = (
        order[sorting],
        hashes[sorting],
        sizes[sorting],
    )
    with scratch.writing(f"{name}.bulk") as file:
        for data in bulk.pieces(sorting, WRITE_BYTES):
            file.write(data)
    with scratch.writing(f"{name}.places") as file:
        file.write(entries.tobytes())
    table = rows.drop_columns([form.bulk]).take(pa.array(sorting))
    table = table.add_column(0, "order", pa.array(entries["order"]))
    table = table.append_column("size", pa.array(entries["size"])).cast(form.run).combine_chunks()
    with scratch.writing(f"{name}.rows") as file, pa.ipc.new_file(file, form.run) as writer:
        writer.write_table(table, max_chunksize=IPC_ROWS)
    counts = np.bincount(part_of, minlength=len(PARTS))
    train: list[int] = []
    if corpus.label_kind == "classes":
        train = pc.unique(rows["label"].filter(pa.array(part_of == 0))).drop_null().to_pylist()
    return Run(name, tuple(counts.tolist()), tuple(train))


def read_entries(scratch: Folder, run: Run) -> npt.NDArray[Any]:
    """A run's entries, by ENTRY, [N], in the run's order."""
    return np.frombuffer(scratch.read_bytes(f"{run.name}.places"), ENTRY)


def read_slice(
    scratch: Folder, run: Run, rows: tuple[int, int], at: tuple[int, int]
) -> tuple[pa.Table, memoryview]:
    """Rows [start, stop) of a run, by `Form.run`, and the bytes [start, stop) of its bulk.

    On a local disk both are memory-mapped, not read.
    """
    with scratch.opening(f"{run.name}.rows") as source, pa.ipc.open_file(source) as opened:
        first, last = rows[0] // IPC_ROWS, -(-rows[1] // IPC_ROWS)
        batches = [opened.get_batch(number) for number in range(first, last)]
        table = pa.Table.from_batches(batches, schema=opened.schema)
    with scratch.opening(f"{run.name}.bulk") as source:
        source.seek(at[0])
        bulk = source.read_buffer(at[1] - at[0])
    return table.slice(rows[0] - first * IPC_ROWS, rows[1] - rows[0]), memoryview(bulk)


@dataclass(frozen=True)
class Blobs:
    """Byte strings in several buffers, [N]."""

    buffers: Sequence[memoryview]
    which: npt.NDArray[np.int64]  # each string's buffer
    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]

    @staticmethod
    def of(column: pa.ChunkedArray) -> Blobs:
        """The byte strings of a large_binary column without nulls."""
        buffers, starts, stops = [], [], []
        for chunk in column.chunks:
            _, offsets_buffer, data = chunk.buffers()
            ends = np.frombuffer(offsets_buffer, np.int64, len(chunk) + 1, 8 * chunk.offset)
            buffers.append(memoryview(data if data is not None else b""))
            starts.append(ends[:-1])
            stops.append(ends[1:])
        which = np.repeat(np.arange(len(buffers)), [len(part) for part in starts])
        none = np.empty(0, np.int64)
        return Blobs(
            buffers, which, np.concatenate([none, *starts]), np.concatenate([none, *stops])
        )

    def join(self, rows: npt.NDArray[np.int64]) -> bytes:
        """The strings of these rows, concatenated."""
        spans = zip(
            self.which[rows].tolist(),
            self.starts[rows].tolist(),
            self.stops[rows].tolist(),
            strict=True,
        )
        return b"".join([self.buffers[w][start:stop] for w, start, stop in spans])

    def pieces(self, rows: npt.NDArray[np.int64], size: int) -> Iterator[bytes]:
        """The strings of these rows, concatenated, in pieces of about `size` bytes."""
        ends = np.cumsum((self.stops - self.starts)[rows])
        wanted = np.arange(0, int(ends[-1]) if len(ends) else 0, size)
        for start, stop in pairwise([*np.unique(np.searchsorted(ends, wanted)), len(rows)]):
            yield self.join(rows[start:stop])

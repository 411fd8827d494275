"""Layout: which rows of the runs each shard is made of.

Takes a corpus's runs; gives its shards, each a slice of every run. Shards are cut from the corpus's
whole order, which the runs share, so neither how the source was cut into units nor how many workers
read them bears on a shard. Rows are looked at some millions at a time, whatever their number. Keys
that occur twice are found here, by their hashes. Nothing here touches images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.contract import StageError
from jobs.corpus.runs import PARTS, Run, read_places
from jobs.corpus.spec import Corpus
from jobs.storage.folder import Folder

BLOCK_ROWS = 4_000_000  # rows merged at a time: 100 MB of places
SHOWN = 3  # repeated keys named in a complaint
LOOKED_AT = 1_000  # repeated hashes whose keys are looked up for it

Places = npt.NDArray[Any]  # by PLACES
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cut:
    """A shard to be written."""

    part: str
    file: str
    rows: Ints  # of each run, [first, past the last), [R, 2]
    bytes: Ints  # of each run's images, [first, past the last), [R, 2]

    @property
    def count(self) -> int:
        """The shard's rows."""
        return int((self.rows[:, 1] - self.rows[:, 0]).sum())

    def as_json(self) -> dict[str, Any]:
        """As `of` takes it."""
        spans = {"rows": self.rows.tolist(), "bytes": self.bytes.tolist()}
        return {"part": self.part, "file": self.file} | spans

    @staticmethod
    def of(said: dict[str, Any]) -> Cut:
        """From `as_json`, perhaps after a journey as JSON."""
        rows, places = np.array(said["rows"], np.int64), np.array(said["bytes"], np.int64)
        return Cut(said["part"], said["file"], rows, places)


def lay_out(corpus: Corpus, scratch: Folder, runs: Sequence[Run]) -> list[Cut]:
    """The corpus's shards, part by part in their order.

    Raises StageError when a key occurs twice, or a part that was asked for would hold no row.
    """
    _refuse_duplicates(corpus.name, scratch, runs)
    asked = {part for part, share in zip(PARTS, corpus.parts.shares, strict=True) if share > 0}
    cuts: list[Cut] = []
    for part in PARTS:
        rows = sum(run.rows[PARTS.index(part)] for run in runs)
        if rows:
            cuts += _cut(corpus, scratch, runs, part, rows)
        elif part in asked | set(corpus.parts.sources):
            total = sum(sum(run.rows) for run in runs)
            raise StageError(
                f"corpus {corpus.name}: part {part!r} holds none of the {total} rows; "
                f"give it a larger share in `parts` or the corpus more rows"
            )
    return cuts


def _cut(
    corpus: Corpus, scratch: Folder, runs: Sequence[Run], part: str, rows: int
) -> Iterator[Cut]:
    """A part's shards: equal in bytes where `shard_mb` is given, else in rows."""
    first: list[np.uint64] = []  # each shard's lowest place
    row = prefix = 0
    per_shard = None if corpus.shard_mb is None else corpus.shard_mb * 1e6
    total = 0 if per_shard is None else _bytes(scratch, runs, part)
    for block in _in_order(corpus, scratch, runs, part, rows):
        if per_shard is None:
            numbers = (row + np.arange(len(block))) // corpus.rows_per_shard
        else:
            shards = max(1, round(total / per_shard))
            before = prefix + np.cumsum(block["size"]) - block["size"]
            numbers = before * shards // total
        begins = np.flatnonzero(np.diff(numbers, prepend=len(first) - 1) > 0)
        first += block["order"][begins].tolist()
        row, prefix = row + len(block), prefix + int(block["size"].sum())
    spans, places = [], []
    for run in runs:
        start, stop = run.span(part)
        whole = read_places(scratch, run)
        edges = np.searchsorted(whole["order"][start:stop], np.array(first, np.uint64)) + start
        spans.append([*edges, stop])
        places.append(np.concatenate([[0], np.cumsum(whole["size"])])[spans[-1]])
    rows_at, bytes_at = np.array(spans, np.int64), np.array(places, np.int64)
    for number in range(len(first)):
        window = slice(number, number + 2)
        file = f"{part}-{number:05d}.parquet"
        yield Cut(part, file, rows_at[:, window], bytes_at[:, window])


def _bytes(scratch: Folder, runs: Sequence[Run], part: str) -> int:
    return sum(int(read_places(scratch, run)["size"][slice(*run.span(part))].sum()) for run in runs)


def _in_order(
    corpus: Corpus, scratch: Folder, runs: Sequence[Run], part: str, rows: int
) -> Iterator[Places]:
    """A part's rows in the corpus's order, a block at a time."""
    if corpus.shuffle == "none":  # the runs lie one after another in it
        for run in runs:
            yield read_places(scratch, run)[slice(*run.span(part))]
        return
    for low, high in _ranges(rows):
        pieces = []
        for run in runs:
            places = read_places(scratch, run)[slice(*run.span(part))]
            start, stop = np.searchsorted(places["order"], [low, high])
            stop = len(places) if high == _TOP else stop
            pieces.append(places[start:stop])
        block = np.concatenate(pieces)
        yield block[np.argsort(block["order"], kind="stable")]


_TOP = np.uint64(2**64 - 1)


def _ranges(rows: int) -> Iterator[npt.NDArray[np.uint64]]:
    """Ranges of hashes with about BLOCK_ROWS of the rows each; the last one takes its end too."""
    count = -(-rows // BLOCK_ROWS)
    edges = np.array([(2**64 * i) // count for i in range(count)] + [2**64 - 1], np.uint64)
    yield from np.stack([edges[:-1], edges[1:]], axis=1)


def _refuse_duplicates(name: str, scratch: Folder, runs: Sequence[Run]) -> None:
    repeated: list[np.uint64] = []
    for low, high in _ranges(max(1, sum(sum(run.rows) for run in runs))):
        pieces = [np.empty(0, np.uint64)]
        for run in runs:
            hashes = read_places(scratch, run)["hash"]
            pieces.append(hashes[(hashes >= low) & ((hashes < high) | (high == _TOP))])
        found = np.sort(np.concatenate(pieces))
        repeated += np.unique(found[1:][found[1:] == found[:-1]]).tolist()
    if not repeated:
        return
    keys = _repeated_keys(scratch, runs, np.array(repeated[:LOOKED_AT], np.uint64))
    if keys:  # else: different keys of one hash, which is rare and no fault
        shown = ", ".join(keys[:SHOWN])
        raise StageError(
            f"corpus {name}: {len(repeated)} keys occur more than once ({shown}, ...); "
            f"every sample needs a key of its own, so remove or rename the repeated source rows"
        )


def _repeated_keys(
    scratch: Folder, runs: Sequence[Run], hashes: npt.NDArray[np.uint64]
) -> list[str]:
    """The keys of these hashes that occur more than once, sorted."""
    import pyarrow as pa

    seen: set[str] = set()
    twice: set[str] = set()
    for run in runs:
        rows = np.flatnonzero(np.isin(read_places(scratch, run)["hash"], hashes))
        with scratch.opening(f"{run.name}.rows") as source, pa.ipc.open_file(source) as opened:
            keys = opened.read_all()["key"].take(pa.array(rows)).to_pylist()
        for key in keys:
            (twice if key in seen else seen).add(key)
    return sorted(twice)

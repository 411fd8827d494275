"""Layout: which rows of the runs go into each shard.

Takes a corpus's runs; gives its shards, each a slice of every run. Shards are cut from one order of
the whole corpus, by which every run is sorted, so a shard depends neither on the source's units nor
on the number of workers. At most some millions of rows are in memory at a time. Duplicate keys are
found here, by their hashes. Nothing here reads images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.contract import StageError
from jobs.corpus.reader_spec import ParquetReader, TableReader, WebDatasetReader
from jobs.corpus.runs import PARTS, Run, read_entries
from jobs.corpus.spec import Corpus
from jobs.storage.folder import Folder

BLOCK_ROWS = 4_000_000  # rows merged at a time: 100 MB of entries
KEYS_SHOWN = 3  # duplicate keys named in the error message
KEYS_LOOKED_UP = 1_000  # duplicate hashes whose keys are looked up for it

Entries = npt.NDArray[Any]  # by ENTRY
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cut:
    """A shard to be written, as a slice of each of R runs."""

    part: str
    file: str
    rows: Ints  # of each run: start and stop, [R, 2]
    bytes: Ints  # of each run's images: start and stop, [R, 2]

    @property
    def count(self) -> int:
        """How many rows the shard has."""
        return int((self.rows[:, 1] - self.rows[:, 0]).sum())

    def as_json(self) -> dict[str, Any]:
        """JSON values that `of` reads."""
        spans = {"rows": self.rows.tolist(), "bytes": self.bytes.tolist()}
        return {"part": self.part, "file": self.file} | spans

    @staticmethod
    def of(parsed: dict[str, Any]) -> Cut:
        """The cut that `as_json` gave, also after a round trip through JSON text."""
        rows, offsets = np.array(parsed["rows"], np.int64), np.array(parsed["bytes"], np.int64)
        return Cut(parsed["part"], parsed["file"], rows, offsets)


def lay_out(corpus: Corpus, scratch: Folder, runs: Sequence[Run]) -> list[Cut]:
    """The corpus's shards, part by part, in order.

    Raises StageError when a key occurs twice, or when a part with a share or a reader has no row.
    """
    _refuse_duplicates(corpus, scratch, runs)
    wanted = {part for part, share in zip(PARTS, corpus.parts.shares, strict=True) if share > 0}
    cuts: list[Cut] = []
    for part in PARTS:
        rows = sum(run.rows[PARTS.index(part)] for run in runs)
        if rows:
            cuts += _cut_part(corpus, scratch, runs, part, rows)
        elif part in wanted | set(corpus.parts.sources):
            total = sum(sum(run.rows) for run in runs)
            raise StageError(
                f"corpus {corpus.name}: part {part!r} has none of the {total} rows; "
                f"give it a larger share in `parts` or the corpus more rows"
            )
    return cuts


def _cut_part(
    corpus: Corpus, scratch: Folder, runs: Sequence[Run], part: str, rows: int
) -> Iterator[Cut]:
    """A part's shards: of about equal bytes if `shard_mb` is given, else of equal rows."""
    first: list[np.uint64] = []  # each shard's lowest `order`
    row = prefix = 0
    per_shard = None if corpus.shard_mb is None else corpus.shard_mb * 1e6
    total = 0 if per_shard is None else _total_image_bytes(scratch, runs, part)
    for block in _ordered_blocks(corpus, scratch, runs, part, rows):
        if per_shard is None:
            numbers = (row + np.arange(len(block))) // corpus.rows_per_shard
        else:
            shards = max(1, round(total / per_shard))
            before = prefix + np.cumsum(block["size"]) - block["size"]
            numbers = before * shards // total
        begins = np.flatnonzero(np.diff(numbers, prepend=len(first) - 1) > 0)
        first += block["order"][begins].tolist()
        row, prefix = row + len(block), prefix + int(block["size"].sum())
    spans, offsets = [], []
    for run in runs:
        start, stop = run.span(part)
        whole = read_entries(scratch, run)
        edges = np.searchsorted(whole["order"][start:stop], np.array(first, np.uint64)) + start
        spans.append([*edges, stop])
        offsets.append(np.concatenate([[0], np.cumsum(whole["size"])])[spans[-1]])
    rows_at, bytes_at = np.array(spans, np.int64), np.array(offsets, np.int64)
    for number in range(len(first)):
        window = slice(number, number + 2)
        file = f"{part}-{number:05d}.parquet"
        yield Cut(part, file, rows_at[:, window], bytes_at[:, window])


def _total_image_bytes(scratch: Folder, runs: Sequence[Run], part: str) -> int:
    return sum(
        int(read_entries(scratch, run)["size"][slice(*run.span(part))].sum()) for run in runs
    )


def _ordered_blocks(
    corpus: Corpus, scratch: Folder, runs: Sequence[Run], part: str, rows: int
) -> Iterator[Entries]:
    """A part's entries in the corpus's order, a block at a time."""
    if corpus.shuffle == "none":  # the runs are consecutive in it
        for run in runs:
            yield read_entries(scratch, run)[slice(*run.span(part))]
        return
    for low, high in _hash_ranges(rows):
        pieces = []
        for run in runs:
            entries = read_entries(scratch, run)[slice(*run.span(part))]
            start, stop = np.searchsorted(entries["order"], [low, high])
            stop = len(entries) if high == _TOP else stop
            pieces.append(entries[start:stop])
        block = np.concatenate(pieces)
        yield block[np.argsort(block["order"], kind="stable")]


_TOP = np.uint64(2**64 - 1)


def _hash_ranges(rows: int) -> Iterator[npt.NDArray[np.uint64]]:
    """Ranges of hashes [low, high) with about BLOCK_ROWS rows each; the last includes `high`."""
    count = -(-rows // BLOCK_ROWS)
    edges = np.array([(2**64 * i) // count for i in range(count)] + [2**64 - 1], np.uint64)
    yield from np.stack([edges[:-1], edges[1:]], axis=1)


def _refuse_duplicates(corpus: Corpus, scratch: Folder, runs: Sequence[Run]) -> None:
    repeated: list[np.uint64] = []
    for low, high in _hash_ranges(max(1, sum(sum(run.rows) for run in runs))):
        pieces = [np.empty(0, np.uint64)]
        for run in runs:
            hashes = read_entries(scratch, run)["hash"]
            pieces.append(hashes[(hashes >= low) & ((hashes < high) | (high == _TOP))])
        found = np.sort(np.concatenate(pieces))
        repeated += np.unique(found[1:][found[1:] == found[:-1]]).tolist()
    if not repeated:
        return
    keys = _repeated_keys(scratch, runs, np.array(repeated[:KEYS_LOOKED_UP], np.uint64))
    if keys:  # else different keys share a hash, which is rare and no fault
        examples = ", ".join(sorted(keys)[:KEYS_SHOWN])
        more = ", ..." if len(keys) > KEYS_SHOWN else ""
        raise StageError(
            f"corpus {corpus.name}: {len(repeated):,} keys occur more than once ({examples}{more});"
            f" every sample needs a key of its own: {_remedy(corpus, set().union(*keys.values()))}"
        )


def _remedy(corpus: Corpus, parts: set[str]) -> str:
    """What to do about keys that occur twice, in these parts."""
    other = next((part for part in sorted(parts) if part in corpus.parts.sources), None)
    if other is not None and len(parts) > 1:
        return (
            f"the parts {' and '.join(sorted(parts))} have the same keys, so set "
            f"corpus.parts.{other}.key_prefix: {other}/"
        )
    match corpus.reader:
        case WebDatasetReader(tar_in_key=False):
            return "if several tars have the same names inside, set corpus.reader.tar_in_key: true"
        case ParquetReader():
            return "name columns in corpus.reader.key that tell the rows apart, or remove the rows"
        case TableReader():
            return (
                "if an image has several captions, keep one of them, or add a column with a key of "
                "its own to each row and name it in corpus.reader.key; else remove the rows"
            )
    return "remove or rename the repeated rows of the source"


def _repeated_keys(
    scratch: Folder, runs: Sequence[Run], hashes: npt.NDArray[np.uint64]
) -> dict[str, set[str]]:
    """The keys with these hashes that occur more than once -> the parts that have them."""
    import pyarrow as pa

    seen: dict[str, set[str]] = {}
    repeated: dict[str, set[str]] = {}
    for run in runs:
        rows = np.flatnonzero(np.isin(read_entries(scratch, run)["hash"], hashes))
        with scratch.opening(f"{run.name}.rows") as source, pa.ipc.open_file(source) as opened:
            keys = opened.read_all()["key"].take(pa.array(rows)).to_pylist()
        ends = np.cumsum(run.rows)
        for key, part in zip(keys, np.searchsorted(ends, rows, side="right"), strict=True):
            if key in seen:
                repeated[key] = seen[key]
            seen.setdefault(key, set()).add(PARTS[part])
    return repeated

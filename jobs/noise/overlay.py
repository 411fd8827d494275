"""Overlay: the files of a level of noise, and how a reader applies them to a corpus.

A noise step's folder has `changed.parquet`, one row for each changed sample, and `overlay.json`.
`row` is a sample's position in the training part, in the order of its shards. Rows are sorted by
it, so the reader of a shard loads only the rows that concern it and needs no look-up by key. The
corpus is never copied or altered.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ConfigDict

from jobs import records
from jobs.contract import StageError
from jobs.storage.folder import Folder

CHANGED = "changed.parquet"  # row (int64), key (string), clean and noisy (the field's own type)
OVERLAY = "overlay.json"
REMEDY = "delete its folder and build the noise again"
ROW_GROUP = 1 << 11  # changed rows that a reader loads at a time


@dataclass(frozen=True)
class Overlay:
    """The description in a noise step's folder."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    kind: str  # symmetric, caption_swap, ...
    field: Literal["label", "caption"]  # the column it replaces
    level: float  # percent, as requested
    of: Literal["corpus", "subset"]  # what the level is a percentage of
    seed: int | None  # None where nothing is drawn
    corpus: str
    rows: int  # the corpus's training rows
    eligible: int  # rows that the noise may change
    changed: int  # rows that are changed
    realised_percent: float  # 100 * changed / rows
    realised_percent_of_subset: float  # 100 * changed / eligible
    file_sha256: str | None = None  # of the file that the noise names

    def write(self, folder: Folder, changed: pa.Table) -> None:
        """Write both files into a noise step's folder; equal values give equal bytes."""
        folder.write_table(
            CHANGED,
            changed,
            compression="lz4",  # zstd: half the size of a small file, but half the reading speed
            row_group_size=ROW_GROUP,
            use_dictionary=["clean", "noisy"] if self.field == "label" else False,
            column_encoding={"row": "DELTA_BINARY_PACKED"},
            write_statistics=["row"],
            store_schema=False,  # string and large_string must give the same bytes
        )
        folder.write_json(OVERLAY, asdict(self))

    @staticmethod
    def read(folder: Folder) -> Overlay:
        """The description in a noise step's folder.

        Raises FileNotFoundError when it does not exist, StageError when it is damaged.
        """
        return records.read(folder, OVERLAY, Overlay, REMEDY)


def damaged(folder: Folder, file: str, what: str) -> StageError:
    """The error for a file in a noise step's folder that is missing or damaged."""
    return StageError(f"{(folder / file).uri} cannot be used ({what}); {REMEDY}")


class Changes:
    """A noise step's changed rows, by ranges of training rows.

    Keeps an open file: use it in one thread of one process.
    """

    def __init__(self, noise: Folder) -> None:
        self._file = pq.ParquetFile(noise.input_file(CHANGED))
        metadata = self._file.metadata
        # A file without rows has one group, without statistics.
        groups = [metadata.row_group(g) for g in range(metadata.num_row_groups if len(self) else 0)]
        self._last_rows = np.array([g.column(0).statistics.max for g in groups], np.int64)
        self._ends = np.cumsum([0, *(group.num_rows for group in groups)])
        schema = self._file.schema_arrow
        # Clean captions identify samples by themselves; reading keys would double the cost.
        texts = pa.types.is_string(schema.field("clean").type)
        self._columns = [name for name in schema.names if not (texts and name == "key")]
        empty = self._file.read_row_groups([], columns=self._columns)
        self._loaded, self._table = range(0), empty

    def __len__(self) -> int:
        """How many rows are changed."""
        return int(self._file.metadata.num_rows)

    def rows(self, start: int, stop: int) -> pa.Table:
        """The changed rows with start <= row < stop; without keys in caption noise."""
        first = int(np.searchsorted(self._last_rows, start))
        end = min(int(np.searchsorted(self._last_rows, stop - 1)) + 1, len(self._last_rows))
        if first < end:
            self._load_groups(range(first, end))
        low, high = np.searchsorted(self._table["row"].to_numpy(), [start, stop])
        return self._table.slice(low, high - low)

    def _load_groups(self, groups: range) -> None:
        """Read row groups, except those in memory: consecutive shards share one."""
        kept = self._table.slice(0, 0)
        fresh = groups
        if self._loaded.start <= groups.start < self._loaded.stop <= groups.stop:
            kept = self._table.slice(self._ends[groups.start] - self._ends[self._loaded.start])
            fresh = range(self._loaded.stop, groups.stop)
        # One thread: for so few rows, more threads do not pay.
        read = self._file.read_row_groups(list(fresh), self._columns, use_threads=False)
        self._loaded, self._table = groups, pa.concat_tables([kept, read])


def apply(
    changed: pa.Table,
    keys: pa.Array | pa.ChunkedArray,
    values: pa.Array | pa.ChunkedArray,
    start: int = 0,
) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """The values with the overlay applied, and a mask of the changed ones, both [n].

    `keys` and `values` are those of n training rows from number `start` on; `changed` is
    `Changes.rows(start, start + n)`. Raises StageError when a changed row's clean value, or its key
    if `changed` has keys, is not the one in the overlay: they are from different corpora.
    """
    values = _as_one_array(values)
    at = changed["row"].to_numpy() - start
    mask = np.zeros(len(values), np.bool_)
    if len(at) == 0:
        return values, mask
    if at[0] < 0 or at[-1] >= len(values):
        raise _mismatched(changed, 0 if at[0] < 0 else len(at) - 1)
    mask[at] = True
    chosen = pa.array(mask)
    for found, name in ((keys, "key"), (values, "clean")):
        if name not in changed.column_names:
            continue
        here, expected = found.filter(chosen), changed[name]
        same = pc.equal(here, expected.cast(here.type)).fill_null(False)
        if not pc.all(same).as_py():
            raise _mismatched(changed, pc.index(same, False).as_py())
    noisy = _as_one_array(changed["noisy"].cast(values.type))
    return pc.replace_with_mask(values, chosen, noisy), mask


def _as_one_array(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The values as one array, without a copy if they are one already."""
    if isinstance(values, pa.ChunkedArray):
        return values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
    return values


def _mismatched(changed: pa.Table, at: int) -> StageError:
    row = changed.slice(at, 1).to_pylist()[0]
    name = f"key {row['key']!r}" if "key" in row else f"row {row['row']}"
    return StageError(
        f"the overlay does not belong to these rows: {name} is not here with the clean value that "
        f"it replaces; build the noise of this corpus again"
    )

"""Overlay: a level of noise as it lies beside a corpus, and how a reader applies it.

A noise step's folder holds `changed.parquet`, one row for each changed sample, and `overlay.json`.
`row` is a sample's position in the training part, in the order of its shards; rows rise, so that
the reader of a shard takes the few rows that concern it and puts them in place, without looking up
a key. The corpus itself is never copied or altered.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.contract import StageError
from jobs.place import Place

CHANGED = "changed.parquet"  # row (int64), key (string), clean and noisy (the field's own type)
OVERLAY = "overlay.json"
ROW_GROUP = 1 << 14  # changed rows that a reader takes at a time


@dataclass(frozen=True)
class Overlay:
    """What a noise step's folder says of itself."""

    kind: str  # symmetric, caption_swap, ...
    field: Literal["label", "caption"]  # the column it replaces
    level: float  # percent, as asked for
    of: Literal["corpus", "subset"]  # what the level is a percentage of
    seed: int | None  # None where nothing is drawn
    corpus: str
    rows: int  # the corpus's training rows
    eligible: int  # those that might be changed
    changed: int  # those that are
    realised_percent: float  # 100 * changed / rows
    realised_percent_of_subset: float  # 100 * changed / eligible
    file_sha256: str | None = None  # of the file that the noise was made from

    def write(self, place: Place, changed: pa.Table) -> None:
        """Put both files into a noise step's folder; equal values give equal bytes."""
        place.write_table(
            CHANGED,
            changed,
            compression="zstd",
            row_group_size=ROW_GROUP,
            use_dictionary=["clean", "noisy"] if self.field == "label" else False,
            column_encoding={"row": "DELTA_BINARY_PACKED", "key": "DELTA_BYTE_ARRAY"},
            write_statistics=["row"],
            store_schema=False,  # strings are strings, whatever offsets they had in memory
        )
        place.write_json(OVERLAY, asdict(self))

    @staticmethod
    def read(place: Place) -> Overlay:
        """The description in a noise step's folder."""
        return Overlay(**place.read_json(OVERLAY))


class Changes:
    """A noise step's changed rows, by ranges of training rows.

    Holds an open file: for one thread of one process.
    """

    def __init__(self, noise: Place) -> None:
        filesystem, path = noise.open()
        self._file = pq.ParquetFile(filesystem.open_input_file(f"{path}/{CHANGED}"))
        metadata = self._file.metadata
        # A file without rows has one group, of which nothing is known.
        groups = range(metadata.num_row_groups if metadata.num_rows else 0)
        last = [metadata.row_group(group).column(0).statistics.max for group in groups]
        self._last = np.array(last, np.int64)  # each row group's highest row
        self._groups: tuple[range, pa.Table] | None = None  # the ones read last

    def rows(self, start: int, stop: int) -> pa.Table:
        """The changed rows with start <= row < stop."""
        first = int(np.searchsorted(self._last, start))
        end = min(int(np.searchsorted(self._last, stop - 1)) + 1, len(self._last))
        groups = range(first, max(first, end))
        if self._groups is None or self._groups[0] != groups:
            self._groups = (groups, self._file.read_row_groups(list(groups)))
        table = self._groups[1]
        low, high = np.searchsorted(table["row"].to_numpy(), [start, stop])
        return table.slice(low, high - low)


def apply(
    changed: pa.Table,
    keys: pa.Array | pa.ChunkedArray,
    values: pa.Array | pa.ChunkedArray,
    start: int = 0,
) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """The values as the overlay has them, and which of them it changed, both [n].

    `keys` and `values` are the training rows from number `start` on, `changed` the overlay's rows
    among them (`Changes.rows(start, start + n)`). Raises StageError when a row's key or value is
    not the one that the overlay was made from: then overlay and rows are not of the same corpus.
    """
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    at = changed["row"].to_numpy() - start
    mask = np.zeros(len(values), np.bool_)
    if len(at) == 0:
        return values, mask
    if at[0] < 0 or at[-1] >= len(values):
        raise _foreign(changed, 0 if at[0] < 0 else len(at) - 1)
    mask[at] = True
    chosen = pa.array(mask)
    for found, expected in ((keys, changed["key"]), (values, changed["clean"])):
        here = found.filter(chosen)
        same = pc.equal(here, expected.cast(here.type)).fill_null(False)
        if not pc.all(same).as_py():
            raise _foreign(changed, pc.index(same, False).as_py())
    noisy = changed["noisy"].cast(values.type).combine_chunks()
    return pc.replace_with_mask(values, chosen, noisy), mask


def _foreign(changed: pa.Table, at: int) -> StageError:
    return StageError(
        f"the overlay does not belong to these rows: key {changed['key'][at].as_py()!r} is not "
        f"here with the clean value it replaces; lay the noise over this corpus again"
    )

"""Overlay: a level of noise as it lies beside a corpus, and how a reader applies it.

A noise step's folder holds `changed.parquet` (one row for each changed sample: key, clean, noisy;
sorted by key) and `overlay.json`. The corpus itself is never copied or altered: whoever reads its
rows replaces the changed values as they stream by.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.contract import StageError
from jobs.place import Place

CHANGED = "changed.parquet"
OVERLAY = "overlay.json"


@dataclass(frozen=True)
class Overlay:
    """What a noise step's folder says of itself."""

    kind: str  # symmetric, caption_swap
    field: Literal["label", "caption"]  # the column it replaces
    level: float  # percent, as asked for
    seed: int
    corpus: str
    eligible: int  # training rows, all of which might be changed
    changed: int  # rows that are
    realised_percent: float  # 100 * changed / eligible

    def write(self, place: Place, changed: pa.Table) -> None:
        """Put both files into a noise step's folder; equal values give equal bytes."""
        place.write_table(CHANGED, changed, compression="zstd", use_dictionary=["clean", "noisy"])
        place.write_json(OVERLAY, asdict(self))

    @staticmethod
    def read(place: Place) -> Overlay:
        """The description in a noise step's folder."""
        return Overlay(**place.read_json(OVERLAY))


def apply(
    changed: pa.Table, keys: pa.Array | pa.ChunkedArray, values: pa.Array | pa.ChunkedArray
) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """The values as the overlay has them, and which of them it changed, both [N].

    `changed` is a noise step's table, `keys` and `values` are rows of its corpus in any order and
    of any part. Raises StageError when a row's value is not the clean one that the overlay
    replaces: then overlay and rows are not of the same corpus.
    """
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    keys = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
    found = pc.index_in(keys, value_set=changed["key"].combine_chunks())
    mask = found.is_valid()
    replaced = found.drop_null()
    clean, here = changed["clean"].take(replaced), values.filter(mask)
    same = pc.equal(clean, here).fill_null(False)
    if not pc.all(same, min_count=0).as_py():
        first = keys.filter(mask)[pc.index(same, False).as_py()].as_py()
        raise StageError(
            f"the overlay does not belong to these rows: key {first!r} has another value than "
            f"the clean one it replaces; lay the noise over this corpus again"
        )
    noisy = changed["noisy"].take(replaced).combine_chunks().cast(values.type)
    return pc.replace_with_mask(values, mask, noisy), mask.to_numpy(zero_copy_only=False)

"""Marks: what samples of any modality are compared by, to find copies of one another.

Samples with equal digests are exact copies. A changed copy has nearly the same hash and nearly the
same thumbnail. `jobs.images.likeness` and `jobs.text.likeness` make them, `jobs.overlap` compares
them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DIGEST = 16  # bytes
BITS = 63  # of a hash
SIDE = 8  # pixels of a thumbnail's sides
THUMBNAIL = SIDE * SIDE * 3  # bytes

Bytes = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Marks:
    """What N samples are compared by; hashes and thumbnails of those with a digest alone."""

    digests: list[bytes | None]  # [N]; None: the sample cannot be decoded
    hashes: Hashes  # [n]
    thumbnails: Bytes  # [n, THUMBNAIL]

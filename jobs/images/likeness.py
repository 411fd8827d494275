"""Likeness: what tells that two encoded images are copies of each other.

Takes encoded bytes; gives a digest of the decoded pixels, and a small version of the image with
which rescaled and re-encoded copies are found. Images with equal digests are exact copies, in
whatever format they are stored. A changed copy has nearly the same perceptual hash (at most
MOST_BITS bits differ) and nearly the same thumbnail (`alike`). The hash alone would also match
images that merely have the same layout. Nothing here knows files, parts, tasks or labels.

The limits were measured (docs/tasks.md): copies of twice the size and JPEG copies of quality 75
stay within them, and different handwritten digits or garments do not.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from jobs.images.decode import DamagedImageError, naming_errors, open_image
from jobs.likeness import BITS, DIGEST, SIDE, THUMBNAIL, Bytes, Hashes, Marks

_SMALL = 16  # pixels of a small version's sides

_LOW = 8  # frequencies of a hash along each side; the mean brightness is left out: BITS

MOST_BITS = 4  # in which two copies' hashes differ
LEAST_CONTRAST = 4.0  # of an image that can be compared by hash and thumbnail, see `contrast`
MOST_DIFFERENCE = 4.0  # of two copies' thumbnails: root mean square, of 255
MOST_SHARE = 0.08  # of the same, as a share of the lower contrast

Truths = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Likeness:
    """What one image is compared by."""

    digest: bytes  # [DIGEST], of the size and the pixels in RGB
    small: Bytes  # [_SMALL, _SMALL, 3], RGB


def marks_of(rows: pa.Table) -> Marks:
    """What rows [N] with `key` and `image` are compared by."""
    found = [
        _likeness(data.as_py(), f"sample {key}")
        for data, key in zip(rows["image"], rows["key"].to_pylist(), strict=True)
    ]
    whole = [one for one in found if one is not None]
    digests = [None if one is None else one.digest for one in found]
    if not whole:
        return Marks(digests, np.zeros(0, np.uint64), np.zeros((0, THUMBNAIL), np.uint8))
    small = np.stack([one.small for one in whole])
    return Marks(digests, perceptual(small), thumbnails(small))


def _likeness(data: bytes, where: str) -> Likeness | None:
    try:
        return likeness(data, where)
    except DamagedImageError:
        return None


def likeness(data: bytes, where: str) -> Likeness:
    """Decode an image and compute its likeness.

    Raises StageError, which begins with `where`, for a damaged image.
    """
    with naming_errors(where):
        image = open_image(data).convert("RGB")
        digest = hashlib.blake2b(b"%d x %d " % image.size, digest_size=DIGEST)
        digest.update(image.tobytes())
        small = image.resize((_SMALL, _SMALL), Image.Resampling.BILINEAR)
        return Likeness(digest.digest(), np.asarray(small, dtype=np.uint8))


def thumbnails(small: Bytes) -> Bytes:
    """The thumbnails [N, THUMBNAIL] of small versions [N, _SMALL, _SMALL, 3]: means of 2 x 2."""
    means = small.reshape(-1, SIDE, 2, SIDE, 2, 3).mean(axis=(2, 4), dtype=np.float32)
    found: Bytes = np.rint(means).astype(np.uint8).reshape(-1, THUMBNAIL)
    return found


def perceptual(small: Bytes) -> Hashes:
    """The perceptual hashes [N] of small versions [N, _SMALL, _SMALL, 3], as pHash defines them.

    Each of the lowest frequencies of the brightness (DCT-II) has a bit: whether its coefficient is
    above their median.
    """
    grey = small.mean(axis=3, dtype=np.float32)
    waves = _waves()
    found = np.einsum("uy,nyx,vx->nuv", waves, grey, waves, optimize=True)
    coefficients = found.reshape(len(grey), -1)[:, 1:]
    bits = coefficients > np.median(coefficients, axis=1, keepdims=True)
    values = np.left_shift(np.uint64(1), np.arange(BITS, dtype=np.uint64))
    hashes: Hashes = np.where(bits, values, np.uint64(0)).sum(axis=1, dtype=np.uint64)
    return hashes


def contrast(found: Bytes) -> npt.NDArray[np.float32]:
    """The standard deviation of the brightness of thumbnails [N, THUMBNAIL], [N], of 255."""
    grey = found.reshape(-1, SIDE * SIDE, 3).mean(axis=2, dtype=np.float32)
    deviation: npt.NDArray[np.float32] = grey.std(axis=1)
    return deviation


def alike(first: Bytes, second: Bytes) -> Truths:
    """Whether thumbnails [N, THUMBNAIL] are nearly equal, pair by pair: [N].

    False where one of the two has hardly any contrast: its hash is the noise of its encoding.
    """
    gap = first.astype(np.float32) - second.astype(np.float32)
    difference = np.sqrt(np.square(gap).mean(axis=1))
    least = np.minimum(contrast(first), contrast(second))
    allowed = np.minimum(MOST_DIFFERENCE, MOST_SHARE * least)
    found: Truths = (difference <= allowed) & (least >= LEAST_CONTRAST)
    return found


@lru_cache(maxsize=1)
def _waves() -> npt.NDArray[np.float32]:
    """The lowest functions of the DCT-II, [_LOW, _SMALL]."""
    at = (2 * np.arange(_SMALL) + 1) * math.pi / (2 * _SMALL)
    waves: npt.NDArray[np.float32] = np.cos(np.outer(np.arange(_LOW), at)).astype(np.float32)
    return waves

"""A hash of the samples and labels that a cell was tested on.

Keys, order and the task's name do not change it. So two tasks that test the same samples with the
same labels have the same digest. 64 bits, in hex.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from jobs.tuning.rows import Labelled
from jobs.tuning.target import Labels

_ROWS = 4_096  # hashed at once


def digest(samples: Labelled) -> str:
    """The digest of plain features [N, D] and their targets."""
    rows, dim = samples.features.shape
    targets = samples.labels.numpy()
    masks = targets if targets.ndim == 2 else np.zeros((rows, 0), np.int32)

    def pieces() -> Iterator[npt.NDArray[np.uint32]]:
        for start in range(0, rows, _ROWS):
            vectors = samples.features[start : start + _ROWS].numpy()
            words = np.ascontiguousarray(vectors, dtype=np.float32).view(np.uint32)
            own = masks[start : start + _ROWS].astype(np.uint32)
            yield np.concatenate([words, own], axis=1) if own.shape[1] else words

    alone = np.zeros(rows, np.int64) if targets.ndim == 2 else targets
    return _digest(pieces(), dim + masks.shape[1], alone)


def digest_of(words: npt.NDArray[np.uint32], targets: Labels) -> str:
    """The digest of samples given as 32-bit words [N, W], with their targets [N]."""
    pieces = (words[start : start + _ROWS] for start in range(0, len(words), _ROWS))
    return _digest(pieces, words.shape[1], targets)


def _digest(pieces: Iterable[npt.NDArray[np.uint32]], width: int, targets: Labels) -> str:
    weights = np.random.default_rng(0).integers(1, 2**63, width, dtype=np.uint64)
    found = [np.zeros(0, np.uint64)]
    for piece in pieces:
        found.append((_mixed(piece.astype(np.uint64)) * weights).sum(axis=1, dtype=np.uint64))
    sums = np.concatenate(found)
    bits = targets.view(np.uint64) if targets.dtype == np.float64 else targets.astype(np.uint64)
    labels = bits * np.uint64(0x9E3779B97F4A7C15)
    ordered = np.sort(_mixed(sums ^ _mixed(labels)))
    return hashlib.blake2b(ordered.astype("<u8").tobytes(), digest_size=8).hexdigest()


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """MurmurHash3's finaliser. It keeps sums of words from cancelling."""
    mixed = (words ^ (words >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    return mixed ^ (mixed >> np.uint64(33))

"""A hash of the samples and labels that a cell was tested on.

Keys, order and the task's name do not change it. So two tasks that test the same samples with the
same labels have the same digest. 64 bits, in hex.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from jobs.tuning.rows import Labelled
from jobs.tuning.target import Labels

_ROWS = 4_096  # hashed at once


def digest(samples: Labelled) -> str:
    """The digest of plain features [N, D] and their targets."""
    vectors = np.ascontiguousarray(samples.features.numpy(), dtype=np.float32)
    return digest_of(vectors.view(np.uint32), samples.labels.numpy())


def digest_of(words: npt.NDArray[np.uint32], targets: Labels) -> str:
    """The digest of samples given as 32-bit words [N, W], with their targets [N]."""
    weights = np.random.default_rng(0).integers(1, 2**63, words.shape[1], dtype=np.uint64)
    sums = np.zeros(len(words), np.uint64)
    for start in range(0, len(words), _ROWS):
        piece = words[start : start + _ROWS].astype(np.uint64)
        sums[start : start + _ROWS] = (_mixed(piece) * weights).sum(axis=1, dtype=np.uint64)
    bits = targets.view(np.uint64) if targets.dtype == np.float64 else targets.astype(np.uint64)
    labels = bits * np.uint64(0x9E3779B97F4A7C15)
    ordered = np.sort(_mixed(sums ^ _mixed(labels)))
    return hashlib.blake2b(ordered.astype("<u8").tobytes(), digest_size=8).hexdigest()


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """MurmurHash3's finaliser. It keeps sums of words from cancelling."""
    mixed = (words ^ (words >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    return mixed ^ (mixed >> np.uint64(33))

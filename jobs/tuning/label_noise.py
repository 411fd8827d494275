"""Wrong labels in a task's training rows: symmetric, nested over levels, exact in count.

Takes class indices and their samples' keys; gives the indices as a careless annotator might have
left them. Which rows change, and to which other class, follows from key, seed and scope alone: what
is wrong at 10 % is wrong, in the same way, at 20 %. Only what a head is fitted to goes through
here; validation and test labels stay clean, so that selection and scores mean the same at every
level.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.keyed_hash import hash64


def corrupted(
    labels: npt.NDArray[np.int64],
    keys: pa.Array,
    *,
    classes: int,
    percent: float,
    seed: int,
    scope: str,
) -> npt.NDArray[np.int64]:
    """`labels` [N] in [0, classes) with `percent` of them (to nearest) in another class."""
    wrong = int(len(labels) * percent / 100 + 0.5)
    order = np.argsort(hash64(keys, seed=seed, scope=scope, stream="label noise"), kind="stable")
    rows = order[:wrong]
    drawn = hash64(keys, seed=seed, scope=scope, stream="label noise class")[rows]
    noisy = labels.copy()
    noisy[rows] = (labels[rows] + 1 + (drawn % np.uint64(classes - 1)).astype(np.int64)) % classes
    return noisy

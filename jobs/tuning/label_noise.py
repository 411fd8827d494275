"""Downstream label noise in a task's training rows: symmetric, nested over levels, exact in count.

Takes class indices and their samples' keys; gives the indices with some of them changed. Which rows
change, and to which other class, depends only on key, seed and scope: a label changed at 10 % has
the same change at 20 %. Validation and test labels never come here. They stay clean, so selection
and scores mean the same at every level.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.keyed_hash import hash64
from jobs.tuning.spec import NoiseClasses


def corrupted(
    labels: npt.NDArray[np.int64],
    keys: pa.Array,
    *,
    classes: int,
    percent: float,
    seed: int,
    scope: str,
    among: NoiseClasses = "others",
) -> npt.NDArray[np.int64]:
    """`labels` [N] in [0, classes), `percent` of them (rounded to nearest) in another class.

    With `among` "all", each of these rows gets one of all C classes, as in the authors' code. So
    1/C of them keep their class, and the share of wrong labels is `percent` * (1 - 1/C).
    """
    count = int(len(labels) * percent / 100 + 0.5)
    order = np.argsort(hash64(keys, seed=seed, scope=scope, stream="label noise"), kind="stable")
    rows = order[:count]
    drawn = hash64(keys, seed=seed, scope=scope, stream="label noise class")[rows]
    noisy = labels.copy()
    if among == "all":
        noisy[rows] = (drawn % np.uint64(classes)).astype(np.int64)
        return noisy
    noisy[rows] = (labels[rows] + 1 + (drawn % np.uint64(classes - 1)).astype(np.int64)) % classes
    return noisy

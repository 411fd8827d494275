"""How far a feature space has turned: two encoders over the same samples.

Takes the features of the same rows by two encoders, gives the principal angles between their
strongest subspaces, and linear CKA. The dimensions of two encoders are unrelated, so their right
singular subspaces cannot be compared. The left ones can: they are directions in the space of the N
samples. The mean of the data set is removed first. Memory is O(N D + min(N, D)^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOP = 16  # dimensions of the subspaces at most; fewer when a feature matrix has a lower rank
ROWS = 4096  # samples compared at most: enough for TOP directions

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Space:
    """A feature matrix [N, D] prepared for comparison."""

    centred: Matrix
    top: Matrix  # [N, k]: its strongest left singular vectors, orthonormal
    strength: float  # Frobenius norm of its Gram matrix


@dataclass(frozen=True)
class Rotation:
    """One encoder's features against another's."""

    rows: int
    angles: tuple[float, ...]  # principal angles in degrees, rising; k of them
    overlap: float  # mean cos^2 of the angles: 1 for the same subspace, k / N by chance
    cka: float  # linear centred kernel alignment (Kornblith et al. 2019), 0-1

    @property
    def k(self) -> int:
        """Dimensions of the subspaces."""
        return len(self.angles)


def space(features: NDArray[Any], k: int = TOP) -> Space:
    """Features [N, D] with their k strongest left singular vectors; fewer when the rank is lower.

    Raises ValueError for fewer than two rows or values that are not finite.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features of shape {features.shape} have no subspaces; give [N >= 2, D]")
    centred = np.asarray(features, np.float64)
    if not np.isfinite(centred).all():
        raise ValueError("features hold NaN or infinite values; extract them again in float32")
    centred = centred - centred.mean(axis=0)
    tall = centred.shape[0] > centred.shape[1]
    gram = centred.T @ centred if tall else centred @ centred.T
    squares, vectors = np.linalg.eigh(gram)
    squares, vectors = squares[::-1], vectors[:, ::-1]
    floor = len(gram) * float(np.finfo(np.float64).eps) * max(float(squares[0]), 0.0)
    kept = min(k, int((squares > floor).sum()))
    top = vectors[:, :kept]
    if tall and kept:
        top, _ = np.linalg.qr(centred @ top / np.sqrt(squares[:kept]))
    return Space(centred, top, float(np.linalg.norm(gram)))


def rotation(first: Space, second: Space) -> Rotation:
    """The principal angles between two encoders' top subspaces, and their linear CKA.

    Both must be of the same samples in the same order. Raises ValueError when their numbers of
    samples differ, or when either is constant and has no subspace.
    """
    rows = len(first.centred)
    if rows != len(second.centred):
        raise ValueError(f"features of {rows} and {len(second.centred)} samples; give the same")
    k = min(first.top.shape[1], second.top.shape[1])
    if k == 0:
        raise ValueError("constant features have no subspace to compare")
    cosines = np.linalg.svd(first.top[:, :k].T @ second.top[:, :k], compute_uv=False)
    cosines = np.clip(cosines, 0.0, 1.0)
    shared = float(np.linalg.norm(first.centred.T @ second.centred)) ** 2
    return Rotation(
        rows,
        tuple(math.degrees(math.acos(cosine)) for cosine in cosines),
        float(np.mean(cosines**2)),
        min(shared / (first.strength * second.strength), 1.0),
    )

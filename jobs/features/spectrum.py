"""The spectrum of a feature matrix: singular values, SVE, LSVR, effective rank.

Takes batches of feature rows of any size, once; gives one spectrum for each preprocessing (`raw`,
`released`, `centred`). Rows are regrouped into blocks of a fixed size, so the numbers are the same
bytes for all batch sizes. Memory is O(D^2): neither the rows nor an N x D matrix is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Preprocessing = Literal["raw", "released", "centred"]
PREPROCESSINGS: tuple[Preprocessing, ...] = ("raw", "released", "centred")
"""`raw`: rows as they are. `released`: each row to unit length, then minus its own mean over the
dimensions (the papers' code). `centred`: minus the data set's mean row."""

SPECTRUM_SCHEMA = pa.schema(
    [
        pa.field("part", pa.string(), nullable=False),
        pa.field("preprocessing", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("dim", pa.int32(), nullable=False),
        pa.field("sve", pa.float64(), nullable=False),
        pa.field("lsvr", pa.float64(), nullable=False),
        pa.field("effective_rank", pa.float64(), nullable=False),
        pa.field("singular_values", pa.list_(pa.float64()), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),  # see `Dtypes`
        pa.field("stored", pa.string(), nullable=False),
    ]
)
"""One row for each part of a data set and each preprocessing."""

Matrix = NDArray[np.float64]

_BLOCK = 1024  # rows accumulated at once
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a feature matrix, and the papers' measures of them.

    With p_i = sigma_i / sum sigma (paper 1, section 3.3): SVE = -sum p_i log p_i in [0, log D];
    LSVR = -log p_1 >= 0; effective rank = exp(SVE) in [1, D]. All three are 0 when every singular
    value is. Logarithms are natural.
    """

    preprocessing: Preprocessing
    rows: int
    dim: int
    singular_values: tuple[float, ...]  # falling, min(rows, dim) of them; 0 below the noise floor
    sve: float
    lsvr: float
    effective_rank: float


@dataclass(frozen=True)
class Dtypes:
    """The types of numbers that a spectrum depends on.

    Rounding adds a tail of small singular values. Where few directions hold nearly all of the
    features, float16 changes SVE by up to 0.7 nats (bfloat16 by more).
    """

    measured: str  # the coarsest type that the measured features have passed through
    stored: str  # in which features are stored, after the spectrum is computed


class _Moments:
    """Mean and scatter about the mean, merged block by block (Chan, Golub, LeVeque 1979).

    Only positive terms are added, so nothing cancels. The Gram matrix about the origin is the
    scatter plus N mean mean^T.
    """

    def __init__(self, dim: int) -> None:
        self.rows = 0
        self.mean: Matrix = np.zeros(dim)
        self.scatter: Matrix = np.zeros((dim, dim))

    def add(self, block: Matrix) -> None:
        rows = len(block)
        mean = block.mean(axis=0)
        about = block - mean
        # The mean of a long sum carries rounding errors; subtracting the residue removes them.
        residue = about.mean(axis=0)
        about -= residue
        mean += residue
        total = self.rows + rows
        difference = mean - self.mean
        self.scatter += about.T @ about
        self.scatter += np.outer(difference, difference * (self.rows * rows / total))
        self.mean += difference * (rows / total)
        self.rows = total

    def about_origin(self) -> Matrix:
        gram: Matrix = self.scatter + np.outer(self.mean, self.mean * self.rows)
        return gram


class _Accumulator:
    """Both scatters of a stream of rows, through one block buffer."""

    def __init__(self, dim: int) -> None:
        self._buffer: Matrix = np.empty((_BLOCK, dim))
        self._held = 0
        self.plain = _Moments(dim)
        self.released = _Moments(dim)

    def add(self, batch: NDArray[Any]) -> None:
        start = 0
        while start < len(batch):
            taken = min(_BLOCK - self._held, len(batch) - start)
            self._buffer[self._held : self._held + taken] = batch[start : start + taken]
            self._held += taken
            start += taken
            if self._held == _BLOCK:
                self.flush()

    def flush(self) -> None:
        if not self._held:
            return
        block = self._buffer[: self._held]
        bad = int((~np.isfinite(block)).any(axis=1).sum())
        if bad:
            at = self.plain.rows
            raise ValueError(
                f"{bad} feature rows between row {at} and row {at + self._held - 1} hold NaN or "
                f"infinite values; extract them again in float32"
            )
        self.plain.add(block)
        self.released.add(_released(block))
        self._held = 0


def _released(block: Matrix) -> Matrix:
    """Each row scaled to unit length (zero rows stay zero), minus its mean over the dimensions."""
    # Divided by the largest entry first: the square of a tiny or huge entry may leave the range.
    largest = np.abs(block).max(axis=1, keepdims=True)
    unit = block / np.where(largest > 0, largest, 1.0)
    length = np.linalg.norm(unit, axis=1, keepdims=True)
    unit /= np.where(length > 0, length, 1.0)
    released: Matrix = unit - unit.mean(axis=1, keepdims=True)
    return released


def spectra(batches: Iterable[NDArray[Any]]) -> list[Spectrum]:
    """The three spectra of a feature matrix given in batches, in the order of PREPROCESSINGS.

    Args:
        batches: arrays [m, D] of any real dtype, read once; m may differ and may be 0.

    Returns:
        One `Spectrum` for each preprocessing. Singular values agree with a full SVD within 1e-6 of
        the largest one; those below sqrt(D eps) of the largest are lost in the rounding of a Gram
        matrix and are given as 0.

    Raises:
        ValueError: no rows at all, batches of different width, or values that are not finite.
    """
    accumulator: _Accumulator | None = None
    dim = 0
    for batch in batches:
        if batch.ndim != 2 or batch.shape[1] == 0:
            raise ValueError(
                f"a batch of features has shape {batch.shape}; give [rows, dimensions]"
            )
        if accumulator is None:
            dim = int(batch.shape[1])
            accumulator = _Accumulator(dim)
        elif batch.shape[1] != dim:
            raise ValueError(
                f"a batch of features has {batch.shape[1]} dimensions after batches of {dim}; "
                f"give features of one encoder"
            )
        accumulator.add(batch)
    if accumulator is not None:
        accumulator.flush()
    if accumulator is None or accumulator.plain.rows == 0:
        raise ValueError("a spectrum needs at least one feature row; this part is empty")
    plain, released = accumulator.plain, accumulator.released
    rows = plain.rows
    origin = plain.about_origin()
    # Centring leaves rounding errors of a constant column, on the scale of the raw values.
    rounding = (64 * _EPS) ** 2 * float(np.trace(origin))
    return [
        _spectrum("raw", origin, rows, rows),
        _spectrum("released", released.about_origin(), rows, rows, (64 * _EPS) ** 2 * rows),
        _spectrum("centred", plain.scatter, rows, rows - 1, rounding),
    ]


def _spectrum(
    preprocessing: Preprocessing, gram: Matrix, rows: int, rank: int, rounding: float = 0.0
) -> Spectrum:
    """Singular values from a Gram matrix [D, D] whose rank is at most `rank`."""
    dim = len(gram)
    squares = np.linalg.eigvalsh(gram)[::-1][: min(rows, dim)]
    floor = max(rounding, dim * _EPS * max(float(squares[0]), 0.0))
    kept = squares > floor
    kept[rank:] = False
    values = np.sqrt(np.where(kept, squares, 0.0))
    sve, lsvr, effective_rank = measures(values, dim)
    return Spectrum(preprocessing, rows, dim, tuple(map(float, values)), sve, lsvr, effective_rank)


def measures(singular_values: NDArray[np.float64], dim: int) -> tuple[float, float, float]:
    """SVE, LSVR and effective rank of singular values [k], k <= dim (see `Spectrum`)."""
    total = float(singular_values.sum())
    if total == 0.0:
        return 0.0, 0.0, 0.0
    shares = singular_values[singular_values > 0] / total
    sve = float(-(shares * np.log(shares)).sum())
    lsvr = float(-np.log(shares.max()))
    assert sve <= math.log(dim) + 1e-9, "SVE is at most log D"
    assert lsvr >= -1e-12, "LSVR is never negative"
    sve = min(max(sve, 0.0), math.log(dim))
    return sve, max(lsvr, 0.0), math.exp(sve)


def to_table(part: str, spectra: Sequence[Spectrum], dtypes: Dtypes) -> pa.Table:
    """The spectra of one part of a data set as a table of SPECTRUM_SCHEMA."""
    rows = [
        {
            "part": part,
            "preprocessing": spectrum.preprocessing,
            "rows": spectrum.rows,
            "dim": spectrum.dim,
            "sve": spectrum.sve,
            "lsvr": spectrum.lsvr,
            "effective_rank": spectrum.effective_rank,
            "singular_values": list(spectrum.singular_values),
            "dtype": dtypes.measured,
            "stored": dtypes.stored,
        }
        for spectrum in spectra
    ]
    return pa.Table.from_pylist(rows, schema=SPECTRUM_SCHEMA)

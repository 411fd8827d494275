"""NMTune's SVD term from matrix products alone, for GPUs.

Takes Gram matrices [K, N, N]; gives what `nmtune` needs of them: the share of the largest singular
values in the nuclear norm, and the operator that turns Z into its gradient. A GPU solves a batch of
eigenproblems slowly, and the host waits for it. Here every operation is a product or elementwise,
their number is fixed, and the host waits for nothing (`torch.where` with a number would wait: the
number is copied to the device).

- The largest eigenvalues: a power of G, by squaring, is the projection onto its first eigenvector.
  That vector is projected out and the next one found. Nothing is kept from batch to batch: another
  batch has other rows.
- The nuclear norm tr(G^1/2) and the polar factor G^-1/2 Z: the coupled Newton-Schulz iteration
  (Higham, Functions of Matrices, 2008, section 6.3), scaled as by Chen and Chow (2014), takes a
  singular value at the cutoff to 1 in some thirty steps. On the way, what lies below the cutoff is
  projected out by McWeeny's purification, 3P^2 - 2P^3. The cutoff is that of the
  eigendecomposition, so both give the same gradient on rank-deficient batches.

Whether a member has converged is measured. It has not where a singular value is within a few
percent of the cutoff (about 3e-7 of the largest), or where the last of the largest eigenvalues and
the next differ by less than about 5e-6 of their size, as in a batch whose singular values are all
equal. Such a result must not be used; to replace it is the caller's task.
"""

from __future__ import annotations

from functools import cache
from math import pi, sin, sqrt

import torch
from torch import Tensor

_EPS = torch.finfo(torch.float64).eps
_SQUARINGS = 22  # the power 2^22
_UNSCALED = 4  # squarings without a new scale: entries stay above N^-8
_LARGEST_SCALE = 1.3  # below 4/3, repeated steps are contractions near 1; above, digits are lost
_PURIFICATIONS = 10
_LAST_STEPS = 6  # from 1/2 to 1, quadratic
_IMPURE = 1e-9  # weight of the second eigenvector in the projection onto the first
_UNSETTLED = 1e-11  # sum of e (1 - e) over the eigenvalues of what should be a projection


def cutoff(size: int) -> float:
    """The share of the largest eigenvalue of G, N x N, up to which another counts as zero."""
    return 4 * size * _EPS


def dominance(gram: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """SVD's value [K], its gradient's operator [K, N, N], and whether each has converged [K].

    `gram`: finite, symmetric, positive semidefinite up to rounding, float64.
    """
    size = gram.shape[-1]
    top = min(top, size)
    eigenvalues, vectors, pure = _largest(gram, top)
    largest = eigenvalues[:, :1].clamp_min(0)
    resolved = eigenvalues > largest * cutoff(size)
    sigma = eigenvalues.masked_fill(~resolved, 0.0).sqrt()
    scale = largest.masked_fill(largest <= 0, 1.0)[:, :, None]
    root, inverse, converged = _roots(gram / scale)
    scale = scale.sqrt()
    total = (scale[:, :, 0] * _trace(root)[:, None]).clamp_min(0)
    safe = total.masked_fill(total <= 0, 1.0)
    share = sigma.sum(1, keepdim=True) / safe / top
    slopes = 1 / (safe * top) / sigma.masked_fill(~resolved, 1.0)
    slopes = slopes.masked_fill(~resolved, 0.0)
    operator = (share / safe)[:, :, None] / scale * inverse
    operator = operator - (vectors * slopes[:, None, :]) @ vectors.mT
    return -share[:, 0], operator, converged & (pure | ~resolved[:, -1])


def _largest(gram: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `top` largest eigenvalues [K, T], their vectors [K, N, T], and whether there are no
    others close to the last of them [K].
    """
    rest = gram
    values: list[Tensor] = []
    vectors: list[Tensor] = []
    pure = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
    for number in range(top):
        power = _normed(rest)
        for squaring in range(1, _SQUARINGS + 1):
            power = power @ power
            if squaring % _UNSCALED == 0 or squaring == _SQUARINGS:
                power = _normed(power)
        longest = power.diagonal(dim1=1, dim2=2).argmax(1)
        vector = power.gather(2, longest[:, None, None].expand(-1, power.shape[1], 1))
        for other in vectors:  # what is left of a much larger one counts
            vector = vector - other * (other.mT @ vector)
        vector = _normed(vector)
        image = rest @ vector
        value = vector.mT @ image
        half = image - value / 2 * vector
        rest = rest - vector @ half.mT - half @ vector.mT
        values.append(value[:, :, 0])
        vectors.append(vector)
        if number == top - 1 and top < gram.shape[-1]:
            pure = _trace(power) - 1 < _IMPURE  # of norm 1, so its trace is 1 if its rank is
    return torch.cat(values, 1), torch.cat(vectors, 2), pure


def _roots(unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Square root and inverse square root above the cutoff, 0 below, and whether they converged.

    `unit`: its largest eigenvalue is 1, or it is 0.
    """
    eye = torch.eye(unit.shape[-1], dtype=unit.dtype, device=unit.device)
    root, inverse = unit, eye.expand_as(unit)

    def step(scale: float) -> None:
        nonlocal root, inverse
        factor = torch.add(1.5 * scale * eye, inverse @ root, alpha=-0.5 * scale**3)
        root, inverse = root @ factor, factor @ inverse

    for scale in _scales(sqrt(cutoff(unit.shape[-1]))):
        step(scale)
    kept = inverse @ root
    for _ in range(_PURIFICATIONS):
        square = kept @ kept
        kept = torch.add(3 * square, square @ kept, alpha=-2)
    root, inverse = kept @ root @ kept, kept @ inverse @ kept  # rounding has made both oblique
    for _ in range(_LAST_STEPS):
        step(1.0)
    doubt = _trace(kept) - _trace(kept @ kept)
    unsettled = _trace(kept) - _trace(inverse @ root)
    return root, inverse, (doubt.abs() < _UNSETTLED) & (unsettled.abs() < _UNSETTLED)


@cache
def _scales(least: float) -> tuple[float, ...]:
    """Chen and Chow's scales: the steps x -> s x (3 - s^2 x^2) / 2 take [least, 1] to [r, 1], and
    what is smaller below r, where r^2 = 1/2.
    """
    scales = []
    while least < 0.45:  # so that the last step takes 1 well above r
        scales.append(min(_LARGEST_SCALE, sqrt(3 / (1 + least + least**2))))
        reached = scales[-1] * least
        least = reached * (3 - reached**2) / 2
    return (*scales, 2 * sin(pi / 12) / least)  # x (3 - x^2) / 2 = r at x = 2 sin(pi / 12)


def _normed(matrices: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    return matrices / norm.masked_fill(norm <= 0, 1.0)


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=1, dim2=2).sum(1)

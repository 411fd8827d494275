"""NMTune's three feature-space regularisers, exact and cheap, for a stack of heads at once.

Takes Z, the head's output [K, R, D] for K members and R rows (every view of every sample of a
batch), and F, the frozen features that the head reads. Gives one loss for each member and term:

    MSE  (paper)     mean_i || f_i/||f_i|| - z_i/||z_i|| ||^2
         (released)  the same difference, averaged over all R x D entries: 1/D of the above
    COV  (both)      (1/D) sum_{i != j} C_ij^2,  C = (Z - mean)^T (Z - mean) / (R - 1)
    SVD  (paper)     - sigma_1 / sum_j sigma_j, sigma the singular values of the un-centred Z
         (released)  - mean of the 5 largest sigma_i / sum_j sigma_j

(paper 1, section 4; the authors' code). COV and SVD of both variants read the same R rows. Both
come from one Gram matrix G in float64, over the rows or over the dimensions, whichever are fewer:
singular values are the roots of its eigenvalues, and the squared covariances sum to
||H G H||_F^2 / (R - 1)^2 with H the centring matrix.

Gradients are analytic. Differentiating an eigendecomposition divides by differences of eigenvalues;
d(sum_i g_i sigma_i)/dZ = U diag(g_i / sigma_i) U^T Z does not. Singular values below about 3e-7 of
the largest cannot be distinguished from zero in G. They count as zero, and their directions get no
gradient (the smallest subgradient). So everything stays finite on rank-deficient, constant and
all-zero batches. Nothing here computes a singular value decomposition of Z.

SVD is found in one of two ways: by the eigenvectors of G, or by matrix products alone (`polar`),
which is the way on a GPU. They agree to 1e-6 in value and gradient wherever the second converges;
elsewhere the first one is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from jobs.tuning import polar
from jobs.tuning.eigen import begin, eigh

Way = Literal["eigenvectors", "products"]
"""How SVD is found."""


def way_on(device: torch.device) -> Way:
    """The way on a device. On a CPU the products take ten times as long as the eigenvectors."""
    return "eigenvectors" if device.type == "cpu" else "products"


@dataclass(frozen=True)
class Variant:
    """One of the two published forms of the losses."""

    top: int  # SVD: how many of the largest normalised singular values are averaged
    per_entry: bool  # MSE: averaged over all entries rather than summed over dimensions


PAPER = Variant(top=1, per_entry=False)
RELEASED = Variant(top=5, per_entry=True)


def mse(z: Tensor, features: Tensor, variant: Variant) -> Tensor:
    """Distance between the directions of head output and features, for each member: [K].

    `z` is [K, R, D], `features` [R, D] or [K, R, D], taken as constants. In [0, 4] for `paper`,
    [0, 4/D] for `released`. A zero row counts as a direction of zero length and gets no gradient.
    """
    value: Tensor = _Distance.apply(z, features.detach(), variant.per_entry)
    return value


class _Distance(torch.autograd.Function):
    """MSE. With u = z / l for a row z of length l, and d = f/|f| - u, the gradient of a row is
    proportional to -2 (d - (d . u) u) / l. It is 0 for a row of length 0.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, features: Tensor, per_entry: bool) -> Tensor:
        target, _ = _directions(features)
        if z.stride(-1) != 1:  # rows stand last in the heads: mixed orders cost more than a copy
            target = target.mT.contiguous().mT
        directions, shortening = _directions(z)
        difference = target - directions
        entries = z.shape[-2] * (z.shape[-1] if per_entry else 1)
        ctx.entries = entries
        ctx.save_for_backward(directions, shortening, difference)
        return difference.square().sum((-2, -1)) / entries

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        directions, shortening, difference = ctx.saved_tensors
        along = (difference * directions).sum(-1, keepdim=True)
        across = torch.addcmul(difference, directions, along, value=-1)
        slope = (-2 / ctx.entries) * grads[0][:, None, None] * shortening
        return across.mul_(slope), None, None


def _directions(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(rows of length 1, or 0 where they have none; one over their length, or 0)."""
    squared = rows.square().sum(-1, keepdim=True)
    longer = squared > torch.finfo(rows.dtype).tiny
    shortening = squared.masked_fill(~longer, torch.inf).rsqrt()
    return rows * shortening, shortening


def spread(
    z: Tensor,
    variant: Variant,
    *,
    cov: bool = True,
    svd: bool = True,
    way: Way | None = None,
    unsettled: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """(COV, SVD) of the rows of `z` [K, R, D], one value a member each: [K], [K].

    COV is at least 0 (0 for a single row), SVD in [-1, 0]. A term not asked for costs nothing and
    is 0. A member with a non-finite entry gets NaN and leaves the others alone.

    `way`: how SVD is found; None: the way of the device. Members for which the products have not
    converged are solved by eigenvectors, and to know of them the host waits for the device. With
    `unsettled` it does not wait: the members are appended as a mask [K], and their values are not
    to be used.
    """
    way = way_on(z.device) if way is None else way
    values: tuple[Tensor, Tensor] = _Spread.apply(z, variant.top, cov, svd, way, unsettled)
    return values


class _Spread(torch.autograd.Function):
    """COV and SVD from one Gram matrix; the gradient of both costs one matrix product."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        top: int,
        cov: bool,
        svd: bool,
        way: Way,
        unsettled: list[Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        by_rows = z.shape[1] <= z.shape[2]
        z64 = z.double()
        gram = z64 @ z64.mT if by_rows else z64.mT @ z64
        finite = gram.diagonal(dim1=1, dim2=2).isfinite().all(1)  # float32 squares stay in range
        if z.device.type != "cpu" or not finite.all():  # on a GPU, asking costs more
            z64, gram = (t.masked_fill(~finite[:, None, None], 0.0) for t in (z64, gram))
        # Beside the covariance:
        solving = begin(gram) if svd and way == "eigenvectors" else None
        zero = z64.new_zeros(z.shape[0])
        cov_value, cov_operator, shift, stretch = zero, None, None, None
        svd_value, svd_operator = zero, None
        if cov:
            form = _covariance_by_rows if by_rows else _covariance_by_dims
            cov_value, cov_operator, shift, stretch = form(z64, gram)
        if solving is not None:
            svd_value, svd_operator = _dominance(*solving(), top)
        elif svd:
            svd_value, svd_operator = _dominance_by_products(gram, top, unsettled)
        ctx.by_rows = by_rows
        ctx.save_for_backward(z64, cov_operator, shift, stretch, svd_operator)
        return tuple(  # type: ignore[return-value]
            value.masked_fill(~finite, torch.nan).to(z.dtype) for value in (cov_value, svd_value)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z64, cov_operator, shift, stretch, svd_operator = ctx.saved_tensors
        for_cov, for_svd = (grad.double()[:, None, None] for grad in grads)
        operator = z64.new_zeros(())
        if cov_operator is not None:
            operator = operator + for_cov * cov_operator
        if svd_operator is not None:
            operator = operator + for_svd * svd_operator
        if operator.dim() == 0:
            return torch.zeros_like(z64, dtype=grads[0].dtype), *[None] * 5
        # Operators are symmetric; the product is laid out as z is.
        left, right = (operator, z64) if ctx.by_rows else (z64, operator)
        slope = left @ right if z64.stride(-1) == 1 else (right.mT @ left.mT).mT
        if shift is not None:
            slope.addcmul_(shift, for_cov * stretch, value=-1)
        return slope.to(grads[0].dtype), *[None] * 5


def _covariance_by_rows(z: Tensor, gram: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """COV, and its gradient as `operator @ z - shift * stretch`, from the R x R Gram matrix."""
    rows, dims = z.shape[1:]
    free = max(rows - 1, 1)
    centred = gram - gram.mean(1, keepdim=True)
    centred = (centred - centred.mean(2, keepdim=True)) / free
    deviations = z - z.mean(1, keepdim=True)
    variances = torch.linalg.vector_norm(deviations, dim=1, keepdim=True).square() / free
    value = centred.square().sum((1, 2)) - variances.square().sum((1, 2))
    slope = 4 / (dims * free)
    return value.clamp_min(0) / dims, slope * centred, deviations, slope * variances


def _covariance_by_dims(z: Tensor, gram: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """COV, and its gradient as `z @ operator - shift * stretch`, from the D x D Gram matrix."""
    rows, dims = z.shape[1:]
    free = max(rows - 1, 1)
    mean = z.mean(1, keepdim=True)
    covariance = (gram - rows * mean.mT @ mean) / free
    covariance.diagonal(dim1=1, dim2=2).zero_()
    operator = 4 / (dims * free) * covariance
    value = covariance.square().sum((1, 2)) / dims
    return value, operator, mean @ operator, z.new_ones(())


def _dominance(eigenvalues: Tensor, vectors: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """SVD's value and the matrix that turns Z into its gradient, from G's ascending eigenvalues."""
    size = eigenvalues.shape[-1]
    top = min(top, size)
    resolved = eigenvalues > eigenvalues[:, -1:].clamp_min(0) * polar.cutoff(size)
    sigma = torch.where(resolved, eigenvalues, 0.0).sqrt()
    total = sigma.sum(1, keepdim=True)
    safe = torch.where(total > 0, total, 1.0)
    share = sigma[:, -top:].sum(1, keepdim=True) / safe / top
    slopes = share / safe * torch.ones_like(sigma)
    slopes[:, -top:] -= 1 / (safe * top)
    slopes = torch.where(resolved, slopes / torch.where(resolved, sigma, 1.0), 0.0)
    return -share[:, 0], (vectors * slopes[:, None, :]) @ vectors.mT


def _dominance_by_products(
    gram: Tensor, top: int, unsettled: list[Tensor] | None
) -> tuple[Tensor, Tensor]:
    """As `_dominance`, see `spread`."""
    value, operator, settled = polar.dominance(gram, top)
    if unsettled is not None:
        unsettled.append(~settled)
    elif not settled.all():
        members = (~settled).nonzero().flatten()
        value[members], operator[members] = _dominance(*eigh(gram[members]), top)
    return value, operator

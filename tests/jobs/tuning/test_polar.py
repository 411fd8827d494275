"""SVD by matrix products equals SVD by eigenvectors; where it cannot, it says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jobs.tuning import nmtune, polar
from jobs.tuning.nmtune import PAPER, RELEASED, Variant, Way

VARIANTS = [pytest.param(PAPER, id="paper"), pytest.param(RELEASED, id="released")]
SHAPES = [(24, 60), (60, 24), (40, 40), (6, 9), (3, 8)]


def normal(rows: int, dims: int, seed: int) -> Tensor:
    return torch.randn(rows, dims, generator=torch.Generator().manual_seed(seed)).double()


def random_rows(rows: int, dims: int, seed: int) -> Tensor:
    return normal(rows, dims, seed) + 0.3


def rank_deficient(rows: int, dims: int, seed: int) -> Tensor:
    return normal(rows, 2, seed) @ normal(2, dims, seed + 1)


def deficient_in_float32(rows: int, dims: int, seed: int) -> Tensor:
    """Its other singular values are the rounding of float32."""
    return rank_deficient(rows, dims, seed).float().double()


def duplicated(rows: int, dims: int, seed: int) -> Tensor:
    half = random_rows(-(-rows // 2), dims, seed)
    return torch.cat([half, half])[:rows]


def ill_conditioned(rows: int, dims: int, seed: int) -> Tensor:
    """Singular values from 1 to 1e-4."""
    left, _, right = torch.linalg.svd(normal(rows, dims, seed), full_matrices=False)
    return (left * torch.logspace(0, -4, min(rows, dims), dtype=torch.float64)) @ right


def one_direction(rows: int, dims: int, seed: int) -> Tensor:
    """A collapsed head: rows that are equal up to float32."""
    return random_rows(1, dims, seed).float().expand(rows, dims).double()


Batch = Callable[[int, int, int], Tensor]
BATCHES: list[Batch] = [
    random_rows,
    rank_deficient,
    deficient_in_float32,
    duplicated,
    ill_conditioned,
    one_direction,
]


def svd(z: Tensor, variant: Variant, way: Way) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(values, gradients, masks of what has not converged)."""
    z = z.clone().requires_grad_()
    unsettled: list[Tensor] = []
    _, values = nmtune.spread(z, variant, cov=False, way=way, unsettled=unsettled)
    (gradients,) = torch.autograd.grad(values.sum(), z)
    return values.detach(), gradients, unsettled


def assert_equal(z: Tensor, found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    """To 1e-6: of the value, and of the gradient of the nuclear norm in the units of SVD's."""
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-6, atol=0)
    sigma = torch.linalg.svdvals(z)
    scale = (sigma > 3e-7 * sigma[:, :1]).sum(1).sqrt() / sigma.sum(1)
    assert ((found[1] - wanted[1]).norm(dim=(1, 2)) <= 1e-6 * scale).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
def test_the_products_converge_to_the_eigenvectors_value_and_gradient(
    batch: Batch, shape: tuple[int, int], variant: Variant
) -> None:
    z = torch.stack([batch(*shape, seed) for seed in range(3)])
    *found, (unsettled,) = svd(z, variant, "products")
    assert not unsettled.any()
    assert_equal(z, tuple(found), svd(z, variant, "eigenvectors")[:2])


@settings(max_examples=25)
@given(
    rows=st.integers(1, 20),
    dims=st.integers(1, 20),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-30, 1.0, 1e6]),
    batch=st.sampled_from(BATCHES),
    variant=st.sampled_from([PAPER, RELEASED]),
)
def test_whatever_the_batch_the_products_are_right_or_say_that_they_are_not(
    rows: int, dims: int, seed: int, scale: float, batch: Batch, variant: Variant
) -> None:
    z = scale * batch(rows, dims, seed)[None]
    *found, (unsettled,) = svd(z, variant, "products")
    assert all(values.isfinite().all() for values in found)
    if not unsettled.any():
        assert_equal(z, tuple(found), svd(z, variant, "eigenvectors")[:2])


def unsettled_batches() -> Tensor:
    """Six equal singular values; one at the cutoff; one member that converges."""
    equal = torch.eye(6, 9).double()
    left, _, right = torch.linalg.svd(normal(6, 9, 0), full_matrices=False)
    values = torch.tensor([1, 0.5, 0.3, 0.2, 0.1, polar.cutoff(6) ** 0.5]).double()
    return torch.stack([equal, (left * values) @ right, random_rows(6, 9, 0)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_members_that_have_not_converged_are_named(variant: Variant) -> None:
    *_, (unsettled,) = svd(unsettled_batches(), variant, "products")
    assert unsettled.tolist() == [True, True, False]


@pytest.mark.parametrize("variant", VARIANTS)
def test_members_that_have_not_converged_are_solved_by_eigenvectors(variant: Variant) -> None:
    z = unsettled_batches().requires_grad_()
    _, values = nmtune.spread(z, variant, way="products")
    (gradients,) = torch.autograd.grad(values.sum(), z)
    wanted = svd(z.detach(), variant, "eigenvectors")
    assert values[:2].tolist() == wanted[0][:2].tolist()
    assert gradients[:2].tolist() == wanted[1][:2].tolist()
    assert_equal(z.detach(), (values.detach(), gradients), wanted[:2])


def test_nothing_and_what_is_not_finite_is_settled() -> None:
    z = torch.stack([torch.zeros(6, 9), random_rows(6, 9, 0)]).float()
    z[1, 2, 3] = torch.nan
    values, gradients, (unsettled,) = svd(z, RELEASED, "products")
    assert values[0] == 0
    assert values[1].isnan()
    assert gradients[0].count_nonzero() == 0
    assert not unsettled.any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("batch", BATCHES)
def test_a_gpus_products_give_the_cpus_value_and_gradient(batch: Batch) -> None:
    z = torch.stack([batch(24, 60, seed) for seed in range(3)])
    *found, (unsettled,) = svd(z.cuda(), RELEASED, "products")
    assert not unsettled.any()
    wanted = svd(z, RELEASED, "eigenvectors")[:2]
    assert_equal(z, tuple(values.cpu() for values in found), wanted)

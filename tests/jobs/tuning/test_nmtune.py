"""The regularisers against the formulas of the paper: SVD of Z, D x D covariance."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jobs.tuning import nmtune
from jobs.tuning.nmtune import PAPER, RELEASED, Variant

VARIANTS = [pytest.param(PAPER, id="paper"), pytest.param(RELEASED, id="released")]
SIZES = [pytest.param((24, 60), id="wide"), pytest.param((60, 24), id="tall"), (32, 32)]


def direct_cov(z: Tensor) -> Tensor:
    centred = z - z.mean(0)
    covariance = centred.T @ centred / (len(z) - 1)
    off = covariance - torch.diag(torch.diag(covariance))
    return off.square().sum() / z.shape[1]


def direct_svd(z: Tensor, variant: Variant, rank: int) -> Tensor:
    sigma = torch.linalg.svd(z, full_matrices=False).S[:rank]
    return -(sigma / sigma.sum())[: variant.top].sum() / variant.top


def direct_mse(z: Tensor, f: Tensor, variant: Variant) -> Tensor:
    difference = f / f.norm(dim=1, keepdim=True) - z / z.norm(dim=1, keepdim=True)
    per_row = difference.square().sum(1).mean()
    return per_row / z.shape[1] if variant.per_entry else per_row


def random_batch(rows: int, dims: int, seed: int = 0) -> tuple[Tensor, int]:
    z = torch.randn(rows, dims, generator=torch.Generator().manual_seed(seed)) + 0.3
    return z, min(rows, dims)


def rank_deficient_batch(rows: int, dims: int, seed: int = 0) -> tuple[Tensor, int]:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randint(-4, 5, (rows, 7), generator=generator)
    right = torch.randint(-4, 5, (7, dims), generator=generator)
    return (left @ right).float() / 8, 7  # whole numbers: the rank is exact in float32


def duplicated_batch(rows: int, dims: int, seed: int = 0) -> tuple[Tensor, int]:
    z, _ = random_batch(rows // 2, dims, seed)
    return torch.cat([z, z]), min(rows // 2, dims)


Batch = Callable[[int, int], tuple[Tensor, int]]
BATCHES: list[Batch] = [random_batch, rank_deficient_batch, duplicated_batch]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", BATCHES)
def test_losses_and_gradients_are_those_of_the_formulas(
    batch: Batch, size: tuple[int, int], variant: Variant
) -> None:
    z32, rank = batch(*size)
    features = random_batch(*size, seed=1)[0]
    mine = z32[None].clone().requires_grad_()
    direct = z32.double().requires_grad_()
    cov, svd = nmtune.spread(mine, variant)
    pairs = [
        (cov.sum(), direct_cov(direct)),
        (svd.sum(), direct_svd(direct, variant, rank)),
        (nmtune.mse(mine, features, variant).sum(), direct_mse(direct, features.double(), variant)),
    ]
    for found, wanted in pairs:
        (gradient,) = torch.autograd.grad(found, mine, retain_graph=True)
        (direct_gradient,) = torch.autograd.grad(wanted, direct)
        assert relative(found.detach(), wanted.detach()) < 1e-5
        assert relative(gradient[0], direct_gradient) < 1e-5


@settings(max_examples=25)
@given(
    rows=st.integers(2, 20),
    dims=st.integers(2, 20),
    seed=st.integers(0, 1000),
    top=st.sampled_from([1, 5]),
)
def test_any_shape_of_batch_gives_the_values_of_the_formulas(
    rows: int, dims: int, seed: int, top: int
) -> None:
    z, _ = random_batch(rows, dims, seed)
    cov, svd = nmtune.spread(z[None], Variant(top=top, per_entry=False))
    sigma = torch.linalg.svdvals(z.double())
    top = min(top, len(sigma))
    assert cov.item() == pytest.approx(direct_cov(z.double()).item(), rel=1e-5)
    assert svd.item() == pytest.approx(-(sigma[:top].mean() / sigma.sum()).item(), rel=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(24, 60), (60, 24)])
@pytest.mark.parametrize("fill", [0.0, 1e-30, 0.7, 1e4], ids=str)
def test_constant_batches_give_finite_losses_and_gradients(
    fill: float, size: tuple[int, int], variant: Variant
) -> None:
    z = torch.full((1, *size), fill, requires_grad=True)
    cov, svd = nmtune.spread(z, variant)
    total = cov + svd + nmtune.mse(z, torch.ones(size), variant)
    total.sum().backward()
    assert total.isfinite().all()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert cov.item() == pytest.approx(0, abs=1e-9 * fill**4)
    assert svd.item() == pytest.approx(-1 / variant.top if fill > 1e-20 else svd.item())


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_singular_values_give_finite_gradients(variant: Variant) -> None:
    z = torch.eye(12)[None].repeat(1, 2, 1).requires_grad_()
    cov, svd = nmtune.spread(z, variant)
    (cov + svd).sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert svd.item() == pytest.approx(-1 / 12)


def test_members_of_a_stack_do_not_affect_each_other() -> None:
    members = [batch(24, 60)[0] for batch in BATCHES]
    together = nmtune.spread(torch.stack(members), PAPER)
    for index, member in enumerate(members):
        alone = nmtune.spread(member[None], PAPER)
        assert [t[index].item() for t in together] == [a.item() for a in alone]


def test_a_non_finite_member_is_nan_and_the_others_keep_their_values() -> None:
    good, _ = random_batch(24, 60)
    bad = good.clone()
    bad[3, 5] = torch.inf
    cov, svd = nmtune.spread(torch.stack([bad, good]), PAPER)
    alone = nmtune.spread(good[None], PAPER)
    assert cov[0].isnan()
    assert svd[0].isnan()
    assert (cov[1].item(), svd[1].item()) == (alone[0].item(), alone[1].item())


def test_a_term_that_is_not_asked_for_is_zero_and_has_no_gradient() -> None:
    z = random_batch(24, 60)[0][None].requires_grad_()
    cov, svd = nmtune.spread(z, PAPER, svd=False)
    assert svd.item() == 0
    (of_svd,) = torch.autograd.grad(svd.sum(), z, retain_graph=True)
    (of_cov,) = torch.autograd.grad(cov.sum(), z)
    assert of_svd.count_nonzero() == 0
    assert of_cov.count_nonzero() > 0


def test_features_are_constants_to_the_mse() -> None:
    features = random_batch(8, 6)[0].requires_grad_()
    z = random_batch(8, 6, seed=2)[0][None].requires_grad_()
    nmtune.mse(z, features, PAPER).sum().backward()
    assert features.grad is None
    assert z.grad is not None


def test_released_mse_is_the_papers_over_the_width() -> None:
    z, f = random_batch(8, 6)[0][None], random_batch(8, 6, seed=1)[0]
    ratio = nmtune.mse(z, f, PAPER) / nmtune.mse(z, f, RELEASED)
    assert ratio.item() == pytest.approx(6)

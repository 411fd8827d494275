"""The stacked engine: a member gets the result it would get alone, even when others fail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from jobs.tuning import nmtune
from jobs.tuning.budget import Budget
from jobs.tuning.frozen.stack import Group, Stack, evaluate
from jobs.tuning.frozen.stacked_adamw import StackedAdamW
from jobs.tuning.frozen.train import train
from jobs.tuning.heads import Shape, StackedHeads, seeded
from jobs.tuning.methods import HeadKind
from jobs.tuning.rows import Labelled
from jobs.tuning.schedule import share
from jobs.tuning.target import ClassTarget
from jobs.tuning.trained import TERMS, Configuration

KINDS: list[HeadKind] = ["linear", "paper", "released"]
DIM, CLASSES = 10, 3
BUDGET = Budget(epochs=4, batch_size=16)
CPU = torch.device("cpu")


def blobs(samples: int, views: int, seed: int) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (samples,), generator=generator)
    centres = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(7))
    shape = (views, samples, DIM) if views else (samples, DIM)
    return Labelled(centres[labels] + 0.8 * torch.randn(shape, generator=generator), labels)


def configurations(kind: HeadKind) -> list[Configuration]:
    weights = [(0.0, 0.0, 0.0), (1.0, 0.04, 0.001), (0.01, 0.01, 0.01), (0.0, 0.1, 0.5)]
    if kind == "linear":
        weights = [(0.0, 0.0, 0.0)] * 4
    return [
        Configuration(lr, decay, *three)
        for lr, decay, three in zip(
            (1e-3, 3e-2, 1e-2, 3e-3), (0.0, 1e-4, 0.1, 1e-2), weights, strict=True
        )
    ]


def run(
    kind: HeadKind, tried: list[Configuration], *, seed: int = 0, views: int = 2, samples: int = 70
) -> Stack:
    """A stack after its last epoch."""
    group = Group(blobs(samples, views, 1), tried, seed)
    stack = Stack(Shape(kind, DIM, ClassTarget(CLASSES)), [group], blobs(50, 0, 2), BUDGET)
    for _ in range(BUDGET.epochs):
        stack.run_epoch()
    return stack


def chosen(tried: list[Configuration], kind: HeadKind = "paper") -> int | None:
    shape = Shape(kind, DIM, ClassTarget(CLASSES))
    return train(shape, blobs(70, 2, 1), blobs(50, 0, 2), tried, BUDGET, seed=0).chosen


@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_gives_each_member_what_it_gets_alone(kind: HeadKind) -> None:
    tried = configurations(kind)
    together = run(kind, tried)
    alone = [run(kind, [configuration]) for configuration in tried]
    for index, single in enumerate(alone):
        for epoch, own in zip(together.epochs, single.epochs, strict=True):
            assert epoch.validation_loss[index].item() == pytest.approx(
                own.validation_loss.item(), rel=1e-4
            )
            for name, values in own.train.items():
                assert epoch.train[name][index].item() == pytest.approx(values.item(), rel=1e-4)
            unweighed = epoch.train.keys() - own.train.keys()
            assert all(epoch.train[name][index].isnan() for name in unweighed)
    best = min(
        range(len(tried)),
        key=lambda k: (
            -alone[k].epochs[-1].validation.accuracy.item(),
            alone[k].epochs[-1].validation_loss.item(),
            k,
        ),
    )
    assert chosen(tried, kind) == best


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_trains_as_plain_torch_trains_it(kind: HeadKind) -> None:
    """The reference is the same head in torch.nn, with torch's AdamW and explicit formulas."""
    configuration = configurations(kind)[1]
    training = blobs(70, 2, 1)
    shape = Shape(kind, DIM, ClassTarget(CLASSES))
    model = PlainHead(shape, seed=0)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=configuration.lr, weight_decay=configuration.weight_decay
    )
    steps = BUDGET.epochs * 5
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: share("cosine", step, steps)
    )
    for epoch in range(1, BUDGET.epochs + 1):
        order = torch.randperm(70, generator=seeded(0, "order", epoch))
        for samples in order.split(BUDGET.batch_size):
            loss = plain_loss(model, training, samples, configuration)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    validation = blobs(50, 0, 2)
    with torch.no_grad():
        logits, _ = model(validation.features)
    wanted = nn.functional.cross_entropy(logits, validation.labels).item()
    found = run(kind, [configuration]).epochs[-1].validation_loss.item()
    assert found == pytest.approx(wanted, rel=1e-4)


class PlainHead(nn.Module):
    def __init__(self, shape: Shape, seed: int) -> None:
        super().__init__()
        self.kind = shape.kind
        self.classifier = nn.Linear(shape.dim, shape.outputs)
        if shape.hidden:
            self.first = nn.Linear(shape.dim, shape.hidden, bias=shape.kind == "paper")
            self.second = nn.Linear(shape.hidden, shape.dim)
        if shape.kind == "released":
            self.norm = nn.BatchNorm1d(shape.hidden)
            self.scale = nn.Parameter(torch.ones(shape.dim))
        state = StackedHeads.fresh(shape, 1, seed, CPU).member(0)
        own = dict(self.named_parameters())
        with torch.no_grad():
            for name in own.keys() & state.keys():
                own[name].copy_(state[name])

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        z = rows
        if self.kind == "paper":
            z = self.second(self.first(rows).relu())
        elif self.kind == "released":
            z = self.scale * self.second(self.norm(self.first(rows)).relu()) + rows
        return self.classifier(z), z


def plain_loss(
    model: PlainHead, training: Labelled, samples: Tensor, weights: Configuration
) -> Tensor:
    rows = training.features[:, samples].flatten(0, 1)
    logits, z = model(rows)
    loss = nn.functional.cross_entropy(logits, training.labels[samples].repeat(2))
    if model.kind == "linear":
        return loss
    if model.kind == "paper":
        mse = (unit(rows) - unit(z)).square().sum(1).mean()
    else:
        first, second = training.features[0, samples], z[len(samples) :]
        mse = (unit(first) - unit(second)).square().mean()
    covariance = torch.cov(z.T)
    off = covariance - torch.diag(torch.diag(covariance))
    cov = off.square().sum() / z.shape[1]
    sigma = torch.linalg.svdvals(z)
    top = 1 if model.kind == "paper" else 5
    svd = -(sigma / sigma.sum())[:top].mean()
    return loss + weights.mse * mse + weights.cov * cov + weights.svd * svd


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_member_leaves_the_others_unchanged_to_the_bit(kind: HeadKind) -> None:
    tried = configurations(kind)
    healthy = run(kind, tried)
    tried[1] = Configuration(lr=1e38, mse=tried[1].mse, cov=tried[1].cov, svd=tried[1].svd)
    wounded = run(kind, tried)
    assert wounded.failures[1] is not None
    assert "not finite in epoch 1" in wounded.failures[1]
    for index in (0, 2, 3):
        assert wounded.failures[index] is None
        mine, theirs = wounded.heads.member(index), healthy.heads.member(index)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        for ours, other in zip(wounded.epochs, healthy.epochs, strict=True):
            assert ours.validation_loss[index] == other.validation_loss[index]
            assert all(same(ours.train[n][index], other.train[n][index]) for n in ours.train)


def same(one: Tensor, other: Tensor) -> bool:
    return bool(one == other) or bool(one.isnan() and other.isnan())


def test_a_failed_member_is_never_selected_and_none_is_when_all_failed() -> None:
    broken = Configuration(lr=1e38)
    assert chosen([broken, Configuration(lr=1e-3)]) == 1
    assert chosen([broken, broken]) is None


def test_an_infinite_term_fails_only_the_members_that_weigh_it() -> None:
    training = blobs(70, 2, 1)
    huge = Labelled(training.features * 1e12, training.labels)
    tried = [Configuration(lr=1e-9), Configuration(lr=1e-9, cov=1.0)]
    shape = Shape("released", DIM, ClassTarget(CLASSES))
    trained = train(shape, huge, blobs(50, 0, 2), tried, Budget(1, 16), seed=0)
    assert trained.epochs[0].train["cov"][1].isinf()
    assert trained.failures[0] is None
    assert trained.failures[1] is not None


def test_equal_members_stay_equal_and_the_first_is_selected() -> None:
    trained = run("released", [Configuration(lr=1e-2)] * 3)
    first = trained.heads.member(0)
    for index in (1, 2):
        other = trained.heads.member(index)
        assert all(torch.equal(first[name], other[name]) for name in first)
    assert chosen([Configuration(lr=1e-2)] * 3, "released") == 0


def test_the_seed_decides_everything() -> None:
    tried = configurations("released")
    one, again, other = (run("released", tried, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.epochs[-1].validation_loss, again.epochs[-1].validation_loss)
    assert not torch.equal(one.epochs[-1].validation_loss, other.epochs[-1].validation_loss)


def test_methods_of_a_seed_start_from_the_same_weights() -> None:
    heads = {k: StackedHeads.fresh(Shape(k, DIM, ClassTarget(CLASSES)), 2, 5, CPU) for k in KINDS}
    paper, released = heads["paper"].member(0), heads["released"].member(1)
    shared = paper.keys() & released.keys()
    assert shared == paper.keys() - {"first.bias"}
    assert all(torch.equal(paper[name], released[name]) for name in shared)
    linear = heads["linear"].member(0)["classifier.weight"]
    assert torch.equal(linear, paper["classifier.weight"])


def test_regularisers_without_a_weight_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed")

    monkeypatch.setattr(nmtune, "spread", refuse)
    monkeypatch.setattr(nmtune, "mse", refuse)
    trained = run("paper", [Configuration(lr=1e-3)] * 2)
    assert set(trained.epochs[0].train) == {"loss", "ce"}
    with pytest.raises(AssertionError, match="computed"):
        run("paper", [Configuration(lr=1e-3), Configuration(lr=1e-3, svd=0.01)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [2, 17, 33])
def test_odd_sizes_and_single_views_train(kind: HeadKind, samples: int) -> None:
    trained = run(kind, configurations(kind), views=1, samples=samples)
    assert trained.failures == [None] * 4
    assert set(trained.epochs[0].train) <= set(TERMS)


def test_one_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch needs two"):
        run("linear", configurations("linear"), samples=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_predicts_alone_as_it_did_in_the_stack(kind: HeadKind) -> None:
    trained = run(kind, configurations(kind))
    validation = blobs(50, 0, 2)
    loss, predicted = evaluate(trained.heads, validation, CPU)
    single = StackedHeads.single(trained.heads.shape, trained.heads.member(2))
    own_loss, own_predicted = evaluate(single, validation, CPU)
    assert own_loss.item() == pytest.approx(loss[2].item(), rel=1e-6)
    assert torch.equal(own_predicted[0], predicted[2])


def test_a_head_of_another_shape_is_refused() -> None:
    state = run("paper", configurations("paper")).heads.member(0)
    with pytest.raises(ValueError, match="not those of a released head"):
        StackedHeads.single(Shape("released", DIM, ClassTarget(CLASSES)), state)


@pytest.mark.parametrize("fused", [False, True])
def test_stacked_adamw_is_torchs_for_every_member(fused: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, 5, generator=generator)
    rates, decays = torch.tensor([1e-3, 0.1, 1.0]), torch.tensor([0.0, 0.5, 0.01])
    stacked = start.clone().requires_grad_()
    mine = StackedAdamW([stacked], rates, decays, fused=fused)
    singles = [start[k].clone().requires_grad_() for k in range(3)]
    theirs = [
        torch.optim.AdamW([p], lr=float(lr), weight_decay=float(decay))
        for p, lr, decay in zip(singles, rates, decays, strict=True)
    ]
    for _ in range(20):
        gradient = torch.randn(3, 4, 5, generator=generator)
        stacked.grad = gradient.clone()
        mine.step(1.0, torch.ones(3, dtype=torch.bool))
        for index, (parameter, optimizer) in enumerate(zip(singles, theirs, strict=True)):
            parameter.grad = gradient[index].clone()
            optimizer.step()
    for index, parameter in enumerate(singles):
        torch.testing.assert_close(stacked[index], parameter, rtol=1e-5, atol=1e-6)


def test_steps_are_spread_over_epochs_as_announced() -> None:
    shape = Shape("linear", DIM, ClassTarget(CLASSES))
    group = Group(blobs(33, 1, 1), configurations("linear"), 0)
    stack = Stack(shape, [group], blobs(9, 0, 2), BUDGET)
    assert stack.steps_per_epoch == 2  # the third batch would be a single sample
    assert share("cosine", 0, 8) == 1
    assert share("cosine", 8, 8) == pytest.approx(0)

"""Training to a budget: turns, groups, halving and patience change the cost, not a member."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from jobs.tuning import polar
from jobs.tuning.budget import Budget, Patience
from jobs.tuning.frozen import train as train_module
from jobs.tuning.frozen.stack import Group, Stack, bytes_of_member
from jobs.tuning.frozen.train import train, train_groups
from jobs.tuning.heads import Shape, StackedHeads
from jobs.tuning.methods import HeadKind
from jobs.tuning.metrics import Scores
from jobs.tuning.polar import dominance
from jobs.tuning.rows import Labelled
from jobs.tuning.spec import Halving, Precision
from jobs.tuning.target import ClassTarget
from jobs.tuning.trained import Configuration, Epoch, Trained
from tests import pretend
from tests.jobs.tuning.frozen.test_stack import CLASSES, DIM, blobs
from tests.waits import counting

TRAINING, VALIDATION = blobs(70, 2, 1), blobs(50, 0, 2)
TRIED = [
    Configuration(lr, 1e-4, *weights)
    for lr, weights in zip(
        (1e-5, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 3e-4),
        [(0.0, 0.0, 0.0), (1.0, 0.04, 0.001), (0.0, 0.1, 0.0)] * 2 + [(0.01, 0.01, 0.01)],
        strict=True,
    )
]


def run(
    kind: HeadKind = "paper",
    tried: list[Configuration] = TRIED,
    budget: Budget = Budget(6, 16),  # noqa: B008
    **kept: int,
) -> Trained:
    shape = Shape(kind, DIM, ClassTarget(CLASSES))
    return train(shape, TRAINING, VALIDATION, tried, budget, seed=0, **kept)


def assert_same(one: Trained, other: Trained) -> None:
    assert one.chosen == other.chosen
    assert one.trained_for == other.trained_for
    assert one.dropped == other.dropped
    for ours, theirs in zip(one.epochs, other.epochs, strict=True):
        losses = ours.validation_loss, theirs.validation_loss
        torch.testing.assert_close(*losses, rtol=1e-4, atol=0, equal_nan=True)
        for name, values in ours.train.items():
            torch.testing.assert_close(
                values, theirs.train[name], rtol=1e-4, atol=1e-7, equal_nan=True
            )


@pytest.mark.parametrize("kind", ["linear", "paper", "released"])
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_no_tensor_is_left_on_the_other_device(kind: HeadKind, precision: Precision) -> None:
    tried = [Configuration(c.lr, c.weight_decay) for c in TRIED[:3]] if kind == "linear" else TRIED
    broken = [*tried, Configuration(1e30)]
    budget = Budget(4, 16, Halving(first=1, eta=2), patience=2)
    shape, noisy = (
        Shape(kind, DIM, ClassTarget(CLASSES)),
        Labelled(TRAINING.features, TRAINING.labels.roll(3)),
    )
    groups = [Group(TRAINING, broken, 0), Group(noisy, tried[:2], 1)]
    on_cpu = train_groups(shape, groups, VALIDATION, budget)
    with pretend.gpu():
        on_gpu = train_groups(shape, groups, VALIDATION, budget, device="cuda", precision=precision)
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert_same(one, other)
        assert one.failures == other.failures
        assert all(type(values) is torch.Tensor for values in other.state.values())


def count_turns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []

    class Counted(Stack):
        def __init__(self, *given: object, **kept: object) -> None:
            super().__init__(*given, **kept)  # type: ignore[arg-type]
            sizes.append(len(self.members))

    monkeypatch.setattr(train_module, "Stack", Counted)
    return sizes


@pytest.mark.parametrize("kind", ["paper", "released"])
@pytest.mark.parametrize("halving", [None, Halving(first=1, eta=2)], ids=["full", "halving"])
def test_a_tiny_memory_bound_gives_the_same_numbers(
    kind: HeadKind, halving: Halving | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(6, 16, halving)
    whole = run(kind, budget=budget)
    sizes = count_turns(monkeypatch)
    two = 2 * bytes_of_member(Shape(kind, DIM, ClassTarget(CLASSES)), 32)
    for memory, turns in ((two, 4), (1, len(TRIED))):
        sizes.clear()
        assert_same(run(kind, budget=budget, memory=memory), whole)
        assert len(sizes) == turns


@pytest.mark.parametrize("kind", ["paper", "released"])
def test_waiting_turns_use_no_memory_and_are_restored_to_the_bit(
    kind: HeadKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks: list[Stack] = []
    monkeypatch.setattr(
        train_module, "Stack", lambda *a, **k: stacks.append(Stack(*a, **k)) or stacks[-1]
    )
    at_once = []

    def look(share: float) -> None:
        at_once.append(sum(bool(stack.heads.parameters) for stack in stacks))

    shape, groups = Shape(kind, DIM, ClassTarget(CLASSES)), [Group(TRAINING, TRIED, 0)]
    budget = Budget(6, 16, Halving(first=1, eta=2))
    found = train_groups(shape, groups, VALIDATION, budget, memory=1, on_progress=look)
    assert len(stacks) == len(TRIED)
    assert max(at_once[: len(at_once) // 2]) == 1
    monkeypatch.setattr("jobs.tuning.frozen.offload.Offload.store", lambda *given: None)
    monkeypatch.setattr("jobs.tuning.frozen.offload.Offload.restore", lambda *given: None)
    (kept,) = train_groups(shape, groups, VALIDATION, budget, memory=1)
    assert found[0].chosen == kept.chosen
    assert all(torch.equal(kept.state[name], value) for name, value in found[0].state.items())
    assert torch.equal(found[0].epochs[-1].validation_loss, kept.epochs[-1].validation_loss)


@pytest.mark.parametrize("kind", ["linear", "paper", "released"])
def test_groups_of_other_seeds_labels_and_rows_train_as_they_would_alone(kind: HeadKind) -> None:
    tried = [Configuration(c.lr, c.weight_decay) for c in TRIED[:3]] if kind == "linear" else TRIED
    noisy = Labelled(TRAINING.features, TRAINING.labels.roll(3))
    other = blobs(70, 2, 9)
    groups = [
        Group(TRAINING, tried, 0),
        Group(noisy, tried[:2], 0),
        Group(TRAINING, tried, 5),
        Group(other, tried[1:], 0),
    ]
    shape, budget = Shape(kind, DIM, ClassTarget(CLASSES)), Budget(4, 16)
    together = train_groups(shape, groups, VALIDATION, budget)
    for group, found in zip(groups, together, strict=True):
        tried = list(group.configurations)
        alone = train(shape, group.training, VALIDATION, tried, budget, seed=group.seed)
        assert found.chosen == alone.chosen
        for ours, own in zip(found.epochs, alone.epochs, strict=True):
            torch.testing.assert_close(ours.validation_loss, own.validation_loss, rtol=1e-4, atol=0)
            for name, values in own.train.items():
                torch.testing.assert_close(
                    ours.train[name], values, rtol=1e-4, atol=1e-7, equal_nan=True
                )
        for name, tensor in alone.state.items():
            torch.testing.assert_close(found.state[name], tensor, rtol=1e-2, atol=1e-4)


def test_groups_of_other_sizes_are_refused() -> None:
    groups = [Group(blobs(n, 1, 1), TRIED[:1], 0) for n in (40, 50)]
    with pytest.raises(ValueError, match=r"\[40, 50\] samples cannot train as one stack"):
        train_groups(Shape("linear", DIM, ClassTarget(CLASSES)), groups, VALIDATION, Budget(1, 16))


@pytest.mark.parametrize("halving", [None, Halving(first=1, eta=2)], ids=["full", "halving"])
@pytest.mark.parametrize("memory", [1, 1 << 30], ids=["turns", "one stack"])
def test_progress_is_reported_after_every_step_up_to_the_last(
    halving: Halving | None, memory: int
) -> None:
    heard: list[float] = []
    budget = Budget(4, 16, halving)
    groups = [Group(TRAINING, TRIED, 0), Group(TRAINING, TRIED[:2], 0)]
    shape = Shape("paper", DIM, ClassTarget(CLASSES))
    train_groups(shape, groups, VALIDATION, budget, memory=memory, on_progress=heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == pytest.approx(1)
    longest = max(b - a for a, b in itertools.pairwise([0.0, *heard]))
    assert longest <= 1.8 / 17 + 1e-9, "nine members' step: a fifth of an epoch each, of 17 epochs"


def test_halving_continues_the_better_ones_as_if_none_had_been_dropped() -> None:
    full = run()
    halved = run(budget=Budget(6, 16, Halving(first=1, eta=2)))
    assert sorted(halved.trained_for) == [1, 1, 1, 1, 2, 2, 6]
    for member, (epochs, dropped) in enumerate(
        zip(halved.trained_for, halved.dropped, strict=True)
    ):
        assert (dropped is None) == (epochs == 6)
        for number in range(epochs):
            ours, theirs = halved.epochs[number], full.epochs[number]
            assert ours.validation_loss[member].item() == pytest.approx(
                theirs.validation_loss[member].item(), rel=1e-4
            )
        last = halved.epochs[-1]
        assert last.validation_loss[member] == halved.epochs[epochs - 1].validation_loss[member]
    best = sorted(range(7), key=halved.epochs[0].key)[:3]
    assert {m for m, epochs in enumerate(halved.trained_for) if epochs > 1} == set(best)
    assert halved.chosen == halved.trained_for.index(6)


def test_a_failed_configuration_does_not_count_among_those_that_continue() -> None:
    tried = [Configuration(lr=1e38), *TRIED[:3]]
    halved = run(tried=tried, budget=Budget(4, 16, Halving(first=1, eta=2)))
    assert halved.failures[0] is not None
    assert halved.trained_for[0] == 1
    assert sum(epochs > 1 for epochs in halved.trained_for) == 2


def test_cuts_leave_one_at_least_and_none_at_the_end() -> None:
    assert Halving(first=2, eta=2).cuts(8, 16) == ((2, 4), (4, 2), (8, 1))
    assert Halving(first=2, eta=4).cuts(64, 30) == ((2, 16), (8, 4))
    assert Halving(first=30).cuts(8, 30) == ()
    assert Budget(30, 16).cuts(8) == {}


def test_a_member_that_no_longer_improves_stops_and_can_still_be_selected() -> None:
    tried = [Configuration(lr=1e-12), Configuration(lr=1e-3)]
    budget = Budget(8, 16, patience=2)
    stopped = run(tried=tried, budget=budget)
    assert stopped.trained_for[0] < 8
    assert stopped.dropped == (None, None)
    alone = run(tried=tried[:1], budget=budget)
    assert alone.chosen == 0
    assert alone.trained_for[0] == len(alone.epochs) < 8
    weights = StackedHeads.single(Shape("paper", DIM, ClassTarget(CLASSES)), alone.state).member(0)
    assert weights.keys() == run(tried=tried[:1]).state.keys()


def test_the_weights_of_a_member_that_stopped_are_those_it_stopped_with() -> None:
    tried = [Configuration(lr=1.0), Configuration(lr=1e-12)]
    budget = Budget(9, 16, patience=1)
    found = run(tried=tried, budget=budget)
    assert found.chosen is not None
    epochs = found.trained_for[found.chosen]
    group = Group(TRAINING, [tried[found.chosen]], 0)
    stack = Stack(Shape("paper", DIM, ClassTarget(CLASSES)), [group], VALIDATION, budget)
    for _ in range(epochs):
        stack.run_epoch()
    for name, tensor in stack.state(0).items():
        torch.testing.assert_close(found.state[name], tensor, rtol=1e-3, atol=1e-4)


def test_patience_counts_epochs_without_a_better_one() -> None:
    patience = Patience(2)
    keys = [(-50.0, 1.0, 0), (-50.0, 0.9, 0), (-50.0, 0.9, 0), (-49.0, 0.1, 0)]
    assert [patience.is_over(0, key) for key in keys] == [False, False, False, True]
    assert not Patience(None).is_over(0, keys[0])


def test_members_are_compared_by_the_tasks_own_metric() -> None:
    named = {name: torch.tensor([60.0, 70.0]) for name in ("macro_f1", "matthews", "f1")}
    own = torch.tensor([50.0, 83.0])
    scores = Scores(torch.tensor([90.0, 70.0]), mean_per_class_accuracy=own, **named)
    for metric, best in (("accuracy", 0), ("mean_per_class_accuracy", 1), ("matthews", 1)):
        epoch = Epoch({}, torch.tensor([1.0, 2.0]), scores, metric)  # type: ignore[arg-type]
        assert min((0, 1), key=epoch.key) == best
    trained = run(budget=Budget(2, 16, metric="macro_f1"))
    last = trained.epochs[-1]
    assert last.metric == "macro_f1"
    assert last.validation.macro_f1[trained.chosen] == last.validation.macro_f1.max()


def test_bf16_products_come_near_float32_and_leave_float32_weights() -> None:
    shape, budget = Shape("released", DIM, ClassTarget(CLASSES)), Budget(4, 16)
    fine = train(shape, TRAINING, VALIDATION, TRIED, budget, seed=0)
    coarse = train(shape, TRAINING, VALIDATION, TRIED, budget, seed=0, precision="bf16")
    assert coarse.failures == (None,) * len(TRIED)
    assert all(tensor.dtype == torch.float32 for tensor in coarse.state.values())
    first, other = fine.epochs[0].train["ce"], coarse.epochs[0].train["ce"]
    torch.testing.assert_close(first, other, rtol=0.05, atol=0)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", ["paper", "released"])
def test_steps_on_a_gpu_wait_for_nothing(kind: HeadKind, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    shape, noisy = (
        Shape(kind, DIM, ClassTarget(CLASSES)),
        Labelled(TRAINING.features, TRAINING.labels.roll(3)),
    )
    groups = [Group(TRAINING, [*TRIED, Configuration(1e30)], 0), Group(noisy, TRIED[:2], 1)]
    monkeypatch.setattr(Stack, "_step", counting(found, Stack._step))
    with pretend.gpu():
        (one, _) = train_groups(
            shape, groups, VALIDATION, Budget(3, 16, Halving(first=1, eta=2)), device="cuda"
        )
    assert found == []
    assert one.failures[-1] is not None


def test_an_epoch_that_has_not_converged_is_trained_again_by_eigenvectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the third step on the products have not converged, and their values are wrong."""
    shape, group = Shape("released", DIM, ClassTarget(CLASSES)), [Group(TRAINING, TRIED, 0)]
    wanted = train_groups(shape, group, VALIDATION, Budget(3, 16))
    calls = itertools.count()
    progress: list[float] = []

    def wrong(gram: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
        value, operator, settled = dominance(gram, top)
        right = next(calls) < 2
        return value, operator if right else 9 * operator, settled & right

    monkeypatch.setattr(polar, "dominance", wrong)
    with pretend.gpu():
        found = train_groups(
            shape, group, VALIDATION, Budget(3, 16), device="cuda", on_progress=progress.append
        )
    assert_same(found[0], wanted[0])
    assert next(calls) == 5  # the steps of one epoch
    assert progress == sorted(progress)
    assert len(progress) == 15


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["linear", "paper", "released"])
def test_a_gpu_gives_the_cpus_losses_and_its_steps_wait_for_nothing(
    kind: HeadKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Stack._step

    def refusing(self: Stack, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    tried = [Configuration(c.lr, c.weight_decay) for c in TRIED] if kind == "linear" else TRIED
    shape, group = Shape(kind, DIM, ClassTarget(CLASSES)), [Group(TRAINING, tried, 0)]
    wanted = train_groups(shape, group, VALIDATION, Budget(3, 16))
    monkeypatch.setattr(Stack, "_step", refusing)
    found = train_groups(shape, group, VALIDATION, Budget(3, 16), device="cuda")
    losses = [epochs[0].epochs[-1].validation_loss for epochs in (found, wanted)]
    torch.testing.assert_close(*losses, rtol=1e-2, atol=0)

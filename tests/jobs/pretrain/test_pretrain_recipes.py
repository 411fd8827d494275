"""Every part of a recipe does what its library does, and resumes bit for bit."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from timm.data.mixup import Mixup
from timm.loss import BinaryCrossEntropy  # type: ignore[attr-defined]
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import nn

from jobs.contract import StageError, Work
from jobs.encoders.encoder import EncoderCard, load
from jobs.images.spec import Augment
from jobs.images.training import erase
from jobs.pretrain.checkpoint import Checkpoints
from jobs.pretrain.data.part import Targets
from jobs.pretrain.distributed import DistributedGroup
from jobs.pretrain.objectives.contrastive import ContrastiveObjective
from jobs.pretrain.objectives.supervised import SupervisedObjective
from jobs.pretrain.optimizer import make_average, make_optimizer, make_scheduler
from jobs.pretrain.run import train_run
from jobs.pretrain.spec import Schedule
from tests.jobs.pretrain.conftest import with_step
from tests.jobs.pretrain.interruption import SELDOM, interrupted, outputs

RICH = {
    "augment": {"degrees": 10, "flip": True, "erase": 0.5},
    "mix": {"mixup": 0.2, "cutmix": 1.0, "group": 4},
    "model_options": {"channels": [4, 4, 8, 8], "drop_path_rate": 0.2},
    "ema_decay": 0.9,
    "ema_warmup": True,
    "clip_grad_norm": 1.0,
    "min_lr": 1e-4,
    "warmup_lr": 1e-3,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": "bce", "bce_threshold": 0.2, "optimizer": "lamb"},
        {"mix": {"mixup": 0.3, "mode": "elem", "group": 2}, "optimizer": "sgd", "momentum": 0.8},
        {"precision": "bf16"},
        {"precision": "fp16"},
    ],
    ids=["adamw", "bce-lamb", "elem-sgd", "bf16", "fp16"],
)
def test_a_rich_recipe_killed_after_each_checkpoint_ends_with_the_same_bytes(
    changes: dict[str, Any], supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    recipe = supervised(**(RICH | changes))
    whole, pieces = make_work(recipe, "whole"), make_work(recipe, "pieces")
    whole, pieces = with_step(whole, telemetry_steps=2), with_step(pieces, telemetry_steps=2)
    train_run(whole, pace=SELDOM)
    interrupted(pieces)
    assert outputs(pieces) == outputs(whole)


def test_channels_last_resumes_bit_for_bit_too(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    recipe = supervised()
    whole = make_work(recipe, "whole", channels_last=True)
    pieces = make_work(recipe, "pieces", channels_last=True)
    train_run(whole, pace=SELDOM)
    interrupted(pieces)
    assert outputs(pieces) == outputs(whole)


def test_layout_changes_a_result_in_rounding_alone(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    recipe = supervised(epochs=1, optimizer="sgd")
    plain = train_run(make_work(recipe, "plain"))
    last = train_run(make_work(recipe, "last", channels_last=True))
    name = "pretrain/train_loss_clean"
    assert last.metrics[name] == pytest.approx(plain.metrics[name], rel=1e-3)


def test_a_contrastive_run_in_bf16_with_a_moving_average_resumes_bit_for_bit(
    contrastive: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    recipe = contrastive(precision="bf16", ema_decay=0.8, cosine="after_warmup")
    whole, pieces = make_work(recipe, "whole"), make_work(recipe, "pieces")
    train_run(whole, pace=SELDOM)
    interrupted(pieces)
    assert outputs(pieces) == outputs(whole)


# -- mixing and erasing --------------------------------------------------------------------------


def batch(n: int = 8) -> tuple[torch.Tensor, Targets]:
    images = torch.randn(n, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(n) % 3
    return images, Targets(labels, labels, torch.zeros(n, dtype=torch.bool))


def test_mixing_is_the_same_for_any_number_of_workers(supervised: Callable[..., Any]) -> None:
    recipe = supervised(mix={"mixup": 0.4, "cutmix": 1.0, "group": 4}, batch_size=16)
    images, targets = batch(16)
    whole, (soft,) = SupervisedObjective(recipe, 3).mix(images.clone(), [targets], 99)
    assert soft.soft is not None
    for world in (2, 4):
        share = 16 // world
        for rank in range(world):
            rows = slice(rank * share, (rank + 1) * share)
            mine = Targets(targets.noisy[rows], targets.clean[rows], targets.flipped[rows])
            objective = SupervisedObjective(recipe, 3, DistributedGroup(rank, world))
            mixed, (mine,) = objective.mix(images[rows].clone(), [mine], 99)
            assert torch.equal(mixed, whole[rows])
            assert mine.soft is not None
            assert torch.equal(mine.soft, soft.soft[rows])


def test_workers_that_split_a_mixing_group_are_refused(supervised: Callable[..., Any]) -> None:
    recipe = supervised(mix={"mixup": 0.4, "group": 16}, batch_size=16)
    with pytest.raises(StageError, match=r"each of 2 workers takes 8 images .* mix.group 16"):
        SupervisedObjective(recipe, 3, DistributedGroup(0, 2))


def test_a_mixing_group_must_divide_the_batch(supervised: Callable[..., Any]) -> None:
    with pytest.raises(ValidationError, match="does not divide schedule"):
        supervised(mix={"mixup": 0.4, "group": 6})
    assert supervised(mix={"group": 6}).mix.on is False


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_the_mixture_is_timms_and_restores_numpys_generator(
    mode: str, supervised: Callable[..., Any]
) -> None:
    recipe = supervised(
        mix={"mixup": 0.4, "cutmix": 1.0, "group": 8, "mode": mode}, label_smoothing=0.1
    )
    images, targets = batch()
    before = np.random.get_state()[1].tolist()
    mixed, (soft,) = SupervisedObjective(recipe, 3).mix(images.clone(), [targets], 5)
    assert np.random.get_state()[1].tolist() == before
    found = False
    for seed in range(5, 6):
        from jobs.images.augment import mix

        drawn = int(mix(np.array([seed], np.uint64), 0)[0] >> np.uint64(32))
        np.random.seed(drawn)
        theirs = Mixup(0.4, 1.0, mode=mode, label_smoothing=0.1, num_classes=3)
        direct, labels = theirs(images.clone(), targets.noisy)
        found = torch.equal(mixed, direct) and torch.equal(soft.soft, labels)
    assert found
    assert not torch.equal(mixed, images)


def test_each_update_mixes_anew_and_levels_mix_alike(supervised: Callable[..., Any]) -> None:
    recipe = supervised(mix={"mixup": 0.4, "group": 4})
    objective = SupervisedObjective(recipe, 3)
    images, targets = batch()
    other = replace(targets, noisy=(targets.noisy + 1) % 3)
    first = objective.mix(images.clone(), [targets], 1)[0]
    assert torch.equal(objective.mix(images.clone(), [other], 1)[0], first)
    assert not torch.equal(objective.mix(images.clone(), [targets], 2)[0], first)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_levels_that_train_together_share_the_mixed_images_and_keep_their_own_labels(
    mode: str, supervised: Callable[..., Any]
) -> None:
    recipe = supervised(mix={"mixup": 0.4, "cutmix": 1.0, "group": 4, "mode": mode})
    objective = SupervisedObjective(recipe, 3)
    images, targets = batch()
    levels = [targets, replace(targets, noisy=(targets.noisy + 1) % 3)]
    mixed, together = objective.mix(images.clone(), levels, 7)
    for level, found in zip(levels, together, strict=True):
        alone, (wanted,) = objective.mix(images.clone(), [level], 7)
        assert torch.equal(mixed, alone)
        assert found.soft is not None
        assert wanted.soft is not None
        assert torch.equal(found.soft, wanted.soft)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_an_image_is_erased_by_its_own_hash_in_any_batch(mode: Any) -> None:
    spec = Augment(erase=0.5, erase_mode=mode)
    images = torch.ones(32, 3, 16, 16)
    hashes = np.arange(1, 33, dtype=np.uint64) * np.uint64(2**58 + 12345)
    whole = erase(images.clone(), spec, hashes)
    alone = [erase(images[i : i + 1].clone(), spec, hashes[i : i + 1]) for i in range(32)]
    assert torch.equal(torch.cat(alone), whole)
    erased = (whole != 1).flatten(1).any(dim=1).sum().item()
    assert 6 < erased < 26
    assert torch.equal(erase(images.clone(), Augment(), hashes), images)


# -- losses, optimizer, schedule, average --------------------------------------------------------


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_the_binary_loss_is_timms_on_mixed_labels(
    threshold: float | None, supervised: Callable[..., Any]
) -> None:
    recipe = supervised(
        loss="bce", bce_threshold=threshold, mix={"mixup": 0.5, "group": 8}, label_smoothing=0.0
    )
    objective = SupervisedObjective(recipe, 3)
    model = objective.build(0).train()
    images, targets = batch()
    images, (targets,) = objective.mix(images, [targets], 4)
    scored = objective.step(model, images, targets, 8)
    theirs = BinaryCrossEntropy(smoothing=0.0, target_threshold=threshold)
    expected = theirs(model(images), targets.soft)
    assert scored.losses.mean().item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_threshold_without_a_binary_loss_is_refused(supervised: Callable[..., Any]) -> None:
    with pytest.raises(ValidationError, match="bce_threshold belongs to loss: bce"):
        supervised(bce_threshold=0.2)


def schedule(**fields: Any) -> Schedule:
    return Schedule.model_validate({"epochs": 10, "batch_size": 1, "lr": 0.1} | fields)


def rates(spec: Schedule, steps: int) -> list[float]:
    layer = nn.Linear(2, 2)
    optimizer = make_optimizer(spec, [{"params": list(layer.parameters())}])
    scheduler = make_scheduler(spec, optimizer, steps)
    found = []
    for update in range(spec.epochs * steps):
        scheduler.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_rate_after_the_warm_up_is_open_clips() -> None:
    import math

    spec = schedule(warmup_epochs=2, warmup_lr=0, cosine="after_warmup")
    found, warm, total = rates(spec, 10), 20, 100
    assert found[0] == 0
    assert found[10] == pytest.approx(0.05)
    for update in range(warm, total):
        share = (update - warm) / (total - warm)
        assert found[update] == pytest.approx(0.05 * (1 + math.cos(math.pi * share)))


def test_the_rate_ends_at_the_smallest_and_starts_where_it_says() -> None:
    found = rates(schedule(warmup_epochs=1, warmup_lr=0.02, min_lr=0.001), 10)
    assert found[0] == pytest.approx(0.02)
    assert max(found) < 0.1
    assert 0.001 < found[-1] < 0.0011


def test_optimizer_options_reach_the_optimizer() -> None:
    parameters = [{"params": list(nn.Linear(2, 2).parameters())}]
    adam = make_optimizer(schedule(betas=(0.9, 0.98), eps=1e-6), parameters)
    assert adam.defaults["betas"] == (0.9, 0.98)
    assert adam.defaults["eps"] == 1e-6
    lamb = make_optimizer(schedule(optimizer="lamb", betas=(0.8, 0.9)), parameters)
    assert lamb.defaults["betas"] == (0.8, 0.9)
    sgd = make_optimizer(schedule(optimizer="sgd", momentum=0.5), parameters)
    assert sgd.defaults["momentum"] == 0.5
    assert sgd.defaults["nesterov"]


def test_norms_and_biases_have_no_weight_decay_by_each_librarys_rule(
    supervised: Callable[..., Any], contrastive: Callable[..., Any]
) -> None:
    objective = SupervisedObjective(supervised(), 3)
    model = objective.build(0)
    undecayed, decayed = objective.parameter_groups(model, 0.1)
    assert all(p.ndim <= 1 for p in undecayed["params"])
    assert all(p.ndim > 1 for p in decayed["params"])
    assert (undecayed["weight_decay"], decayed["weight_decay"]) == (0.0, 0.1)
    clip = ContrastiveObjective(contrastive(), DistributedGroup())
    model = clip.build(0)
    undecayed, decayed = clip.parameter_groups(model, 0.1)
    numbers = {id(p) for p in decayed["params"]}
    assert id(model.get_parameter("positional_embedding")) in numbers
    assert id(model.get_parameter("logit_scale")) not in numbers
    assert len(undecayed["params"]) + len(decayed["params"]) == len(list(model.parameters()))


def test_the_moving_average_is_timms_and_is_stored(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    plain, averaged = make_work(supervised(), "plain"), make_work(supervised(ema_decay=0.5), "ema")
    train_run(plain)
    train_run(averaged)
    checkpoint = Checkpoints(averaged.scratch).latest()
    assert checkpoint is not None
    average, last = checkpoint.extra("average"), checkpoint.extra("model")
    kept = load(averaged.output).model.state_dict()
    assert all(torch.equal(kept[name], average[name]) for name in kept)
    assert not all(torch.equal(kept[name], last[name]) for name in kept)
    plain_last = load(plain.output).model.state_dict()
    assert all(torch.equal(plain_last[name], last[name]) for name in kept)  # training is the same
    layer = nn.Linear(2, 2)
    made = make_average(schedule(ema_decay=0.9), layer)
    assert isinstance(made, ModelEmaV3)
    assert make_average(schedule(), layer) is None


def test_mixed_precision_trains_about_as_well(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    full = train_run(make_work(supervised(), "full", level=0)).metrics
    for precision, tolerance in (("bf16", 0.1), ("fp16", 0.25)):
        work = make_work(supervised(precision=precision), precision, level=0)
        outcome = train_run(work)
        half, name = outcome.metrics, "pretrain/train_loss_clean"
        assert half[name] == pytest.approx(full[name], rel=tolerance)
        assert half[name] != full[name]
        # The first scale is too large by design, so fp16 skips the first of its twelve updates.
        assert (outcome.counts.get("fp16_overflows", 0) > 0) is (precision == "fp16")


def test_runs_of_a_seed_share_their_mixture_over_levels(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    cards = []
    for level in (0, 30):
        work = make_work(supervised(**RICH, epochs=1), str(level), level=level)
        train_run(work)
        cards.append(EncoderCard.read(work.output))
    assert cards[0].initial_weights_sha256 == cards[1].initial_weights_sha256
    assert cards[0].order_sha256 == cards[1].order_sha256
    assert cards[0].weights_sha256 != cards[1].weights_sha256

"""The training loop resumes at any step, is the same at every level, and reports failures."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.contract import Outcome, StageError, Work
from jobs.encoders.encoder import EncoderCard
from jobs.pretrain.checkpoint import Checkpoints
from jobs.pretrain.loop import Pace, StoppedError, Watch
from jobs.pretrain.run import train_run
from jobs.pretrain.spec import PretrainStep, Resources
from jobs.storage.folder import Folder
from tests.jobs.pretrain.interruption import OFTEN, SELDOM, interrupted, outputs

STEPS = 12  # two epochs of six batches

AUGMENT = {"degrees": 10, "translate": 0.1, "flip": True}


def same_metrics(a: Outcome, b: Outcome) -> bool:
    def kept(outcome: Outcome) -> dict[str, float]:
        return {k: v for k, v in outcome.metrics.items() if k != "pretrain/images_per_s"}

    return kept(a) == kept(b)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb"])
def test_a_supervised_run_killed_after_each_checkpoint_ends_with_the_same_bytes(
    optimizer: str, supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    recipe = supervised(
        optimizer=optimizer,
        augment=AUGMENT,
        model_options={"channels": [4, 4, 8, 8], "drop_rate": 0.3},
        clip_grad_norm=1.0,
    )
    whole, pieces = make_work(recipe, "whole"), make_work(recipe, "pieces")
    outcome = train_run(whole, pace=SELDOM)
    # Checkpoints are at most three updates apart, so four updates always make progress.
    assert same_metrics(interrupted(pieces, 4, OFTEN), outcome)
    assert outputs(pieces) == outputs(whole)
    files = {"curves.parquet", "telemetry.parquet", "encoder.json", "model.safetensors"}
    assert set(outputs(whole)) == files


def test_a_contrastive_run_killed_after_each_checkpoint_ends_with_the_same_bytes(
    contrastive: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    recipe = contrastive(augment=AUGMENT)
    whole, pieces = make_work(recipe, "whole"), make_work(recipe, "pieces")
    assert same_metrics(train_run(whole, pace=SELDOM), interrupted(pieces, 4, OFTEN))
    assert outputs(pieces) == outputs(whole)


def test_checkpoints_inside_segments_resume_as_well(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    whole, pieces = make_work(supervised(), "whole"), make_work(supervised(), "pieces")
    train_run(whole, pace=SELDOM)
    interrupted(pieces, 2, Pace(minutes=0, time_share=0.0))  # one after each update
    assert outputs(pieces) == outputs(whole)


def test_a_stopped_run_leaves_a_checkpoint_at_its_last_update(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    whole, stopped = make_work(supervised(), "whole"), make_work(supervised(), "stopped")
    train_run(whole)
    seen: list[float] = []
    watch = Watch(
        on_progress=lambda share, words: seen.append(share), stopping=lambda: len(seen) > 4
    )
    with pytest.raises(StoppedError):
        train_run(stopped, watch=watch, pace=SELDOM)
    checkpoint = Checkpoints(stopped.scratch).latest()
    assert checkpoint is not None
    assert checkpoint.progress.position.updates == len(seen) - 1  # the first was before any
    train_run(stopped)
    assert outputs(stopped) == outputs(whole)


def test_only_the_last_two_checkpoints_are_kept(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    work = make_work(supervised())
    train_run(work, pace=OFTEN)
    names = [name for name, _ in work.scratch.files()]
    assert len([name for name in names if name.endswith(".safetensors")]) == 2
    assert len(names) == 4
    assert f"checkpoint-{STEPS:09d}.json" in names


def test_a_damaged_checkpoint_is_skipped_and_counted(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    whole, damaged = make_work(supervised(), "whole"), make_work(supervised(), "damaged")
    train_run(whole, pace=SELDOM)
    train_run(damaged, pace=OFTEN)
    newest = damaged.scratch.local_path() / f"checkpoint-{STEPS:09d}.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    outcome = train_run(damaged)
    assert outcome.counts["damaged_checkpoints"] == 1
    assert outputs(damaged) == outputs(whole)


def test_a_checkpoint_of_another_model_is_refused(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    train_run(make_work(supervised()))
    with pytest.raises(StageError, match="is not of this model"):
        train_run(make_work(supervised(model_options={"channels": [4, 8, 8, 8]})))


def test_runs_of_a_seed_differ_in_noise_alone(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    def card(level: int, seed: int) -> EncoderCard:
        work = make_work(supervised(epochs=1), f"{level}-{seed}", level=level, seed=seed)
        train_run(work)
        return EncoderCard.read(work.output)

    clean, noisy, other = card(0, 0), card(30, 0), card(0, 1)
    assert clean.initial_weights_sha256 == noisy.initial_weights_sha256
    assert clean.order_sha256 == noisy.order_sha256
    assert clean.weights_sha256 != noisy.weights_sha256
    assert other.initial_weights_sha256 != clean.initial_weights_sha256
    assert other.order_sha256 != clean.order_sha256


def test_the_same_step_twice_gives_the_same_bytes(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    first, second = make_work(supervised(), "first"), make_work(supervised(), "second")
    train_run(first)
    torch.rand(7)  # other draws from the global generator have no effect
    train_run(second)
    assert outputs(first) == outputs(second)


def test_clean_and_flipped_rows_are_measured_separately(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    recipe = supervised(epochs=6)
    noisy = train_run(make_work(recipe, "noisy", level=30))
    assert noisy.counts == {
        "rows": 100,
        "flipped": 30,
        "rows_left_out_per_epoch": 4,
        "steps": 36,
        "images": 576,
        "skipped_updates": 0,
        "damaged_checkpoints": 0,
    }
    metrics = noisy.metrics
    assert metrics["pretrain/train_loss_flipped"] > metrics["pretrain/train_loss_clean"]
    assert metrics["pretrain/train_accuracy_clean"] > metrics["pretrain/train_accuracy_flipped"]
    predicted = metrics["pretrain/memorised_percent"] + metrics["pretrain/recovered_percent"]
    assert 0 < predicted <= 100
    clean = train_run(make_work(recipe, "clean", level=0))
    assert clean.counts["flipped"] == 0
    assert not [name for name in clean.metrics if "flipped" in name or "memorised" in name]
    assert clean.metrics["pretrain/val_accuracy"] > 90
    assert clean.metrics["pretrain/train_accuracy_clean"] > 90


def test_curves_have_a_point_of_each_measure_for_each_epoch(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    work = make_work(supervised(epochs=3))
    outcome = train_run(work)
    curves = work.output.read_table("curves.parquet")
    assert [str(field.type) for field in curves.schema] == ["string", "int64", "double"]
    rows = curves.to_pylist()
    assert [r["step"] for r in rows if r["metric"] == "val_accuracy"] == [1, 2, 3]
    last = {r["metric"]: r["value"] for r in rows if r["step"] == 3}
    assert {f"pretrain/{name}": value for name, value in last.items()}.items() <= (
        outcome.metrics.items()
    )


def test_accumulating_passes_does_not_change_the_batch(
    supervised: Callable[..., Any], contrastive: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    vit = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    plain = supervised(model="vit_tiny_patch16_224", model_options=vit, optimizer="sgd")
    clip = contrastive(optimizer="sgd")
    for recipe in (plain, clip):
        once = train_run(make_work(recipe, f"{recipe.name}-once"))
        pieces = train_run(make_work(recipe, f"{recipe.name}-pieces", images_per_pass=5))
        for name, value in once.metrics.items():
            if name != "pretrain/images_per_s":
                assert pieces.metrics[name] == pytest.approx(value, rel=1e-3), name


def test_resources_do_not_affect_identity(supervised: Callable[..., Any]) -> None:
    step = PretrainStep(recipe=supervised(), seed=0)
    other = step.model_copy(
        update={
            "resources": Resources(
                workers=4, cpus_per_worker=2, images_per_pass=3, channels_last=True, compile=True
            ),
            "checkpoint_minutes": 1.0,
            "telemetry_steps": 7,
            "on_nan": "skip",
        }
    )
    assert other.semantic() == step.semantic()
    assert step.model_copy(update={"seed": 1}).semantic() != step.semantic()


def test_a_loss_that_is_not_finite_names_the_step_and_the_last_good_checkpoint(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    work = make_work(supervised(optimizer="sgd", lr=1e18, warmup_epochs=0, epochs=4))
    with pytest.raises(StageError, match=r"(?s)not finite|the loss is (nan|inf) at update \d+"):
        train_run(work, pace=SELDOM)
    assert list(work.output.files()) == []
    good = make_work(supervised(), "good")
    train_run(good, pace=OFTEN)
    broken = replace(
        good,
        spec=PretrainStep(
            recipe=supervised(optimizer="sgd", lr=1e30, warmup_epochs=0, epochs=9), seed=0
        ),
    )
    with pytest.raises(StageError, match=r"the last good checkpoint is .*checkpoint-0000000\d\d"):
        train_run(broken, pace=OFTEN)


def test_a_batch_that_the_workers_cannot_share_is_refused(
    supervised: Callable[..., Any], toy: Any, tmp_path: Path
) -> None:
    from jobs.pretrain.data.in_memory import MemorySource, load_part
    from jobs.pretrain.data.noisy import noisy_targets
    from jobs.pretrain.distributed import DistributedGroup
    from jobs.pretrain.loop import Loop
    from jobs.pretrain.objectives.supervised import SupervisedObjective

    recipe = supervised()
    objective = SupervisedObjective(recipe, 3)
    train = load_part(toy.corpus, "train", recipe.image)
    targets = noisy_targets(train, toy.noise("label", 0), "label", objective.encode)
    with pytest.raises(StageError, match="batch_size 16 cannot be shared evenly by 3 workers"):
        Loop(
            objective.build(0),
            objective,
            MemorySource(train, targets, seed=0, batch_size=16),
            train,
            Checkpoints(Folder.of(tmp_path)),
            schedule=recipe.schedule,
            seed=0,
            group=DistributedGroup(world=3),
        )

"""What a message of a pre-training run tells its user to do works when it is done.

Each run is refused or ends early; its message is followed; then the run is trained to its end.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.contract import Outcome, StageError, Work
from jobs.corpus.shards import Index
from jobs.noise.overlay import CHANGED, Overlay
from jobs.pretrain.checkpoint import Checkpoints
from jobs.pretrain.data.in_memory import MemorySource, load_part
from jobs.pretrain.data.noisy import noisy_targets
from jobs.pretrain.distributed import DistributedGroup
from jobs.pretrain.loop import Loop, Pace
from jobs.pretrain.objectives.contrastive import ContrastiveObjective
from jobs.pretrain.objectives.supervised import SupervisedObjective
from jobs.pretrain.restarts import giving_up_message
from jobs.pretrain.run import train_run
from jobs.storage.folder import Folder
from orchestrator.experiment import load
from tests.jobs.pretrain.conftest import Toy, with_step, works_in, write_noise

Make = Callable[..., Any]
Runs = Callable[..., Work]


def ended(work: Work, remedy: str) -> re.Match[str]:
    """The remedy in the message with which a run ends."""
    with pytest.raises(StageError) as caught:
        train_run(work)
    found = re.search(remedy, str(caught.value))
    assert found is not None, caught.value
    return found


def whole(outcome: Outcome, steps: int = 6) -> bool:
    return outcome.counts["steps"] == steps


FIELD = r"`pretrain\.recipe\.schedule\.(?P<{}>\w+)`"
LOWER = rf"lower {FIELD.format('lr')}, lengthen .* or set {FIELD.format('clip')}$"


@pytest.mark.parametrize(
    ("on_nan", "batch", "begins", "way"),
    [
        ("stop", 16, "the loss is nan at update", "lr"),
        ("skip", 16, "val_loss is nan after epoch 1", "clip"),
        ("skip", 8, "is not finite in 10 updates in a row", "lr"),
    ],
)
def test_a_run_whose_loss_is_not_finite_ends_as_it_should(
    way: str, batch: int, on_nan: str, begins: str, supervised: Make, make_work: Runs
) -> None:
    steep = {"lr": 1e20, "optimizer": "sgd", "weight_decay": 0.0, "batch_size": batch, "epochs": 1}
    work = with_step(make_work(supervised(**steep)), on_nan=on_nan)
    found = ended(work, f"{begins}.*; {LOWER}")
    value = {"lr": 0.01, "clip": 1e-22}[way]
    load.load(overrides=[f"pretrain.recipe.schedule.{found[way]}={value}"])
    better = supervised(**steep | {found[way]: value})
    assert whole(train_run(with_step(make_work(better, "better"), on_nan=on_nan)), 100 // batch)


def test_a_run_whose_checkpoint_is_of_another_model_starts_again(
    supervised: Make, make_work: Runs
) -> None:
    train_run(make_work(supervised(epochs=1)))
    other = make_work(supervised(epochs=1, model_options={"channels": [4, 8, 8, 8]}))
    found = ended(other, r"is not of this model .*; delete (?P<folder>\S+) to train the run from")
    shutil.rmtree(Path(found["folder"]))
    assert whole(train_run(other))


@pytest.mark.parametrize("way", ["images_per_pass", "batch_size"])
def test_a_run_that_memory_does_not_suffice_for_takes_fewer_images(
    way: str, supervised: Make, make_work: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SupervisedObjective.step

    def step(self: Any, model: Any, images: Any, targets: Any, most: int, *rest: Any) -> Any:
        if min(len(images), most) > 8:
            raise MemoryError
        return real(self, model, images, targets, most, *rest)

    monkeypatch.setattr(SupervisedObjective, "step", step)
    found = ended(make_work(supervised(epochs=1)), rf"`pretrain\.(?P<path>[\w.]*{way})`")
    load.load(overrides=[f"pretrain.{found['path']}=8"])
    if way == "batch_size":
        train_run(make_work(supervised(epochs=1, batch_size=8), "small"))
    else:
        assert whole(train_run(make_work(supervised(epochs=1), "parts", images_per_pass=8)))


def test_a_recipe_of_labels_takes_a_noise_of_labels(supervised: Make, make_work: Runs) -> None:
    recipe = supervised(epochs=1)
    found = ended(make_work(recipe, field="caption"), r"use a kind of noise for (?P<what>\w+)s$")
    assert whole(train_run(make_work(recipe, field=found["what"])))


AGAIN = "(make|build) the noise of this corpus again"


@pytest.mark.parametrize("damage", ["rows", "key"])
def test_a_noise_of_another_corpus_is_made_again(
    damage: str, supervised: Make, own_toy: Toy, tmp_path: Path
) -> None:
    noise = own_toy.noise("label", 10)
    overlay, changed = Overlay.read(noise), noise.read_table(CHANGED)
    if damage == "rows":
        overlay = replace(overlay, rows=99)
    else:
        changed = changed.set_column(1, "key", pa.array(["other"] * len(changed)))
    overlay.write(noise, changed)
    work = works_in(tmp_path, own_toy)(supervised(epochs=1), level=10)
    ended(work, AGAIN)
    write_noise(noise, "label", 10)
    assert whole(train_run(work))


def test_a_corpus_without_validation_rows_is_given_some(
    supervised: Make, own_toy: Toy, tmp_path: Path
) -> None:
    index = Index.read(own_toy.corpus)
    Index(index.name, index.classes, {**index.parts, "validation": ()}).write(own_toy.corpus)
    work = works_in(tmp_path, own_toy)(supervised(epochs=1))
    ended(work, r"give its parts\.validation a share or a reader$")
    index.write(own_toy.corpus)
    assert whole(train_run(work))


def test_a_batch_is_of_as_many_workers_as_divide_it(
    supervised: Make, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DistributedGroup, "wrap", lambda self, model: model)  # alone here
    recipe = supervised()
    objective = SupervisedObjective(recipe, 3, DistributedGroup())
    part = load_part(toy.corpus, "train", recipe.image)
    targets = noisy_targets(part, toy.noise("label", 0), "label", objective.encode)
    source = MemorySource(part, targets, seed=0, batch_size=16)

    def loop(workers: int) -> Loop:
        checkpoints, group = Checkpoints(Folder.of(tmp_path)), DistributedGroup(0, workers)
        schedule = recipe.schedule
        more: Any = {"schedule": schedule, "seed": 0, "group": group}
        return Loop(objective.build(0), objective, source, part, checkpoints, **more)

    with pytest.raises(StageError, match=r"change `(?P<path>pretrain\.resources\.workers)`$"):
        loop(3)
    load.load(overrides=["pretrain.resources.workers=4"])
    assert loop(4)


def test_a_full_disk_is_freed_and_the_same_command_resumes(
    supervised: Make, make_work: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = make_work(supervised(epochs=2))
    with monkeypatch.context() as full:
        full.setattr(Checkpoints, "_write", refuse_second(Checkpoints._write))
        remedy = (
            r"No space left .*; the last good checkpoint is .*; check space .*; the same command"
        )
        with pytest.raises(StageError, match=remedy):
            train_run(work, pace=Pace(minutes=0))
    assert whole(train_run(work), 12)


def refuse_second(write: Any) -> Any:
    """The writing of checkpoints, on a disk that has room for one."""

    def refusing(self: Any, tensors: Any, metadata: Any, position: Any) -> None:
        if position.updates > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, tensors, metadata, position)

    return refusing


def test_workers_that_memory_does_not_suffice_for_decode_fewer_images(
    supervised: Make, make_work: Runs
) -> None:
    message = giving_up_message(
        [RuntimeError("Task was killed due to the node running low on memory")], 3
    )
    found = re.search(r"lower (?P<a>pretrain\.\S+) .*, or (?P<b>pretrain\.\S+)$", message)
    assert found is not None, message
    load.load(overrides=[f"{found['a']}=0", f"{found['b']}=8"])
    a, b = (path.rpartition(".")[2] for path in found.groups())
    assert whole(train_run(make_work(supervised(epochs=1), **{a: 0, b: 8})))


def test_labels_outside_the_classes_are_corrected(supervised: Make, toy: Toy) -> None:
    recipe = supervised(epochs=1)
    part = load_part(toy.corpus, "validation", recipe.image)
    objective = SupervisedObjective(recipe, 3, DistributedGroup())
    with pytest.raises(StageError, match="correct the source or its list of classes"):
        objective.encode(part, pa.array([0, 3, None]))
    assert objective.encode(part, pa.array([0, 2, 1])).tolist() == [0, 2, 1]


def test_a_corpus_without_captions_gets_some_or_a_supervised_recipe(
    contrastive: Make, supervised: Make, toy: Toy
) -> None:
    recipe = contrastive()
    part = load_part(toy.corpus, "validation", recipe.image)
    objective = ContrastiveObjective(recipe, DistributedGroup())
    with pytest.raises(StageError, match="use a corpus with captions or a supervised recipe"):
        objective.encode(part, pa.array([None, "a"]))
    assert len(objective.encode(part, pa.array(["b", "a"]))) == 2
    assert len(
        SupervisedObjective(supervised(epochs=1), 3, DistributedGroup()).encode(part, part.labels)
    )

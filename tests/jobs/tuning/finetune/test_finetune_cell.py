"""A cell that trains the encoder, without Ray: what it changes, what it writes, how it continues
after an interruption, and that it is the linear probe when the encoder's learning rate is 0."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.contract import StageError
from jobs.corpus.shards import Index
from jobs.corpus.units import units_of
from jobs.encoders.encoder import load
from jobs.encoders.image import ImageEncoder
from jobs.features.extract import extract
from jobs.features.parts import finish, save_unit
from jobs.features.spec import FeaturesStep
from jobs.storage.folder import Folder
from jobs.tuning import schema
from jobs.tuning.budget import Budget
from jobs.tuning.finetune.cell import Cell, select, state_name, transfer
from jobs.tuning.finetune.inputs import Source, TestInputs
from jobs.tuning.finetune.model import AdaptedEncoder, adapted_layers
from jobs.tuning.finetune.train import EpochNumbers, State
from jobs.tuning.frozen.features import FeatureCache
from jobs.tuning.frozen.train import train
from jobs.tuning.methods import Method
from jobs.tuning.rows import TaskClasses, plain_rows, training_rows
from jobs.tuning.search_space import Space
from jobs.tuning.spec import EncoderTuning
from jobs.tuning.target import ClassTarget
from jobs.tuning.trained import Configuration, Selected
from tests import pretend
from tests.jobs.committing import seal
from tests.jobs.tuning.finetune.digits import (
    CONFIGURATIONS,
    INVERTED,
    METHODS,
    REGULARISED,
    SPACE,
    TASK,
    VIEWS,
    put_encoder,
    step,
    train_all,
    work,
)

pytestmark = pytest.mark.slow


def features_of(digits: Folder, encoder: Folder, folder: Path) -> Folder:
    """Write the features that a frozen method would read."""
    asked = FeaturesStep(images="digits", parts=("train", "validation"), views=VIEWS)
    index = Index.read(digits)
    units = units_of(index, asked.parts)
    opened, scratch, output = load(encoder), Folder.of(folder / "s"), Folder.of(folder / "f")
    for unit in units:
        save_unit(scratch, unit, extract(unit, digits, index.name, opened, asked))
    finish(asked, index, units, scratch, output)
    return output


def test_ft_with_encoder_lr_0_is_the_linear_probe(
    digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    still = Method(head="linear", adapt="ft", encoder_lr=0, space=SPACE)
    cell = Cell.open(work(tmp_path, "c", step(still, epochs=3), encoder=encoder, corpus=digits))
    tuning = cell.start(0, CONFIGURATIONS[0])
    for _ in range(3):
        tuning.run_epoch()

    fitting = FeatureCache().load(features_of(digits, encoder, tmp_path))
    rows = training_rows(fitting.train, cell.classes, TASK, percent=30.0, seed=0)
    validation = plain_rows(fitting.validation, cell.classes, TASK)
    assert rows.keys.equals(cell.training.keys)
    probe = train(
        tuning.adapted.shape,
        fitting.train.training(rows),
        fitting.validation.plain(validation),
        CONFIGURATIONS[:1],
        Budget(3, 64),
        seed=0,
    )
    for frozen, epoch in zip(probe.epochs, tuning.history, strict=True):
        assert epoch.train["loss"] == pytest.approx(float(frozen.train["loss"]), rel=1e-4)
        assert epoch.validation_loss == pytest.approx(float(frozen.validation_loss), rel=1e-4)
    for name, value in tuning.adapted.head_state().items():
        assert torch.allclose(value, probe.state[name], atol=1e-4)
    untouched = load(encoder).model.state_dict()
    for name, value in tuning.adapted.state().items():
        assert torch.allclose(value, untouched[name], atol=0), name


@pytest.mark.parametrize("kind", ["resnet", "vit", "clip"])
def test_lora_changes_its_adapters_and_the_head_alone(
    kind: str, digits: Folder, tmp_path: Path
) -> None:
    folder = put_encoder(Folder.of(tmp_path / "encoder"), kind)
    cell = Cell.open(work(tmp_path, "c", step("lora"), encoder=folder, corpus=digits))
    tuning = cell.start(0, CONFIGURATIONS[0])
    before = {n: v.clone() for n, v in tuning.adapted.encoder.model.state_dict().items()}
    head = tuning.adapted.head_state()
    some = cell.validation.prepared.take(torch.arange(8))
    plain = load(folder).features(some)
    assert torch.allclose(tuning.adapted.features(some), plain, atol=1e-5)
    first = tuning.run_epoch()
    after = tuning.adapted.encoder.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".lora_" in name for name in changed)
    assert changed <= set(tuning.adapted.state())
    assert not torch.equal(head["classifier.weight"], tuning.adapted.head["classifier.weight"])
    assert tuning.run_epoch().train["loss"] < first.train["loss"]


def test_lora_adapts_mlp_layers_where_there_are_some_else_convolutions(tmp_path: Path) -> None:
    layers = {}
    for kind in ("resnet", "vit", "clip"):
        opened = load(put_encoder(Folder.of(tmp_path / kind), kind))
        layers[kind] = adapted_layers(opened.card, opened.model)
    assert layers["vit"] == [f"blocks.{b}.mlp.{fc}" for b in (0, 1) for fc in ("fc1", "fc2")]
    assert layers["clip"] == [
        f"visual.transformer.resblocks.{b}.mlp.{fc}" for b in (0, 1) for fc in ("c_fc", "c_proj")
    ]
    assert "layer1.0.conv1" in layers["resnet"]
    card = load(put_encoder(Folder.of(tmp_path / "none"))).card
    with pytest.raises(StageError, match="neither MLP layers nor plain convolutions"):
        adapted_layers(card, torch.nn.Sequential(torch.nn.Linear(3, 3)))


def test_ft_learns_what_a_frozen_encoder_cannot(
    digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    still = Method(head="linear", adapt="ft", encoder_lr=0, space=SPACE)
    accuracy = {}
    for method in ("ft", still):
        spec = step(method, fraction=100.0, epochs=3)
        cell = work(tmp_path, str(len(accuracy)), spec, encoder=encoder, corpus=digits)
        train_all(cell, CONFIGURATIONS[1:])
        (row,) = schema.from_table(schema.Cell, cell.output.read_table(schema.CELL))
        accuracy[str(method)] = row.test_accuracy
    assert accuracy["ft"] > min(accuracy.values()) + 10


@pytest.mark.parametrize("method", ["ft", "lora", "ft-nmtune"])
def test_a_continued_configuration_gives_the_same_numbers(
    method: str, digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    whole = work(tmp_path, "whole", step(method, epochs=3), encoder=encoder, corpus=digits)
    broken = work(tmp_path, "broken", step(method, epochs=3), encoder=encoder, corpus=digits)
    configuration = Configuration(
        lr=0.005,
        weight_decay=1e-3,
        cov=REGULARISED.cov if method == "ft-nmtune" else 0.0,  # type: ignore[arg-type]
    )
    tuning = Cell.open(whole).start(0, configuration)
    for _ in range(3):
        tuning.run_epoch()
    for _ in range(3):  # as if each epoch ran in a new process
        opened = Cell.open(broken)
        going = opened.start(0, configuration)
        going.run_epoch()
        opened.keep(0, going)
    left = State.read(broken.scratch.read_bytes(state_name(0)))
    assert left.history == tuple(tuning.history)
    for name, value in tuning.adapted.state().items():
        assert torch.equal(value, left.encoder[name]), name


@pytest.mark.parametrize("method", ["ft", "lora"])
def test_a_closed_cell_writes_its_tables_and_the_adapted_encoder(
    method: str, digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    cell = work(tmp_path, "c", step(method), encoder=encoder, corpus=digits)
    outcome = train_all(cell)
    files = {name for name, _ in cell.output.files()}
    both = {schema.CELL, schema.CONFIGURATIONS, schema.CURVES, schema.PREDICTIONS}
    own = {
        "ft": {"model.safetensors", "encoder.json"},
        "lora": {"adapter.safetensors", "adapter.json"},
    }
    assert files == both | {schema.HEAD, schema.HEAD_CARD} | own[method]
    (row,) = schema.from_table(schema.Cell, cell.output.read_table(schema.CELL))
    tried = schema.from_table(schema.Tried, cell.output.read_table(schema.CONFIGURATIONS))
    predictions = schema.from_table(schema.Prediction, cell.output.read_table(schema.PREDICTIONS))
    curves = schema.from_table(schema.Point, cell.output.read_table(schema.CURVES))
    assert (row.test_reads, row.views, row.configurations, row.epochs) == (1, 2, 2, 2)
    assert outcome.counts["n_test"] == len(predictions) == row.n_test
    right = np.mean([p.label == p.predicted for p in predictions]) * 100
    assert row.test_accuracy == pytest.approx(right)
    assert [t.selected for t in tried].count(True) == 1
    assert row.validation_accuracy == max(t.validation_accuracy or 0 for t in tried)
    assert {t.epochs for t in tried} == {2}
    assert {p.step for p in curves} == {1, 2}
    assert not any(p.metric == "train/mse" for p in curves)


def test_images_that_are_trained_on_are_dropped_before_they_are_decoded(
    digits: Folder, encoder: Folder
) -> None:
    class Lengths(ImageEncoder):
        def prepare(self, data: bytes, *_: object) -> torch.Tensor:
            return torch.tensor([len(data) % 256], dtype=torch.uint8)

    opened = load(encoder)
    lengths = Lengths(opened.card, opened.model, opened.device)
    classes = TaskClasses.of(TASK, Index.read(digits).classes)
    rows = Source(digits, lengths).plain_rows("test", TASK, classes)
    left_out = rows.keys.take(pa.array([0, 7, 596]))
    selected = Selected({"head": torch.zeros(1)}, classes.names)
    found = TestInputs(Source(digits, lengths)).open(selected, TASK, classes, left_out)
    every = TestInputs(Source(digits, lengths)).open(selected, TASK, classes)
    kept = [n for n in range(len(every.keys)) if n not in (0, 7, 596)]
    assert found.keys.to_pylist() == every.keys.take(pa.array(kept)).to_pylist()
    everything = every.prepared.take(torch.tensor(kept))
    assert torch.equal(found.prepared.take(torch.arange(len(kept))), everything)
    assert torch.equal(found.labels, every.labels[kept])
    assert (found.rows.dropped, every.rows.dropped) == (3, 0)


@pytest.mark.parametrize("method", ["ft", "lora"])
def test_an_ood_cell_tests_the_adapted_encoder_on_its_own_images(
    method: str, digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    trained = work(tmp_path, "id", step(method), encoder=encoder, corpus=digits)
    train_all(trained)
    # Without the shift the predictions of the OOD cell must equal those of the ID cell.
    same = INVERTED.model_copy(update={"shift": None, "name": "digits-again"})
    answers, losses = {}, {}
    (at_home,) = schema.from_table(schema.Cell, trained.output.read_table(schema.CELL))
    digests = {"digits": at_home.test_digest}
    for task in (same, INVERTED):
        spec = step(method, task=task)
        ood = work(tmp_path, task.name, spec, encoder=encoder, corpus=digits, head=trained.output)
        transfer(ood)
        assert {n for n, _ in ood.output.files()} == {schema.CELL, schema.PREDICTIONS}
        answers[task.name] = ood.output.read_table(schema.PREDICTIONS)
        (row,) = schema.from_table(schema.Cell, ood.output.read_table(schema.CELL))
        assert (row.trained_on, row.domain, row.test_reads) == ("digits", "ood", 1)
        losses[task.name] = row.test_loss
        digests[task.name] = row.test_digest
    assert answers["digits-again"].equals(trained.output.read_table(schema.PREDICTIONS))
    assert losses["digits-inverted"] != losses["digits-again"], "the shift reached the images"
    assert digests["digits"] == digests["digits-again"] != digests["digits-inverted"]


def test_another_encoder_or_an_altered_adapter_is_refused(
    digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    trained = work(tmp_path, "id", step("lora"), encoder=encoder, corpus=digits)
    train_all(trained, CONFIGURATIONS[:1])
    other = put_encoder(Folder.of(tmp_path / "other"), seed=1)
    spec = step("lora", task=INVERTED)
    inputs = {"corpus": digits, "head": trained.output}
    with pytest.raises(StageError, match="adapts another encoder"):
        transfer(work(tmp_path, "ood", spec, encoder=other, **inputs))
    trained.output.write_bytes("adapter.safetensors", b"not the weights")
    with pytest.raises(StageError, match=r"not the file that adapter\.json names"):
        transfer(work(tmp_path, "ood", spec, encoder=encoder, **inputs))


def test_an_ood_cell_uses_no_changed_file_of_its_inputs(
    digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    trained = work(tmp_path, "id", step("lora"), encoder=encoder, corpus=digits)
    train_all(trained, CONFIGURATIONS[:1])
    inputs = {"encoder": encoder, "corpus": digits, "head": trained.output}
    for role, folder in inputs.items():
        shutil.copytree(folder.local_path(), tmp_path / role)
    sealed: dict[str, Folder] = {role: seal(tmp_path / role, role) for role in inputs}
    read = {
        "encoder": ("encoder.json", "model.safetensors"),
        "corpus": ("_index.json", "test-00000.parquet"),
        "head": ("head.json", "head.safetensors", "adapter.json", "adapter.safetensors"),
    }
    ood = work(tmp_path, "ood", step("lora", task=INVERTED), **sealed)
    for role, name in ((role, name) for role, names in read.items() for name in names):
        path = tmp_path / role / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(StageError, match=f"^{name} of {role} is not the file that the step"):
            transfer(ood)
        path.write_bytes(whole)
    transfer(ood)


def test_a_configuration_that_diverges_is_a_row_with_its_reason(
    digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    cell = work(tmp_path, "c", step("ft", epochs=3), encoder=encoder, corpus=digits)
    outcome = train_all(cell, (Configuration(lr=1e30), CONFIGURATIONS[0]))
    broken, fine = schema.from_table(schema.Tried, cell.output.read_table(schema.CONFIGURATIONS))
    assert broken.failed is not None
    assert "not finite in epoch" in broken.failed
    assert broken.validation_accuracy is None
    assert (fine.failed, fine.selected, broken.selected) == (None, True, False)
    assert outcome.counts["configurations_failed"] == 1
    alone = work(tmp_path, "alone", step("ft"), encoder=encoder, corpus=digits)
    with pytest.raises(StageError, match="all 1 configurations failed"):
        train_all(alone, (Configuration(lr=1e30),))
    assert not alone.output.exists(schema.CELL)


def test_those_stopped_at_a_rung_are_never_selected() -> None:
    def numbers(accuracy: float, failed: str | None = None) -> EpochNumbers:
        others = dict.fromkeys(("macro_f1", "mean_per_class_accuracy", "f1"), accuracy)
        scores = {"accuracy": accuracy, "matthews": -accuracy, **others}
        return EpochNumbers({}, 1.0, scores, failed)

    stopped, better, worse = [numbers(99)], [numbers(50), numbers(60)], [numbers(50), numbers(55)]
    broken = [numbers(0), numbers(0), numbers(0, "broke")]
    assert select([stopped, worse, better, broken], "accuracy", 2) == 2
    assert select([stopped, worse, better, broken], "matthews", 2) == 1  # the task's own metric
    assert select([stopped], "accuracy", 1) == 0
    assert select([stopped, broken], "accuracy", 3) is None


def test_the_views_reach_training(digits: Folder, encoder: Folder, tmp_path: Path) -> None:
    losses = set()
    for seed in (0, 1):
        views = EncoderTuning(views=VIEWS.model_copy(update={"seed": seed}))
        spec = step("ft", encoder=views)
        cell = Cell.open(work(tmp_path, f"c{seed}", spec, encoder=encoder, corpus=digits))
        losses.add(cell.start(0, CONFIGURATIONS[0]).run_epoch().train["loss"])
    assert len(losses) == 2


def test_impossible_methods_are_refused() -> None:
    with pytest.raises(ValueError, match="linear head on the encoder"):
        Method(head="paper", adapt="lora", space=SPACE)
    with pytest.raises(ValueError, match="leave out mse"):
        Method(head="linear", adapt="ft", space=Space(lr=0.1, mse=1.0))
    with pytest.raises(ValueError, match="goes with the methods that train it"):
        step("ft", encoder=None)
    assert METHODS["ft-nmtune"].space.regularised


def test_autocast_changes_the_arithmetic_alone(encoder: Folder) -> None:
    opened = load(encoder)
    pixels = torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8)
    adapted = AdaptedEncoder(opened, METHODS["ft"], ClassTarget(10), 0)
    full, half = adapted.features(pixels), adapted.features(pixels, "bfloat16")
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    assert torch.allclose(full, half, rtol=0.1, atol=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["ft", "lora", "ft-nmtune"])
def test_a_gpu_affects_it_by_rounding_alone(
    method: str, digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    losses = []
    for gpus in (0, 1):
        spec = step(method, gpus=gpus)
        cell = Cell.open(work(tmp_path, f"g{gpus}", spec, encoder=encoder, corpus=digits))
        losses.append(cell.start(0, CONFIGURATIONS[0]).run_epoch().train["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.parametrize("method", ["ft", "lora", "ft-nmtune"])
def test_no_tensor_is_left_on_the_other_device(
    method: str, digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    losses = []
    for gpus, device in ((0, nullcontext()), (1, pretend.gpu())):
        with device:
            spec = step(method, gpus=gpus)
            cell = Cell.open(work(tmp_path, f"g{gpus}", spec, encoder=encoder, corpus=digits))
            losses.append(cell.start(0, CONFIGURATIONS[0]).run_epoch().train["loss"])
    assert losses[0] == losses[1]

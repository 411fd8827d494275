"""Cells of masks: scores by pixel, losses by share, whole images, heads of other classes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from scenes import CLASSES
from torch.nn import functional

from jobs.contract import StageError
from jobs.corpus.shards import read_part
from jobs.extensions.spec import Extension
from jobs.images import masks, shifts
from jobs.images.spec import Shift
from jobs.tasks.check import link_faults
from jobs.tasks.spec import Task
from jobs.tuning import schema
from jobs.tuning.class_mapping import ClassMapping
from jobs.tuning.digest import digest
from jobs.tuning.frozen import patches
from jobs.tuning.frozen.cell import adapt, evaluate_mapped, transfer
from jobs.tuning.frozen.features import FeatureCache
from jobs.tuning.heads import Shape, StackedHeads
from jobs.tuning.mask_target import MaskTarget
from jobs.tuning.methods import Method
from jobs.tuning.metrics import score_masks
from jobs.tuning.rows import Labelled, TaskClasses, plain_rows, training_rows
from jobs.tuning.search_space import Space
from jobs.tuning.trained import Configuration, step_of
from tests.jobs.tuning.blobs import NMTUNE, step
from tests.jobs.tuning.conftest import MakeWork
from tests.patches import SIDE, Extracted, corpus, extracted

LINEAR = Method(head="linear", space=Space(lr=0.05))
TRIED = [Configuration(lr) for lr in (0.01, 0.05)]


def task(**changes: Any) -> Task:
    fields = {"name": "scenes", "title": "Scenes", "domain": "id", "target": "mask"}
    own = {"metric": "miou", "corpus": corpus(Path("scenes.parquet"))}
    return Task.model_validate(fields | own | changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Extracted:
    return extracted(tmp_path_factory.mktemp("patches"))


def by_pixel(seed: int, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor, Any, Any]:
    """(counts, predicted) of patches, and the same (labels, predictions) pixel by pixel."""
    drawn = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 9, (60, classes), generator=drawn, dtype=torch.int32)
    counts[:, 3] = 0  # of no label
    predicted = torch.randint(0, classes - 1, (4, 60), generator=drawn)
    predicted[1] = 2
    labels = [label for row in counts for label in torch.arange(classes).repeat_interleave(row)]
    pixels = counts.sum(1)
    return counts, predicted, torch.stack(labels), predicted.repeat_interleave(pixels, 1)


def test_scores_are_those_of_single_pixels() -> None:
    counts, predicted, labels, each = by_pixel(0)
    found = score_masks(counts, predicted)
    for member in range(len(predicted)):
        right = (each[member] == labels).double().mean()
        assert found.pixel_accuracy[member] == pytest.approx(100 * float(right), abs=1e-9)
        ious = []
        for label in range(5):
            ours, theirs = each[member] == label, labels == label
            if (ours | theirs).any():
                ious.append(float((ours & theirs).sum() / (ours | theirs).sum()))
        assert found.miou[member] == pytest.approx(100 * np.mean(ious), abs=1e-5)


@pytest.mark.slow  # its import takes seconds
def test_scores_are_those_of_torchmetrics() -> None:
    from torchmetrics.functional import classification as metrics  # slow to import

    for seed in range(3):
        counts, predicted, labels, each = by_pixel(seed)
        found = score_masks(counts, predicted)
        for member in range(len(predicted)):
            theirs = metrics.multiclass_jaccard_index(each[member], labels, 5, average="macro")
            assert float(found.miou[member]) / 100 == pytest.approx(float(theirs), abs=1e-6)
            theirs = metrics.multiclass_accuracy(each[member], labels, 5, average="micro")
            assert float(found.pixel_accuracy[member]) / 100 == pytest.approx(
                float(theirs), abs=1e-6
            )


def test_the_loss_is_the_cross_entropy_of_a_patchs_pixels() -> None:
    counts, _, _, _ = by_pixel(1)
    outputs = torch.randn(3, 5, 60, generator=torch.Generator().manual_seed(1))
    shares = counts / counts.sum(1, keepdim=True)
    target = MaskTarget(5)
    found = target.losses(outputs, counts.expand(3, -1, -1))
    for member in range(3):
        own = functional.cross_entropy(outputs[member].mT, shares, reduction="none")
        assert torch.allclose(found[member], own, atol=1e-6)
    empty = counts.clone()
    empty[:20] = 0
    mean = target.losses(outputs[0].mT, empty, "mean")
    assert mean == pytest.approx(float(found[0, 20:].mean()), rel=1e-5)
    most = replace(target, majority=True)
    hard = most.losses(outputs[0].mT, most.encoded(counts, {}))
    assert torch.allclose(
        hard, functional.cross_entropy(outputs[0].mT, counts.argmax(1), reduction="none")
    )


def test_a_fraction_is_of_images_and_a_larger_one_contains_it(made: Extracted) -> None:
    part = FeatureCache().load(made.folder).train
    classes = TaskClasses.of(task(), CLASSES)
    images: dict[float, set[str]] = {}
    for percent in (30, 60, 100):
        rows = training_rows(part, classes, task(), percent=percent, seed=3)
        images[percent] = set(rows.keys.to_pylist())
        assert len(rows.keys) == SIDE**2 * len(images[percent]), "all patches of its images"
    whole = len(images[100])
    assert [len(images[p]) for p in (30, 60)] == [round(0.3 * whole), round(0.6 * whole)]
    assert images[30] < images[60] < images[100]


@pytest.mark.parametrize("method", [LINEAR, Method(head="released", space=NMTUNE.space)])
def test_a_cell_learns_masks_and_keeps_the_scores_of_each_image(
    made: Extracted, make_work: MakeWork, method: Method
) -> None:
    spec = step(task=task(), method=method, method_name="m", epochs=6)
    work = make_work("cell", spec, features=made.folder)
    outcome = adapt(work, TRIED, FeatureCache())
    (cell,) = schema.from_table(schema.Cell, work.output.read_table(schema.CELL))
    assert cell.test_metric > 40, "one class for all gives about 15"
    assert (cell.metric, cell.test_accuracy, cell.n_classes, cell.views) == ("miou", None, 3, 2)
    assert outcome.metrics["tune/test_miou"] == cell.test_metric
    images = work.output.read_table(schema.PREDICTIONS)
    assert len(images) == made.outcome.counts["rows_test"]
    sums = np.zeros((3, 3))
    for row in images.to_pylist():
        for name, at in (("intersection", 0), ("predicted_pixels", 1), ("labelled_pixels", 2)):
            np.add.at(sums[at], row["classes"], row[name])
        assert len(row["patches"]) == len(row["predicted"])
    ious = sums[0] / (sums[1] + sums[2] - sums[0])
    assert cell.test_metric == pytest.approx(100 * ious.mean(), rel=1e-9)


def test_heads_are_tested_on_classes_of_another_set_by_name(
    made: Extracted, make_work: MakeWork
) -> None:
    trained = make_work(
        "id", step(task=task(), method=LINEAR, method_name="lp"), features=made.folder
    )
    adapt(trained, TRIED, FeatureCache())
    named = {"back": ("sky", "ground"), "box": ("box",)}
    other = task(name="box", domain="ood", trained_on="scenes", classes=named, answers=named)
    work = make_work(
        "ood",
        step(task=other, method=LINEAR, method_name="lp"),
        features=made.folder,
        head=trained.output,
    )
    transfer(work)
    (cell,) = schema.from_table(schema.Cell, work.output.read_table(schema.CELL))
    assert (cell.n_classes, cell.domain) == (2, "ood")
    before = trained.output.read_table(schema.PREDICTIONS).to_pylist()
    after = work.output.read_table(schema.PREDICTIONS).to_pylist()
    for first, second in zip(before, after, strict=True):
        assert [int(label == 2) for label in first["predicted"]] == second["predicted"]
    only = task(name="sky", domain="ood", trained_on="scenes", classes={"sky": ("sky",)})
    rows = plain_rows(
        FeatureCache().load(made.folder).validation, TaskClasses.of(only, CLASSES), only
    )
    assert rows.other_classes > 0, "patches without sky are left out"


def interpolated(outputs: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Outputs [C, P, P] at the centre of each pixel, between the centres of the patches."""
    at = []
    for pixels in size:
        place = (np.arange(pixels) + 0.5) * SIDE / pixels - 0.5
        place = place.clip(0, SIDE - 1)
        low = np.floor(place).astype(int)
        at.append((low, np.minimum(low + 1, SIDE - 1), place - low))
    (top, bottom, down), (left, right, across) = at
    values = outputs.double().numpy()
    upper = values[:, top][:, :, left] * (1 - across) + values[:, top][:, :, right] * across
    lower = values[:, bottom][:, :, left] * (1 - across) + values[:, bottom][:, :, right] * across
    found: np.ndarray = upper * (1 - down[:, None]) + lower * down[:, None]
    return found


def test_masks_are_enlarged_bilinearly_and_scored_by_pixel(
    made: Extracted, make_work: MakeWork, tmp_path: Path
) -> None:
    shift = Shift(kind="rotate", strength=30)
    turned = extracted(tmp_path, shift)
    chosen = task(upsampling="bilinear")
    trained = make_work(
        "id",
        step(task=chosen, method=LINEAR, method_name="lp", epochs=6),
        features=made.folder,
        corpus=made.corpus,
    )
    adapt(trained, TRIED, FeatureCache())
    names = {"back": ("sky", "ground"), "box": ("box",)}
    linked = {"domain": "ood", "trained_on": "scenes", "classes": names, "answers": names}
    other = task(name="turned", upsampling="bilinear", shift=shift, **linked)
    tested = make_work(
        "ood",
        step(task=other, method=LINEAR, method_name="lp"),
        features=turned.folder,
        corpus=turned.corpus,
        head=trained.output,
    )
    transfer(tested)
    state = safetensors.torch.load(trained.output.read_bytes(schema.HEAD))
    for work, source, of in ((trained, made, [0, 1, 2]), (tested, turned, [0, 0, 1])):
        part = patches.read_part(source.folder, "test")
        keys = pa.compute.unique(part.keys)
        stored = read_part(source.corpus, "test", ["key", "mask"]).to_pylist()
        drawn = shifts.draws(keys, shift)
        rows = work.output.read_table(schema.PREDICTIONS).to_pylist()
        sums = np.zeros((3, max(of) + 1))
        for number, (key, row) in enumerate(zip(keys.to_pylist(), rows, strict=True)):
            mask = masks.read(next(s["mask"] for s in stored if s["key"] == key), key)
            if source is turned:
                mask = masks.shifted(mask, shift, drawn[number])
            features = torch.from_numpy(
                part.views[0, number * SIDE**2 : (number + 1) * SIDE**2].astype(np.float32)
            )
            outputs = features @ state["classifier.weight"].mT + state["classifier.bias"]
            large = interpolated(outputs.mT.reshape(-1, SIDE, SIDE), mask.shape)
            guess = np.array(of)[large.argmax(0)]
            label = np.array([*of, *[-1] * (256 - len(of))])[mask]
            own = np.zeros((3, max(of) + 1))
            for c in range(max(of) + 1):
                meant, guessed = label == c, (guess == c) & (label >= 0)
                own[:, c] = (meant & guessed).sum(), guessed.sum(), meant.sum()
            assert row["key"] == key
            for name, at in (("intersection", 0), ("predicted_pixels", 1), ("labelled_pixels", 2)):
                assert row[name] == own[at, row["classes"]].tolist()
            sums += own
        (cell,) = schema.from_table(schema.Cell, work.output.read_table(schema.CELL))
        iou = 100 * (sums[0] / (sums[1] + sums[2] - sums[0])).mean()
        assert cell.test_metric == pytest.approx(iou, rel=1e-9)
    nearest = make_work(
        "nearest", step(task=task(), method=LINEAR, method_name="lp"), features=made.folder
    )
    assert "upsampling" not in step_of(nearest).semantic()["task"], "no step changes its name"


def test_heads_are_compared_over_the_same_upsampling() -> None:
    other = task(name="box", domain="ood", trained_on="scenes", upsampling="bilinear")
    (fault,) = link_faults(other, {"scenes": task()})
    assert fault.startswith("upsampling: bilinear, but scenes has nearest")
    assert list(link_faults(other, {"scenes": task(upsampling="bilinear")})) == []


def test_the_mapped_loss_is_the_surprise_of_a_patchs_pixels() -> None:
    mapping = ClassMapping(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]), 2)
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([[3, 1]]).expand(7, -1)
    losses, predicted = mapping.choose(logits, counts)
    p = logits.double().softmax(1)
    wanted = -(0.75 * (p[:, 0] + p[:, 1]).log() + 0.25 * p[:, 2].log())
    assert torch.allclose(losses, wanted)
    assert predicted.tolist() == [int(row.argmax() == 2) for row in logits]


def test_the_digest_depends_on_the_masks(made: Extracted) -> None:
    part = FeatureCache().load(made.folder).validation
    samples = part.plain(plain_rows(part, TaskClasses.of(task(), CLASSES), task()))
    other = samples.labels.clone()
    other[0, 0] += 1
    in_memory = Labelled(samples.features[0 : len(other)], samples.labels)
    assert digest(samples) == digest(in_memory)
    assert digest(samples) != digest(Labelled(samples.features, other))


def test_a_stack_of_one_reads_patches_as_it_reads_tensors(made: Extracted) -> None:
    part = FeatureCache().load(made.folder).validation
    samples = part.plain(plain_rows(part, TaskClasses.of(task(), CLASSES), task()))
    heads = StackedHeads.fresh(Shape("linear", 16, MaskTarget(3)), 1, 0)
    mapping = ClassMapping(torch.tensor([2, 1, 0]), torch.tensor([0, 1, 2]), 3)
    loss, predicted = evaluate_mapped(heads, samples, mapping)
    assert predicted.shape == (1, len(samples.labels))
    assert loss.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": Method(head="linear", adapt="ft", space=Space(lr=0.1))}, "trains the encoder"),
        ({"method": Method(head="ridge", space=Space(l2=0.1))}, "use a head that is trained"),
        ({"method": LINEAR, "label_noise": 10}, "label_noise 10 replaces the label of a row"),
    ],
)
def test_what_masks_cannot_have_is_refused(changes: dict[str, Any], message: str) -> None:
    encoder = {"encoder": {"views": {}}} if "trains" in message else {}
    with pytest.raises(ValidationError, match=message):
        step(task=task(), method_name="m", **changes, **encoder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "accuracy"}, "a mask is judged by miou, pixel_accuracy"),
        ({"source": "features", "corpus": None}, "predicts masks, which only a corpus of images"),
        ({"target": "class", "metric": "accuracy"}, "set `target: mask`"),
        ({"target": "class", "metric": "accuracy", "patch_label": "majority"}, "leave it out"),
        ({"target": "class", "metric": "accuracy", "upsampling": "bilinear"}, "leave it out"),
    ],
)
def test_a_task_file_of_masks_that_means_nothing_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        task(**changes)


def test_masks_of_one_class_teach_nothing(made: Extracted) -> None:
    part = FeatureCache().load(made.folder).train
    only = task(classes={"sky": ("sky",), "none": ("ground",)})
    classes = TaskClasses.of(only, CLASSES)
    lone = replace(part, labels=np.where(np.arange(3) == 0, part.labels, 0))
    with pytest.raises(StageError, match="have pixels of 1 of its 2 classes"):
        training_rows(lone, classes, only, percent=100, seed=0)
    assert isinstance(part.keys, pa.Array)


MEANS = """
import torch
from torch import nn

class Means(nn.Module):
    def __init__(self, dim, outputs):
        super().__init__()
        self.register_buffer("means", torch.zeros(outputs, dim))

    def prepare(self, features, targets, hyper):
        self.means[:] = features.mean(0)

    def forward(self, features):
        return -torch.cdist(features, self.means)
"""


def test_a_method_that_needs_all_rows_is_left_out_of_tasks_of_masks(
    made: Extracted, make_work: MakeWork
) -> None:
    own = Method(head="mine:Means", space=Space())
    spec = step(task=task(), method=own, method_name="means", source=Extension.of("mine", MEANS))
    work = make_work("means", spec, features=made.folder)
    with pytest.raises(StageError, match="; leave this method out of experiments with tasks of ma"):
        adapt(work, [Configuration(None)], FeatureCache())
    rest = step(task=task(), method=LINEAR, method_name="lp", epochs=1)
    assert adapt(make_work("lp", rest, features=made.folder), TRIED[:1], FeatureCache()).metrics

"""What the authors' code does in another way, as settings of a method: each alone, and refused
where it has no meaning. Results made before the settings existed keep their identity."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.contract import StageError
from jobs.images.views import augmented
from jobs.storage.folder import Folder
from jobs.tuning import schema
from jobs.tuning.budget import Budget
from jobs.tuning.finetune.cell import Cell, State, state_name, transfer
from jobs.tuning.finetune.train import EpochNumbers
from jobs.tuning.frozen import cell as frozen_cell
from jobs.tuning.frozen import fit
from jobs.tuning.frozen.cell import adapt, adapt_siblings
from jobs.tuning.frozen.features import FeatureCache
from jobs.tuning.frozen.siblings import sibling_key
from jobs.tuning.frozen.stack import Group, Stack
from jobs.tuning.heads import Shape, StackedHeads, Start
from jobs.tuning.label_noise import corrupted
from jobs.tuning.methods import HeadKind, Method
from jobs.tuning.rows import Labelled
from jobs.tuning.schedule import share
from jobs.tuning.search_space import Space
from jobs.tuning.spec import Tuning, TuningSettings
from jobs.tuning.target import ClassTarget
from jobs.tuning.trained import Configuration
from tests.jobs.tuning import blobs
from tests.jobs.tuning.conftest import MakeWork, WriteFeatures
from tests.jobs.tuning.finetune import digits as images
from tests.jobs.tuning.finetune.conftest import digits, encoder  # noqa: F401
from tests.jobs.tuning.finetune.digits import CONFIGURATIONS, train_all
from tests.jobs.tuning.frozen.test_fit import tried
from tests.jobs.tuning.frozen.test_frozen_cell import read_cell

CPU = torch.device("cpu")
SPACE = Space.model_validate({"lr": {"loguniform": [1e-3, 1e-2]}})
SHAPE = Shape("released", 6, ClassTarget(3))


def released(**changes: object) -> Method:
    return Method.model_validate({"head": "released", "space": SPACE} | changes)


# -- identity and refusals -------------------------------------------------------------------------


def test_settings_left_at_their_defaults_bear_no_identity() -> None:
    fields = {"head", "space", "templates", "adapt", "rank", "encoder_lr"}
    assert released().semantic().keys() == fields
    said = released(views=2, classifier_init="kaiming_uniform", residual_scale=0.5).semantic()
    assert said.keys() == fields | {"views", "classifier_init", "residual_scale"}
    assert "label_noise_classes" not in blobs.step(label_noise=10.0).semantic()
    every = blobs.step(label_noise=10.0, label_noise_classes="all").semantic()
    assert every["label_noise_classes"] == "all"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "paper", "residual": False}, "residual belongs to head: released; leave it out"),
        ({"head": "linear", "residual_scale": 0.5}, "residual_scale belongs to head: released"),
        ({"residual": False, "residual_scale": 0.5}, "released with residual: true; leave it out"),
        ({"residual_scale": 0}, "greater than 0"),
        ({"views": -1}, "greater than or equal to 0"),
        ({"encoder_mode": "train"}, "encoder_mode belongs to adapt: lora or ft; leave it out"),
        ({"head": "ridge", "space": {"l2": 1}, "views": 0}, "views belongs to heads that are"),
        (
            {"head": "lbfgs", "space": {"l2": 1}, "classifier_init": "kaiming_uniform"},
            "classifier_init belongs to heads that are trained by steps; leave it out",
        ),
    ],
)
def test_a_setting_without_a_meaning_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        released(**changes)


def test_classes_of_label_noise_need_label_noise() -> None:
    methods = {"lp": {"head": "linear", "space": {"lr": 0.1}}}
    given = {"methods": methods, "label_noise_classes": "all"}
    with pytest.raises(ValueError, match="give label_noise a level above 0, or leave it out"):
        Tuning.model_validate(given)
    assert Tuning.model_validate(given | {"label_noise": [0, 20]}).label_noise_classes == "all"


# -- heads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "paper", "released"])
def test_a_kaiming_classifier_is_torchs_without_a_bias(kind: HeadKind) -> None:
    shape, start = Shape(kind, 600, ClassTarget(50)), Start("kaiming_uniform")
    ours = StackedHeads.fresh(shape, 1, 0).member(0)
    theirs = StackedHeads.fresh(shape, 1, 0, start=start).member(0)
    reference = torch.nn.init.kaiming_uniform_(torch.empty(50, 600))
    found = theirs["classifier.weight"]
    assert float(found.abs().max()) == pytest.approx(float(reference.abs().max()), rel=0.01)
    assert float(found.std()) == pytest.approx(float(reference.std()), rel=0.02)
    assert torch.equal(found, ours["classifier.weight"] * math.sqrt(6))
    assert not theirs["classifier.bias"].any()
    assert ours["classifier.bias"].any()
    others = ours.keys() - {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(ours[name], theirs[name]) for name in others)


def test_without_the_residual_the_output_is_the_networks() -> None:
    rows = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    with_it = StackedHeads.fresh(SHAPE, 1, 0, start=Start(residual_scale=0.5))
    without = StackedHeads.fresh(Shape("released", 6, ClassTarget(3), residual=False), 1, 0)
    assert "residual.scale" not in without.parameters
    own, _ = without.forward(rows, training=True)
    added, _ = with_it.forward(rows, training=True)
    torch.testing.assert_close(added, 0.5 * own + rows.mT)


# -- views -----------------------------------------------------------------------------------------


def test_an_epoch_takes_the_next_views_in_turn() -> None:
    budget = Budget(4, 16, views=2)
    assert [budget.views_of(epoch, 5) for epoch in (1, 2, 3, 4)] == [[0, 1], [2, 3], [4, 0], [1, 2]]
    assert Budget(4, 16).views_of(3, 3) == [0, 1, 2]
    assert Budget(4, 16, views=2).views_of(3, 1) == [0]  # the plain image alone


def test_a_stack_trains_on_the_views_of_the_epoch() -> None:
    """With the right views in each epoch's place, the stack that has all views gives the same."""
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(4, 40, 6, generator=generator)
    labels = torch.arange(40) % 3
    tried_ones = [Configuration(0.01, mse=1.0, cov=0.04, svd=0.001), Configuration(0.02)]
    validation = Labelled(views[0], labels)

    def stack(features: torch.Tensor, of_epoch: int | None) -> Stack:
        group = Group(Labelled(features, labels), tried_ones, 0)
        return Stack(SHAPE, [group], validation, Budget(2, 16, views=of_epoch))

    fresh, first = stack(views, 2), stack(views[:2], None)
    fresh.run_epoch()
    first.run_epoch()
    assert torch.equal(fresh.epochs[0].validation_loss, first.epochs[0].validation_loss)
    first._sources = [(views[2:], 0)]
    fresh.run_epoch()
    first.run_epoch()
    assert torch.equal(fresh.epochs[1].validation_loss, first.epochs[1].validation_loss)


def test_a_cell_on_the_plain_image_is_the_cell_of_features_without_views(
    write_features: WriteFeatures, make_work: MakeWork
) -> None:
    cells = []
    for name, views, spec in (
        ("plain", 0, blobs.step()),
        ("asked", 2, blobs.step(method=blobs.NMTUNE.model_copy(update={"views": 0}))),
    ):
        features = write_features(name, views=views)
        work = make_work(name, spec, features=features)
        adapt(work, tried(work), FeatureCache())
        cells.append(read_cell(work.output))
    assert cells[0].views == cells[1].views == 0
    assert cells[0] == cells[1]


def test_more_views_than_the_features_have_are_refused(
    write_features: WriteFeatures, make_work: MakeWork
) -> None:
    spec = blobs.step(method=blobs.NMTUNE.model_copy(update={"views": 3}))
    work = make_work("cell", spec, features=write_features())
    with pytest.raises(StageError, match=r"on 3 views of each training image .* features have 2"):
        adapt(work, tried(work), FeatureCache())


# -- cells -----------------------------------------------------------------------------------------


def test_siblings_with_these_settings_are_the_cells_they_would_be_alone(
    write_features: WriteFeatures, make_work: MakeWork
) -> None:
    features = write_features(views=4)
    space = Space.model_validate({"lr": {"loguniform": [1e-3, 1e-2]}, "mse": 1, "svd": 0.1})
    changes: list[dict[str, object]] = [
        {"method": released(views=1, space=space)},
        {"method": released(views=1, classifier_init="kaiming_uniform")},
        {"method": released(views=1, residual_scale=0.5), "seed": 3},
        {"method": released(views=1), "label_noise": 40.0, "label_noise_classes": "all"},
    ]

    def works(prefix: str) -> list[fit.Work]:
        return [
            make_work(f"{prefix}-{n}", blobs.step(**dict(one)), features=features)
            for n, one in enumerate(changes)
        ]

    together = works("together")
    assert len({sibling_key(work) for work in together}) == 1
    apart = blobs.step(method=released(views=1, residual=False))
    two = blobs.step(method=released(views=2))
    for other in (apart, two):
        assert sibling_key(make_work("x", other, features=features)) != sibling_key(together[0])
    losses = set()
    for work, _ in adapt_siblings(together, [tried(w) for w in together], FeatureCache()):
        mine = read_cell(work.output)
        own = works("alone")[int(work.address[-1])]
        adapt(own, tried(own), FeatureCache())
        theirs = read_cell(own.output)
        assert mine.selected == theirs.selected
        assert mine.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-4)
        losses.add(round(mine.validation_loss, 6))
    assert len(losses) == len(changes), "each setting reached training"


def test_a_head_without_residual_is_tested_on_another_task(
    write_features: WriteFeatures, make_work: MakeWork
) -> None:
    features, method = write_features(), released(residual=False)
    trained = make_work("id", blobs.step(method=method), features=features)
    adapt(trained, tried(trained), FeatureCache())
    spec = blobs.step(method=method, task=blobs.ood_task())
    ood = make_work("ood", spec, features=features, head=trained.output)
    frozen_cell.transfer(ood)
    assert read_cell(ood.output).test_loss == read_cell(trained.output).test_loss


def test_label_noise_among_all_classes_is_nested_and_keeps_a_share_right() -> None:
    labels, keys = np.zeros(30_000, np.int64), pa.array([f"k{row}" for row in range(30_000)])
    low, high = (
        corrupted(labels, keys, classes=4, percent=p, seed=0, scope="x", among="all")
        for p in (20, 50)
    )
    assert abs(np.bincount(high, minlength=4)[1:] - 15_000 / 4).max() < 200
    assert (high[low != labels] == low[low != labels]).all()


# -- encoders in train mode ------------------------------------------------------------------------


def fine_tuned(adapt_by: str, **changes: object) -> Method:
    fields = {"head": "linear", "adapt": adapt_by, "space": images.SPACE, "encoder_mode": "train"}
    return Method.model_validate(fields | ({"rank": 2} if adapt_by == "lora" else {}) | changes)


@pytest.mark.parametrize("adapt_by", ["ft", "lora"])
def test_an_encoder_in_train_mode_continues_with_the_same_numbers(
    adapt_by: str,
    digits: Folder,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The encoder has BatchNorm and dropout, and each epoch has one view of its own."""
    dropping = images.put_encoder(Folder.of(tmp_path / "encoder"), drop_path_rate=0.3)
    spec = images.step(fine_tuned(adapt_by, views=1), epochs=2)
    whole, broken = (
        images.work(tmp_path, name, spec, encoder=dropping, corpus=digits) for name in "wb"
    )
    tuning = Cell.open(whole).start(0, CONFIGURATIONS[0])
    norm = tuning.adapted.encoder.model.bn1
    before = norm.running_mean.clone()
    for _ in range(2):
        tuning.run_epoch()
        torch.rand(3)  # a process that continues has another global generator
        opened = Cell.open(broken)
        going = opened.start(0, CONFIGURATIONS[0])
        going.run_epoch()
        opened.keep(0, going)
    assert not norm.training, "validation is in eval mode"
    assert not torch.equal(before, norm.running_mean)
    left = State.read(broken.scratch.read_bytes(state_name(0)))
    assert left.history == tuple(tuning.history)
    for name, value in tuning.adapted.state().items():
        assert torch.equal(value, left.encoder[name]), name
    still = images.step(fine_tuned(adapt_by, views=1, encoder_mode="eval"), epochs=2)
    other = Cell.open(images.work(tmp_path, "e", still, encoder=dropping, corpus=digits))
    assert other.start(0, CONFIGURATIONS[0]).run_epoch() != tuning.history[0]


def test_an_encoder_in_training_sees_the_views_of_the_epoch(
    digits: Folder,  # noqa: F811
    encoder: Folder,  # noqa: F811
    tmp_path: Path,
) -> None:
    samples = torch.arange(3)
    for views, wanted in ((1, [[1], [2]]), (2, [[1, 2], [1, 2]]), (None, [[1, 2], [1, 2]])):
        spec = images.step(fine_tuned("ft", views=views, encoder_mode="eval"))
        cell = Cell.open(images.work(tmp_path, f"{views}", spec, encoder=encoder, corpus=digits))
        tuning = cell.start(0, CONFIGURATIONS[0])
        pixels, keys = cell.training.prepared.take(samples), cell.training.keys[:3]
        for numbers in wanted:
            seen = [augmented(pixels, keys, images.VIEWS, n, "digits") for n in numbers]
            assert torch.equal(tuning._views(samples), torch.cat(seen))
            tuning.history.append(EpochNumbers({}, 1.0, {}))
    plain = images.step(fine_tuned("ft", views=0))
    cell = Cell.open(images.work(tmp_path, "plain", plain, encoder=encoder, corpus=digits))
    seen = cell.start(0, CONFIGURATIONS[0])._views(samples)
    assert torch.equal(seen, cell.training.prepared.take(samples) / 255)


def test_adapters_trained_in_train_mode_bring_their_statistics_to_an_ood_task(
    digits: Folder,  # noqa: F811
    encoder: Folder,  # noqa: F811
    tmp_path: Path,
) -> None:
    method = fine_tuned("lora")
    trained = images.work(tmp_path, "id", images.step(method), encoder=encoder, corpus=digits)
    train_all(trained, CONFIGURATIONS[:1])
    same = images.INVERTED.model_copy(update={"shift": None, "name": "digits-again"})
    spec = images.step(method, task=same)
    ood = images.work(tmp_path, "o", spec, encoder=encoder, corpus=digits, head=trained.output)
    transfer(ood)
    assert ood.output.read_table(schema.PREDICTIONS).equals(
        trained.output.read_table(schema.PREDICTIONS)
    )


def test_a_linear_schedule_falls_evenly_and_cosine_stays_the_default() -> None:
    assert [share("linear", step, 4) for step in range(4)] == [1, 0.75, 0.5, 0.25]
    assert share("cosine", 0, 4) == 1
    assert share("cosine", 2, 4) == pytest.approx(0.5)
    assert Budget(4, 16).schedule == "cosine"
    plain, linear = TuningSettings(), TuningSettings(schedule="linear")
    assert "schedule" not in plain.semantic(), "results made before it existed keep their identity"
    assert linear.semantic() == plain.semantic() | {"schedule": "linear"}

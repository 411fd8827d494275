"""Tasks whose target is a number: predictions in its units, selection by its metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.contract import StageError, Work
from jobs.storage.folder import Folder
from jobs.tasks.check import faults, link_faults
from jobs.tasks.registry import load
from jobs.tasks.spec import Task
from jobs.tuning import schema
from jobs.tuning.digest import digest
from jobs.tuning.frozen.cell import adapt, adapt_siblings, transfer
from jobs.tuning.frozen.features import FeatureCache, read_part
from jobs.tuning.frozen.siblings import sibling_key
from jobs.tuning.methods import Method
from jobs.tuning.rows import TaskClasses, plain_rows, training_rows
from jobs.tuning.search_space import Space
from jobs.tuning.spec import TuneStep
from jobs.tuning.trained import Configuration
from tests.jobs.tuning.blobs import DIM, NMTUNE, step
from tests.jobs.tuning.conftest import MakeWork

SIZES = {"train": 120, "validation": 60, "test": 70}
MEAN, DEVIATION = 2000.0, 30.0  # far from the outputs of an untrained head
TASK = Task(
    name="years",
    title="Years",
    domain="id",
    source="features",
    target="number",
    metric="pearson_spearman",
)
OOD = TASK.model_copy(update={"name": "later", "domain": "ood", "trained_on": "years"})
LINEAR = Method(head="linear", space=Space(lr=0.05))
RIDGE = Method(head="ridge", space=Space.model_validate({"l2": {"loguniform": [1e-4, 1]}}))
RELEASED = Method(head="released", space=NMTUNE.space)
RATES = [Configuration(lr) for lr in (0.01, 0.03, 0.1)]
REGULARISED = [Configuration(0.003, mse=0.01 * k, cov=0.01, svd=0.01 * k) for k in range(3)]
L2 = [Configuration(0.0, l2=l2) for l2 in (1e-4, 1e-2, 10.0)]


def write(
    folder: Folder, *, views: int = 2, scale: tuple[float, float] = (MEAN, DEVIATION)
) -> Folder:
    """Write features that are linear in the target, plus noise; `scale`: (mean, deviation)."""
    slope = np.random.default_rng(99).normal(size=DIM)
    for part, rows in SIZES.items():
        generator = np.random.default_rng(len(part))
        number = generator.normal(size=rows)
        plain = number[:, None] * slope + 0.3 * generator.normal(size=(rows, DIM))
        tables = []
        for view in range(views + 1) if part == "train" else (0,):
            moved = plain + (0.1 * generator.normal(size=plain.shape) if view else 0)
            flat = pa.array(moved.astype(np.float32).ravel())
            columns = {
                "key": [f"{part}-{row:04d}" for row in range(rows)],
                "view": pa.array([view] * rows, pa.int16()),
                "label": pa.array(scale[0] + scale[1] * number, pa.float64()),
                "vector": pa.FixedSizeListArray.from_arrays(flat, DIM),
            }
            tables.append(pa.table(columns))
        folder.write_table(f"features-{part}.parquet", pa.concat_tables(tables))
    folder.write_json("classes.json", [])
    return folder


@pytest.fixture
def features(tmp_path: Path) -> Folder:
    return write(Folder.of(tmp_path / "features"))


def spec(method: Method = LINEAR, **changes: Any) -> TuneStep:
    return step(task=TASK, method=method, method_name="m", epochs=6, **changes)


def cell_of(work: Work) -> schema.Cell:
    (cell,) = schema.from_table(schema.Cell, work.output.read_table(schema.CELL))
    return cell


def tried_of(work: Work) -> list[schema.Tried]:
    return schema.from_table(schema.Tried, work.output.read_table(schema.CONFIGURATIONS))


@pytest.mark.parametrize(
    ("method", "configurations"),
    [(LINEAR, RATES), (NMTUNE, REGULARISED), (RELEASED, REGULARISED), (RIDGE, L2)],
)
def test_a_number_is_predicted_in_its_own_units(
    features: Folder, make_work: MakeWork, method: Method, configurations: Sequence[Configuration]
) -> None:
    work = make_work("cell", spec(method), features=features)
    outcome = adapt(work, configurations, FeatureCache())
    cell = cell_of(work)
    assert cell.metric == "pearson_spearman"
    assert cell.test_metric > 90
    assert cell.n_classes == 0
    assert cell.test_accuracy is cell.test_macro_f1 is cell.validation_accuracy is None
    answers = work.output.read_table(schema.PREDICTIONS)
    assert answers.column_names == ["key", "target", "predicted"]
    target, predicted = answers["target"].to_numpy(), answers["predicted"].to_numpy()
    assert np.corrcoef(target, predicted)[0, 1] > 0.9
    assert abs(predicted.mean() - MEAN) < DEVIATION
    train = read_part(features, "train").labels
    error = np.mean((target - predicted) ** 2) / train.var()
    assert cell.test_loss == pytest.approx(error, rel=1e-4)
    assert outcome.metrics == {
        "tune/validation_pearson_spearman": cell.validation_metric,
        "tune/test_pearson_spearman": cell.test_metric,
    }


def test_selection_is_by_the_tasks_own_metric_on_validation(
    features: Folder, make_work: MakeWork
) -> None:
    work = make_work("cell", spec(), features=features)
    adapt(work, [Configuration(1e-6), Configuration(0.05), Configuration(1e9)], FeatureCache())
    tried = tried_of(work)
    scores = [row.validation_metric or -100.0 for row in tried]
    assert cell_of(work).selected == int(np.argmax(scores)) == 1
    assert all(row.train_ce is None for row in tried)
    assert tried[1].train_squared_error is not None
    curves = schema.from_table(schema.Point, work.output.read_table(schema.CURVES))
    assert {"train/squared_error", "validation/pearson"} < {point.metric for point in curves}
    assert not any("accuracy" in point.metric for point in curves)


@pytest.mark.parametrize("method", [LINEAR, NMTUNE, RELEASED])
def test_stacked_members_and_cells_get_what_they_would_get_alone(
    features: Folder, make_work: MakeWork, method: Method
) -> None:
    tried = RATES if method is LINEAR else REGULARISED
    works = [
        make_work(f"seed={seed}", spec(method, seed=seed, fraction=50.0), features=features)
        for seed in (0, 1)  # other rows, so other mean and deviation of the targets
    ]
    assert len({sibling_key(work) for work in works}) == 1
    assert len(list(adapt_siblings(works, [tried] * 2, FeatureCache()))) == 2
    for work in works:
        together, cell = tried_of(work), cell_of(work)
        for index, configuration in enumerate(tried):
            alone = make_work(f"{work.address}/{index}", work.spec, features=features)  # type: ignore[arg-type]
            adapt(alone, [configuration], FeatureCache())
            (row,) = tried_of(alone)
            assert row.train_loss == pytest.approx(together[index].train_loss, rel=1e-4)
            assert row.validation_loss == pytest.approx(together[index].validation_loss, rel=1e-4)
            assert row.validation_metric == pytest.approx(
                together[index].validation_metric, abs=1e-3
            )
        best = max(range(3), key=lambda k: together[k].validation_metric or -100.0)
        assert cell.selected == best


def test_the_units_of_a_target_do_not_change_what_is_learned(
    features: Folder, tmp_path: Path, make_work: MakeWork
) -> None:
    plain = write(Folder.of(tmp_path / "plain"), scale=(0.0, 1.0))
    works = [make_work(f.uri[-5:], spec(), features=f) for f in (features, plain)]
    for work in works:
        adapt(work, RATES, FeatureCache())
    one, two = map(cell_of, works)
    assert one.selected == two.selected
    assert one.test_metric == pytest.approx(two.test_metric, abs=1e-3)
    assert one.test_loss == pytest.approx(two.test_loss, rel=1e-3)


def test_ridge_is_the_least_squares_solution(features: Folder, make_work: MakeWork) -> None:
    work = make_work("cell", spec(RIDGE), features=features)
    adapt(work, [Configuration(0.0, l2=1e-9)], FeatureCache())
    train, test = read_part(features, "train"), read_part(features, "test")
    rows = train.views.reshape(-1, DIM).astype(np.float64)
    with_bias = np.hstack([rows, np.ones((len(rows), 1))])
    solved, *_ = np.linalg.lstsq(with_bias, np.tile(train.labels, len(train.views)), rcond=None)
    expected = np.hstack([test.views[0], np.ones((SIZES["test"], 1))]) @ solved
    found = work.output.read_table(schema.PREDICTIONS)["predicted"].to_numpy()
    assert found == pytest.approx(expected, rel=1e-5)


def test_an_ood_task_of_numbers_is_predicted_by_the_same_head(
    features: Folder, tmp_path: Path, make_work: MakeWork
) -> None:
    work = make_work("cell", spec(), features=features)
    adapt(work, RATES, FeatureCache())
    other = make_work(
        "ood",
        spec().model_copy(update={"task": OOD}),
        features=write(Folder.of(tmp_path / "moved"), scale=(MEAN + DEVIATION, DEVIATION)),
        head=work.output,
    )
    outcome = transfer(other)
    cell = cell_of(other)
    assert cell.test_metric == pytest.approx(cell_of(work).test_metric)  # the same order
    assert cell.test_loss > cell_of(work).test_loss + 0.5
    assert set(outcome.metrics) == {"tune/test_pearson_spearman"}


def test_a_fraction_is_selected_by_key_and_contains_smaller_ones(features: Folder) -> None:
    part = read_part(features, "train")
    whole = TaskClasses.of(TASK, ())
    kept = {
        percent: set(training_rows(part, whole, TASK, percent=percent, seed=3).keys.to_pylist())
        for percent in (10.0, 50.0, 100.0)
    }
    assert [len(keys) for keys in kept.values()] == [12, 60, 120]
    assert kept[10.0] < kept[50.0] < kept[100.0]


def test_targets_that_teach_nothing_and_labels_of_the_other_kind_are_refused(
    features: Folder,
) -> None:
    part, whole = read_part(features, "train"), TaskClasses.of(TASK, ())
    alike = replace(part, labels=np.full(SIZES["train"], 7.5))
    with pytest.raises(StageError, match=r"years: the training rows .* have the target 7\.5"):
        training_rows(alike, whole, TASK, percent=100, seed=0)
    classes = replace(part, labels=np.arange(SIZES["train"]) % 2)
    with pytest.raises(StageError, match="predicts a number, but the labels"):
        plain_rows(classes, whole, TASK)
    of_classes = Task(name="c", title="c", domain="id", source="features")
    with pytest.raises(StageError, match="predicts a class, but the labels"):
        plain_rows(part, TaskClasses.of(of_classes, ("a", "b")), of_classes)
    one = replace(part, labels=part.labels[:1], keys=part.keys[:1], views=part.views[:, :1])
    with pytest.raises(StageError, match="a correlation needs two"):
        plain_rows(one, whole, TASK)


def test_the_digest_tells_targets_apart(features: Folder, tmp_path: Path) -> None:
    def mark(folder: Folder) -> str:
        part = read_part(folder, "test")
        return digest(part.plain(plain_rows(part, TaskClasses.of(TASK, ()), TASK)))

    again = write(Folder.of(tmp_path / "again"))
    moved = write(Folder.of(tmp_path / "moved"), scale=(MEAN, DEVIATION + 1e-9))
    assert mark(features) == mark(again) != mark(moved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": Method(head="lbfgs", space=Space(l2=0.1))}, "needs classes.*use ridge"),
        ({"method": Method(head="zero_shot")}, "is zero-shot.*needs classes"),
        ({"label_noise": 20.0}, "label_noise 20 replaces labels"),
    ],
)
def test_settings_without_a_meaning_for_numbers_are_refused(
    change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        spec(**change)


def test_tasks_of_numbers_are_checked_like_the_others() -> None:
    shipped = load("glue-stsb")
    assert shipped.target == "number"
    assert list(faults(shipped)) == []
    assert list(link_faults(OOD, {"years": TASK})) == []
    of_classes = TASK.model_copy(update={"target": "class", "metric": "accuracy"})
    assert "predicts a class" in next(iter(link_faults(OOD, {"years": of_classes})))
    with pytest.raises(ValueError, match="give its features"):
        Task.model_validate(TASK.model_dump() | {"source": "images", "corpus": step().task.corpus})


def test_a_member_that_diverges_is_a_row_with_its_reason(
    features: Folder, make_work: MakeWork
) -> None:
    work = make_work("cell", spec(NMTUNE), features=features)
    adapt(work, [Configuration(1e30), Configuration(0.003)], FeatureCache())
    first, second = tried_of(work)
    assert first.failed is not None
    assert (first.validation_metric, first.train_squared_error) == (None, None)
    assert second.selected
    assert torch.isfinite(torch.tensor(second.validation_metric or torch.nan))

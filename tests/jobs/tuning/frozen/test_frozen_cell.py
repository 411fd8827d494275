"""One cell from features to files: what is written, and that the test part is read last."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from jobs.contract import StageError
from jobs.storage.folder import Folder
from jobs.tuning import schema
from jobs.tuning.frozen import cell as cell_module
from jobs.tuning.frozen.cell import adapt, transfer
from jobs.tuning.frozen.features import FeatureCache
from jobs.tuning.trained import Configuration, Fit
from tests.jobs.tuning.blobs import CLASSES, DIM, SIZES, id_task, ood_task, step
from tests.jobs.tuning.conftest import MakeWork, WriteFeatures

TRIED = [
    Configuration(lr=1e-4),
    Configuration(lr=1e-2, weight_decay=1e-4, mse=0.01, cov=0.01, svd=0.01),
    Configuration(lr=1e38),
]


def read_cell(output: Folder) -> schema.Cell:
    (cell,) = schema.from_table(schema.Cell, output.read_table(schema.CELL))
    return cell


def test_an_id_cell_writes_its_tables_and_they_agree(
    write_features: WriteFeatures, make_work: MakeWork
) -> None:
    work = make_work("cell", step(), features=write_features())
    outcome = adapt(work, TRIED, FeatureCache())
    cell = read_cell(work.output)
    tried = schema.from_table(schema.Tried, work.output.read_table(schema.CONFIGURATIONS))
    predictions = work.output.read_table(schema.PREDICTIONS)
    right = pc.sum(pc.equal(predictions["label"], predictions["predicted"])).as_py()
    assert cell.test_accuracy == pytest.approx(100 * right / SIZES["test"])
    assert cell.test_metric == cell.test_accuracy
    assert predictions["key"].to_pylist() == sorted(f"test-{i:04d}" for i in range(SIZES["test"]))
    assert [row.selected for row in tried] == [False, True, False]
    assert tried[cell.selected].validation_accuracy == cell.validation_accuracy
    assert (cell.lr, cell.mse, cell.test_reads) == (1e-2, 0.01, 1)
    assert (tried[2].validation_accuracy, tried[2].train_ce) == (None, None)
    assert tried[2].failed is not None
    assert (cell.configurations, cell.configurations_failed) == (3, 1)
    assert (cell.n_train, cell.n_validation, cell.n_test) == tuple(SIZES.values())
    assert outcome.metrics == {
        "tune/validation_accuracy": cell.validation_accuracy,
        "tune/test_accuracy": cell.test_accuracy,
        "tune/test_macro_f1": cell.test_macro_f1,
    }
    assert outcome.counts["test_reads"] == 1
    answers = set(predictions["predicted"].to_pylist())
    assert outcome.counts["distinct_predictions"] == len(answers) > 1
    curves = schema.from_table(schema.Point, work.output.read_table(schema.CURVES))
    last = {point.metric: point.value for point in curves if point.step == cell.epochs}
    assert last["validation/accuracy"] == cell.validation_accuracy
    assert last["train/svd"] == tried[1].train_svd
    assert len(curves) == 8 * cell.epochs


def test_the_same_cell_twice_is_the_same_bytes(
    write_features: WriteFeatures, make_work: MakeWork
) -> None:
    contents = []
    for shuffle in (None, 5):
        features = write_features(f"features-{shuffle}", shuffle=shuffle)
        work = make_work(f"cell-{shuffle}", step(fraction=50.0), features=features)
        adapt(work, TRIED, FeatureCache())
        contents.append({name: work.output.read_bytes(name) for name, _ in work.output.files()})
    assert len(contents[0]) == 6
    assert contents[0] == contents[1]


def test_the_test_part_is_untouched_until_a_head_is_selected(
    write_features: WriteFeatures, make_work: MakeWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = write_features(parts=("train", "validation"))
    work = make_work("cell", step(), features=features)
    selections: list[int] = []
    original = cell_module.fit

    def fit(*given: Any) -> Fit:
        found = original(*given)
        selections.append(found.chosen)
        return found

    monkeypatch.setattr(cell_module, "fit", fit)
    with pytest.raises(StageError, match=r"has no features-test\.parquet"):
        adapt(work, TRIED, FeatureCache())
    assert selections == [1]


def test_a_cell_whose_configurations_all_fail_is_an_error(
    write_features: WriteFeatures, make_work: MakeWork
) -> None:
    work = make_work("cell", step(), features=write_features())
    with pytest.raises(StageError, match=r"all 2 configurations failed.*narrow space\.lr"):
        adapt(work, [Configuration(lr=1e38)] * 2, FeatureCache())
    assert list(work.output.files()) == []


def test_an_ood_cell_tests_the_id_cells_head_as_it_is(
    write_features: WriteFeatures, make_work: MakeWork
) -> None:
    features = write_features()
    trained = make_work("id", step(), features=features)
    adapt(trained, TRIED, FeatureCache())
    same = make_work("ood", step(task=ood_task()), features=features, head=trained.output)
    outcome = transfer(same)
    source, cell = read_cell(trained.output), read_cell(same.output)
    assert cell == replace(source, task="blobs-ood", domain="ood", trained_on="blobs-id")
    theirs, ours = (w.output.read_table(schema.PREDICTIONS) for w in (trained, same))
    assert ours.equals(theirs)
    assert "tune/validation_accuracy" not in outcome.metrics
    assert outcome.counts["test_reads"] == 1


def test_an_ood_cell_has_its_own_metric_and_test_rows(
    write_features: WriteFeatures, make_work: MakeWork
) -> None:
    trained = make_work("id", step(), features=write_features())
    adapt(trained, TRIED, FeatureCache())
    shifted = write_features("shifted", parts=("test",), noise=3.0)
    task = ood_task(metric="mean_per_class_accuracy")
    work = make_work("ood", step(task=task), features=shifted, head=trained.output)
    transfer(work)
    cell = read_cell(work.output)
    assert cell.test_metric == cell.test_mean_per_class_accuracy
    assert cell.test_accuracy < read_cell(trained.output).test_accuracy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": 10.0}, "not of blobs-id/nmtune/10.0/0"),
        ({"task": ood_task(trained_on="others")}, "not of others/nmtune"),
        (
            {"task": ood_task(classes={"a": (0, 1), "b": (2, 3)})},
            "needs the outputs a, b, but the heads of blobs-id have zero, one, two, three",
        ),
    ],
)
def test_a_head_of_another_cell_is_refused(
    changes: dict[str, object],
    message: str,
    write_features: WriteFeatures,
    make_work: MakeWork,
) -> None:
    features = write_features()
    trained = make_work("id", step(), features=features)
    adapt(trained, TRIED, FeatureCache())
    spec = step(**({"task": ood_task()} | changes))
    work = make_work("ood", spec, features=features, head=trained.output)
    with pytest.raises(StageError, match=message):
        transfer(work)


def test_a_damaged_head_is_refused_in_one_sentence(
    write_features: WriteFeatures, make_work: MakeWork
) -> None:
    features = write_features()
    trained = make_work("id", step(), features=features)
    adapt(trained, TRIED, FeatureCache())
    trained.output.write_bytes(schema.HEAD, b"not tensors at all")
    work = make_work("ood", step(task=ood_task()), features=features, head=trained.output)
    with pytest.raises(StageError, match="is not the output of an ID cell"):
        transfer(work)


def test_mean_per_class_accuracy_is_the_metric_where_the_task_says_so(
    write_features: WriteFeatures, make_work: MakeWork
) -> None:
    task = id_task(metric="mean_per_class_accuracy", classes={"a": (0, 1, 2), "b": (3,)})
    work = make_work("cell", step(task=task), features=write_features())
    adapt(work, TRIED, FeatureCache())
    cell = read_cell(work.output)
    assert cell.metric == "mean_per_class_accuracy"
    assert cell.test_metric == cell.test_mean_per_class_accuracy
    assert cell.n_classes == 2


def test_every_column_says_what_it_means() -> None:
    for kind in (schema.Cell, schema.Tried, schema.Prediction, schema.Point):
        columns = schema.of(kind)
        assert all(columns.field(name).metadata[b"meaning"] for name in columns.names)


def test_a_table_of_other_columns_is_not_a_cell() -> None:
    table = schema.to_table(schema.Point, [schema.Point("train/loss", 1, 0.5)])
    assert schema.from_table(schema.Point, table) == [schema.Point("train/loss", 1, 0.5)]
    with pytest.raises(ValueError, match="are not those of Cell"):
        schema.from_table(schema.Cell, table)


def test_a_cell_uses_the_threads_it_was_given_and_names_its_heads_classes(
    write_features: WriteFeatures, make_work: MakeWork
) -> None:
    work = make_work("cell", step(cpus=2), features=write_features())
    adapt(work, TRIED, FeatureCache())
    assert torch.get_num_threads() == 2
    card = work.output.read_json(schema.HEAD_CARD)
    assert card == {"kind": "paper", "dim": DIM, "classes": list(CLASSES)}


def test_a_cell_that_drops_overlap_tests_the_other_rows_alone(
    write_features: WriteFeatures, make_work: MakeWork, tmp_path: Path
) -> None:
    left_out = ["test-0003", "test-0064"]
    overlap = Folder.of(tmp_path / "overlap")
    overlap.write_table("overlap.parquet", pa.table({"key": [left_out[1], *left_out]}))
    features = write_features()
    whole = make_work("whole", step(), features=features)
    fewer = make_work("fewer", step(drop_overlap=True), features=features, overlap=overlap)
    adapt(whole, TRIED, FeatureCache())
    outcome = adapt(fewer, TRIED, FeatureCache())
    before, after = (
        work.output.read_table(schema.PREDICTIONS).to_pylist() for work in (whole, fewer)
    )
    assert after == [row for row in before if row["key"] not in left_out]
    assert outcome.counts["test_dropped"] == 2
    assert read_cell(fewer.output).n_test == SIZES["test"] - 2
    everything = [f"test-{n:04d}" for n in range(SIZES["test"])]
    overlap.write_table("overlap.parquet", pa.table({"key": everything}))
    with pytest.raises(StageError, match="every test sample is trained on"):
        adapt(fewer, TRIED, FeatureCache())

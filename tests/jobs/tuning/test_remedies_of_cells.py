"""What a message of a cell about its features, its head or its test rows tells to do works.

Each case raises its message and does what it says; then the cell is adapted, or its head is tested.
"""

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.contract import StageError, Work
from jobs.encoders.encoder import Architecture
from jobs.images.spec import ImageInput
from jobs.storage.folder import Folder
from jobs.tuning import schema
from jobs.tuning.frozen.cell import adapt, transfer
from jobs.tuning.frozen.features import FeatureCache, file_name
from jobs.tuning.frozen.optuna_search import Optuna
from jobs.tuning.frozen.probes import solve
from jobs.tuning.frozen.zero_shot import classifier
from jobs.tuning.heads import Shape
from jobs.tuning.job import _error_if_too_large
from jobs.tuning.mask_target import MaskTarget
from jobs.tuning.rows import Labelled
from jobs.tuning.search_space import Space
from jobs.tuning.target import NumberTarget
from jobs.tuning.trained import Configuration
from tests.jobs.tuning.blobs import NMTUNE, SIZES, id_task, ood_task, part_table, step
from tests.jobs.tuning.conftest import MakeWork, WriteFeatures
from tests.jobs.tuning.frozen.test_zero_shot import TINY, write_encoder

TRIED = [Configuration(lr=1e-2)]
QUICK = {"configurations": 1, "epochs": 1}


def adapted(work: Work) -> int:
    return adapt(work, TRIED, FeatureCache()).counts["test_reads"]


def refused(make: Callable[[], Any], remedy: str) -> re.Match[str]:
    with pytest.raises((StageError, ValueError)) as caught:
        make()
    found = re.search(remedy, str(caught.value))
    assert found is not None, caught.value
    return found


def altered(part: str, change: Callable[[pa.Table], pa.Table]) -> Callable[[Folder], None]:
    def damage(folder: Folder) -> None:
        folder.write_table(file_name(part), change(folder.read_table(file_name(part))))  # type: ignore[arg-type]

    return damage


def column(name: str, change: Callable[[Any], Any]) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, change(table[name]))

    return changed


def other_keys(table: pa.Table) -> pa.Table:
    keys = [
        f"{k}x" if v == 2 else k
        for k, v in zip(table["key"].to_pylist(), table["view"].to_pylist(), strict=True)
    ]
    return table.set_column(0, "key", pa.array(keys))


def narrow(table: pa.Table) -> pa.Table:
    vectors = np.stack(table["vector"].to_numpy())[:, :6]
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 6)
    return table.set_column(table.column_names.index("vector"), "vector", flat)


def spoil(table: pa.Table) -> pa.Table:
    vectors = np.stack(table["vector"].to_numpy())
    vectors[SIZES["train"] + 3] = np.nan
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    return table.set_column(table.column_names.index("vector"), "vector", flat)


AGAIN = "extract (its|the) features again"
FEATURES: dict[str, tuple[Callable[[Folder], Any], str]] = {
    "a part that is missing": (
        lambda folder: folder.delete(file_name("test")),
        rf"{AGAIN}, with every part of the task$",
    ),
    "a view that is missing": (
        altered("validation", column("view", lambda _: pa.array([1] * 60, pa.int16()))),
        rf"has no rows of view 0; {AGAIN}$",
    ),
    "views of other samples": (
        altered("train", other_keys),
        rf"view 2 does not hold the keys of view 1; {AGAIN}$",
    ),
    "labels of more classes": (
        lambda folder: folder.write_json("classes.json", ["zero", "one"]),
        rf"have label 3, but the corpus has 2 classes; {AGAIN}$",
    ),
    "a value that is none": (
        altered("train", spoil),
        rf"1 rows of view 1 are not finite \(first: key train-0003\); {AGAIN}$",
    ),
    "numbers for classes": (
        altered("train", column("label", lambda found: found.cast(pa.float64()))),
        rf"predicts a class, but the labels .* are numbers; {AGAIN}$",
    ),
    "damaged classes": (
        lambda folder: folder.write_bytes("classes.json", b"["),
        r"cannot be used .*; delete its folder and extract its features again$",
    ),
    "a test part of another encoder": (
        altered("test", narrow),
        r"have 6 dimensions, the head takes 12; extract both with the same encoder$",
    ),
}


@pytest.mark.parametrize("name", FEATURES)
def test_a_cell_is_adapted_on_features_that_are_extracted_again(
    name: str, write_features: WriteFeatures, make_work: MakeWork
) -> None:
    damage, remedy = FEATURES[name]
    features = write_features()
    damage(features)
    work = make_work("cell", step(**QUICK), features=features)
    refused(lambda: adapted(work), remedy)
    shutil.rmtree(features.local_path())
    write_features()
    assert adapted(work) == 1


@pytest.mark.parametrize("way", ["lower its views", "give features.views.count more"])
def test_a_method_has_as_many_views_as_its_features(
    way: str, write_features: WriteFeatures, make_work: MakeWork
) -> None:
    def method(views: int) -> Any:
        return NMTUNE.model_copy(update={"views": views})

    work = make_work("cell", step(**QUICK, method=method(3)), features=write_features())
    refused(lambda: adapted(work), f"its features have 2; .*{re.escape(way)}")
    if way.startswith("lower"):
        work = make_work("cell", step(**QUICK, method=method(2)), features=write_features())
    else:
        write_features(views=3)
    assert adapted(work) == 1


HEADS: dict[str, tuple[Callable[[Folder], Any], str]] = {
    "damaged weights": (
        lambda head: head.write_bytes(schema.HEAD, b"not tensors"),
        "is not the output of an ID cell .*; run that cell again$",
    ),
    "no weights": (
        lambda head: head.delete(schema.HEAD),
        "is not the output of an ID cell .*; run that cell again$",
    ),
    "a damaged record": (
        lambda head: head.write_bytes(schema.HEAD_CARD, b"{"),
        "cannot be used .*; delete that cell's folder and run it again$",
    ),
    "another cell's": (
        lambda head: altered_cell(head),
        r"holds the head of .*/fraction=50/.*, not of .*; run that cell again$",
    ),
}


def altered_cell(head: Folder) -> None:
    (cell,) = schema.from_table(schema.Cell, head.read_table(schema.CELL))
    table = schema.to_table(schema.Cell, [replace(cell, fraction=50.0)])
    head.write_table(schema.CELL, table)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_tested_once_its_cell_is_run_again(
    name: str, write_features: WriteFeatures, make_work: MakeWork
) -> None:
    damage, remedy = HEADS[name]
    features = write_features()
    trained = make_work("id", step(**QUICK), features=features)
    adapted(trained)
    damage(trained.output)
    spec = step(**QUICK, task=ood_task())
    work = make_work("ood", spec, features=features, head=trained.output)
    refused(lambda: transfer(work), remedy)
    shutil.rmtree(trained.output.local_path())
    adapted(trained)
    assert transfer(work).counts["test_reads"] == 1


def test_a_task_that_is_trained_on_in_whole_has_its_reader_corrected(
    write_features: WriteFeatures, make_work: MakeWork, tmp_path: Path
) -> None:
    overlap, features = Folder.of(tmp_path / "overlap"), write_features()
    keys = part_table("test", [0])["key"].to_pylist()
    overlap.write_table("overlap.parquet", pa.table({"key": keys}))
    spec = step(**QUICK, drop_overlap=True)
    work = make_work("cell", spec, features=features, overlap=overlap)
    refused(lambda: adapted(work), "take the task out, or correct its reader$")
    overlap.write_table("overlap.parquet", pa.table({"key": keys[1:]}))
    assert adapted(work) == 1


def test_numbers_are_solved_by_ridge() -> None:
    data = Labelled(torch.randn(1, 20, 3), torch.randn(20))
    shape = Shape("linear", 3, NumberTarget())

    def solved(kind: Any) -> Any:
        return solve(kind, shape, data, data, [Configuration(lr=0, l2=1.0)], "pearson")

    found = refused(lambda: solved("lbfgs"), r"use (?P<kind>ridge) for a number$")
    assert solved(found["kind"]) is not None


def test_zero_shot_heads_come_from_an_open_clip_encoder(tmp_path: Path) -> None:
    image = ImageInput(size=32)
    small = Architecture("timm", "resnet18", {"channels": [8, 8, 8, 8]}, image, 2)
    folder = write_encoder(tmp_path / "timm", small)
    refused(lambda: classifier(folder, ["a"], ["{}"]), "or use an (?P<family>open_clip) encoder$")
    clip = write_encoder(tmp_path / "clip", Architecture("open_clip", "tiny", TINY, image, 0))
    assert len(classifier(clip, ["a", "b"], ["{}"])) == 2


def test_a_cell_is_as_large_as_a_node(make_work: MakeWork) -> None:
    small, large = [{"CPU": 2.0}], [{"CPU": 2.0}, {"CPU": 8.0}]
    error = _error_if_too_large(make_work("cell", step(cpus=4)), small)
    assert re.search(r"tuning\.cpus=4, .*; lower it, or add a larger node$", str(error))
    assert _error_if_too_large(make_work("cell", step(cpus=2)), small) is None
    assert _error_if_too_large(make_work("cell", step(cpus=4)), large) is None


def test_a_search_needs_its_library_or_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    space = Space.model_validate({"lr": {"loguniform": [0.1, 1]}})
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "optuna", None)
        remedy = r"run pip install 'nml-orch\[optuna\]', or use search: (?P<search>random)$"
        found = refused(lambda: Optuna(space, 4, 0), remedy)
    assert Optuna(space, 4, 0).ask()
    assert step(search=found["search"]).settings.search == "random"


# -- masks -----------------------------------------------------------------------------------------


def counts(*patches: list[int]) -> Any:
    """Patches of one view with pixels of each class of the corpus."""
    return np.array(patches, np.int32)[:, None]


def test_masks_are_of_the_task_s_classes() -> None:
    target, task = MaskTarget(2), id_task()
    both, index = counts([4, 0, 0], [0, 4, 0]), np.array([0, 1, -1])
    refused(
        lambda: target.select(both, np.array([0, 1]), task),
        "have masks of 3 classes, but the corpus has 2; extract the features again$",
    )
    refused(
        lambda: target.select(both, np.array([-1, -1, 0]), task),
        "a part has no pixel of its classes; check `classes`$",
    )
    assert len(target.select(both, index, task)[0]) == 2
    few = target.select(both[:1], index, task)[1]
    remedy = "use a larger fraction, or correct `classes`$"
    refused(lambda: target.check_training(few, ["a", "b"], task, 10), remedy)
    target.check_training(target.select(both, index, task)[1], ["a", "b"], task, 100)
    merged = target.select(both[:1], np.array([0, 1, 1]), task)[1]
    refused(lambda: target.check_training(merged, ["a", "b"], task, 10), remedy)

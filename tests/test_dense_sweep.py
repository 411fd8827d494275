"""A whole sweep on masks: an ID task, its rotation and other classes, report and MLflow."""

import csv
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from mlflow import MlflowClient
from scenes import parquet

from commands import Run
from stores import finished, manifests

pytestmark = pytest.mark.slow

FILE = """
name: dense
title: What do patches tell?
encoders:
  - {{name: small, kind: file, model: resnet18, model_options: {{channels: [8, 8, 16, 24]}},
      file: weights.safetensors, image: {{size: 64}}}}
tasks: [scenes, scenes-rotated, box]
task_folders: [tasks]
data: .
features: {{grid: {{layer: -2}}, dtype: float16, views: {{count: 1}}}}
tuning:
  configurations: 1
  epochs: 3
  seeds: [0]
  methods:
    lp: {{head: linear, space: {{lr: 0.05}}}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
"""
READER = (
    "{kind: parquet, path: scenes.parquet, mask: mask, classes: [sky, ground, box], key: [key]}"
)
TASKS = {
    "scenes": "domain: id",
    "scenes-rotated": "domain: ood, trained_on: scenes, shift: {kind: rotate, strength: 15}",
    "box": "domain: ood, trained_on: scenes, classes: {no: [sky, ground], box: [box]}, "
    "answers: {no: [sky, ground], box: [box]}",
}


@pytest.fixture(scope="module")
def swept(run_on_ray: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the sweep, and what it printed."""
    folder = tmp_path_factory.mktemp("dense")
    torch.manual_seed(0)
    model = timm.create_model("resnet18", channels=[8, 8, 16, 24], num_classes=0)
    safetensors.torch.save_file(model.state_dict(), folder / "weights.safetensors")
    parquet(folder / "scenes.parquet", 40)
    (folder / "tasks").mkdir()
    for name, about in TASKS.items():
        text = f"{{name: {name}, title: {name}, target: mask, metric: miou, {about}}}"
        text = f"{text[:-1]}, corpus: {{name: scenes, reader: {READER}}}}}"
        (folder / "tasks" / f"{name}.yaml").write_text(text)
    (folder / "my.yaml").write_text(FILE.format(folder=folder))
    code, output = run_on_ray(folder, "sweep", "my.yaml", NML_FIGURES="1")
    assert code == 0, output
    return folder, output


def test_every_step_of_masks_is_done(swept: tuple[Path, str]) -> None:
    folder, output = swept
    steps = {address for address in finished(folder) if not address.startswith("tune/")}
    assert {"corpus/scenes", "features/encoder/small/scenes"} <= steps
    assert "features/encoder/small/scenes-rotated" in steps
    assert len([address for address in finished(folder) if address.startswith("tune/")]) == 3
    assert "mean IoU" in output.replace("\n", " ") or "miou" in output
    counts = manifests(folder)["features/encoder/small/scenes"]["counts"]
    assert counts["patches"] == 16


def test_the_report_has_each_class_and_pictures(swept: tuple[Path, str]) -> None:
    report = swept[0] / "nml-store/report/dense"
    rows = list(csv.DictReader((report / "iou.csv").open()))
    assert {(row["task"], row["class"]) for row in rows} == {
        *(("scenes", name) for name in ("sky", "ground", "box")),
        *(("scenes-rotated", name) for name in ("sky", "ground", "box")),
        ("box", "no"),
        ("box", "box"),
    }
    cells = {row["task"]: row for row in csv.DictReader((report / "encoders.csv").open())}
    of_scenes = [float(row["iou"]) for row in rows if row["task"] == "scenes"]
    assert float(cells["scenes"]["test_metric"]) == pytest.approx(sum(of_scenes) / 3, rel=1e-6)
    assert (report / "figures/scenes-scenes.png").stat().st_size > 5_000
    assert not (report / "figures/scenes-scenes-rotated.png").exists()
    page = (report / "report.html").read_text()
    assert "IoU by class" in page
    assert "some test images" in page


def test_mlflow_has_the_scores_and_the_pictures(swept: tuple[Path, str]) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{swept[0]}/mlflow.db")
    experiment = client.get_experiment_by_name("dense")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    metrics = {name for run in runs for name in run.data.metrics}
    assert any(name.endswith("/miou") for name in metrics), metrics
    paths = {
        artifact.path
        for run in runs
        for folder in client.list_artifacts(run.info.run_id)
        if folder.is_dir
        for inner in client.list_artifacts(run.info.run_id, folder.path)
        for artifact in (
            client.list_artifacts(run.info.run_id, inner.path) if inner.is_dir else [inner]
        )
    }
    assert any(path.endswith("scenes-scenes.png") for path in paths), paths

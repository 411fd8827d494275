"""Encoders that are not trained here, swept from the command line: weights and given features."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
import yaml
from mlflow import MlflowClient
from sklearn.datasets import load_digits

from commands import Run

pytestmark = pytest.mark.slow  # a whole sweep

METHODS = {
    "lp": {"head": "linear", "space": {"lr": 0.03}},
    "nmtune-released": {
        "head": "released",
        "space": {"lr": 0.003, "mse": 1.0, "cov": 0.04, "svd": 0.001},
    },
}
TUNING = {"configurations": 1, "epochs": 8, "methods": METHODS}


def write_features(path: Path, *, numbers: bool = False) -> None:
    """The digits' own pixels as an embedding: real data that a linear probe can read.

    `numbers`: the label is a digit's height of ink, in pixels from the top.
    """
    digits = load_digits()
    keys = [f"row-{number}" for number in range(len(digits.target))]
    vectors = list((digits.data / 16).astype(np.float32))
    ink = digits.images.sum(2)
    heights = (ink * np.arange(8)).sum(1) / ink.sum(1)
    labels = heights if numbers else digits.target
    pq.write_table(pa.table({"key": keys, "vector": vectors, "label": labels}), path)


@pytest.fixture(scope="module")
def swept(run_on_ray: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    small = {"channels": [8, 8, 16, 24]}
    torch.save(timm.create_model("resnet18", **small).state_dict(), folder / "w.pth")
    write_features(folder / "pixels.parquet")
    encoder = {
        "kind": "file",
        "name": "small",
        "model": "resnet18",
        "model_options": small,
        "file": "w.pth",
        "image": {"size": 32},
    }
    write_features(folder / "heights.parquet", numbers=True)
    files = {"raw": "pixels.parquet", "glue-stsb": "heights.parquet"}
    given = {"kind": "features", "name": "pixels", "files": files}
    mine = {
        "name": "mine",
        "encoders": [encoder, given],
        "tasks": ["digits", "digits-rotated", "raw", "glue-stsb"],
        "features": {"views": {"count": 0}},
        "tuning": TUNING,
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(mine))
    code, output = run_on_ray(folder, "sweep", "mine.yaml")
    assert code == 0, output
    (folder / "screen.txt").write_text(output)
    return folder


def test_the_screen_shows_each_encoders_own_tasks_and_no_noise(swept: Path) -> None:
    lines = (swept / "screen.txt").read_text().splitlines()
    head = next(line for line in lines if line.startswith("pretrained encoder"))
    column = head.split()[2:].index("lp")
    first = reversed(lines)  # methods that do not fit beside stand in a second table below
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in first}
    assert float(rows["small", "digits"][column]) > float(rows["small", "digits-rotated"][column])
    assert float(rows["pixels", "raw"][column]) > 85
    metric, *correlations = rows["pixels", "glue-stsb"]
    assert metric == "(pearson_spearman)"
    assert float(correlations[column]) > 85
    assert ("small", "raw") not in rows
    assert not any("noise in percent" in line for line in lines)


def test_the_store_holds_one_step_an_encoder(swept: Path) -> None:
    root = swept / "nml-store"
    found = json.loads((root / "encoder/small/manifest.json").read_text())
    assert set(found["files"]) == {"model.safetensors", "encoder.json"}
    assert found["counts"]["dim"] == 24
    card = json.loads((root / "encoder/small/encoder.json").read_text())
    assert card["source"]["sha256"] == found["fields"]["spec"]["encoder"]["sha256"]
    assert (root / "features/encoder/pixels/raw/features-test.parquet").exists()
    assert not (root / "noise").exists()


def test_the_report_keeps_them_in_a_table_of_their_own(swept: Path) -> None:
    folder = swept / "nml-store/report/mine"
    html = (folder / "report.html").read_text()
    assert "Pretrained encoders" in html
    assert "there is no answer about noise" in html
    section = html.partition('<section id="pretrained">')[2].partition("</section>")[0]
    assert section.count("<table") == 2
    assert "None" not in section
    cells = (folder / "encoders.csv").read_text().splitlines()
    assert len(cells) == 1 + 4 * 3
    assert "glue-stsb: Mean of Pearson and Spearman correlation (× 100)" in section
    of_numbers = [row for row in csv.DictReader(cells) if row["task"] == "glue-stsb"]
    assert {row["test_accuracy"] for row in of_numbers} == {""}
    assert all(85 < float(row["test_metric"]) <= 100 for row in of_numbers)
    assert (folder / "table.csv").read_text().count("\n") == 1


def test_mlflow_shows_them_without_a_noise_level(swept: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{swept}/mlflow.db")
    experiment = client.get_experiment_by_name("mine")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    encoders = [run for run in runs if run.data.tags.get("nml.encoder") == "small"]
    assert encoders
    assert not any("nml.noise" in run.data.tags for run in encoders)
    parent = next(run for run in runs if run.data.tags["nml.kind"] == "sweep")
    metrics = parent.data.metrics
    assert metrics["encoders/pixels/raw/lp/accuracy/fraction_100"] > 85
    assert metrics["encoders/pixels/glue-stsb/lp/pearson_spearman/fraction_100"] > 85
    assert "encoders/pixels/glue-stsb/lp/accuracy/fraction_100" not in metrics
    (lp,) = (
        r for r in runs if "raw/accuracy" in r.data.metrics and r.data.tags["nml.method"] == "lp"
    )
    assert lp.data.metrics["glue-stsb/pearson_spearman"] > 85
    assert "glue-stsb/accuracy" not in lp.data.metrics


def test_status_shows_them_beside_each_other(swept: Path, run: Run) -> None:
    code, output = run(swept, "status", "mine.yaml")
    assert code == 0, output
    lines = output.splitlines()
    head = next(line for line in lines if line.startswith("pretrained encoder"))
    assert head.split()[2:] == ["small", "pixels"]
    row = next(line for line in lines if line.startswith("id  raw  lp"))
    assert row.split()[-2:] == ["-", "1/1"]


def test_again_nothing_is_recomputed_wherever_the_files_lie(swept: Path, run: Run) -> None:
    (swept / "elsewhere").mkdir(exist_ok=True)
    (swept / "elsewhere/w.pth").write_bytes((swept / "w.pth").read_bytes())
    words = ["--set", "encoders.0.file=elsewhere/w.pth", "--set", "tracking.enabled=false"]
    code, output = run(swept, "sweep", "mine.yaml", *words)
    assert code == 0, output
    assert " reused in" in output
    assert " done," not in output


def test_other_weights_under_the_same_name_are_drift(swept: Path, run: Run) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, swept / "other.pth")
    words = ["--set", "encoders.0.file=other.pth"]
    code, output = run(swept, "plan", "mine.yaml", *words)
    assert code == 0, output
    assert "drift encoder/small" in output
    assert "encoder.sha256:" in output


def test_diff_compares_two_of_them_field_by_field(swept: Path, run: Run) -> None:
    same = "features/encoder/small/digits"
    code, output = run(swept, "diff", same, same)
    assert code == 0, output
    code, output = run(swept, "diff", same, "features/encoder/pixels/raw")
    assert code == 1, output
    assert "differs" in output
    assert "These two runs differ in more than noise: " in output


def test_a_file_of_features_alone_is_swept_by_one_option(run_on_ray: Run, tmp_path: Path) -> None:
    write_features(tmp_path / "Pixels.parquet")
    words = ["--set", "tuning.configurations=4", "--set", "tuning.epochs=8"]
    words += ["--set", "tuning.fractions=[100]"]
    options = ["--features", "Pixels.parquet", "--task", "digits-by-pixel"]
    code, output = run_on_ray(tmp_path, "sweep", *options, *words)
    assert code == 0, output
    lines = output.splitlines()
    column = next(ln for ln in lines if ln.startswith("pretrained encoder")).split()[2:].index("lp")
    row = next(line for line in lines if line.startswith("pixels  digits-by-pixel"))
    assert float(row.split()[2:][column]) > 85

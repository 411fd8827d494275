"""A sweep with a file of one's own: it trains, is kept, errs alone, and reports like the rest."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from commands import Run

MINE = """
import torch
from torch import nn

class Linear(nn.Module):
    hyperparameters = {"strength": (0.0, 1.0)}

    def __init__(self, dim, outputs):
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        self.classifier = nn.Linear(dim, outputs)

    def forward(self, features):
        return self.classifier(self.norm(features))

    def loss(self, batch):
        size = self.classifier.weight.square().mean()
        ce = batch.task_loss(self.forward(batch.features))
        return {"ce": ce, "size": batch.hyper["strength"] * size}

class Broken(Linear):
    def loss(self, batch):
        return {"ce": batch.hyper["nothing"]}

class Means(nn.Module):
    def __init__(self, dim, outputs):
        super().__init__()
        self.register_buffer("means", torch.zeros(outputs, dim))

    def prepare(self, features, targets, hyper):
        for number in range(len(self.means)):
            self.means[number] = features[targets == number].mean(0)

    def forward(self, features):
        return -torch.cdist(features, self.means)
"""
EXPERIMENT = """
name: own
extensions: [mine.py]
encoders: [{kind: features, name: given, files: {points: points.parquet}}]
tasks: [points]
tracking: {enabled: false}
tuning:
  configurations: 2
  epochs: 10
  batch_size: 16
  seeds: [0]
  methods:
    lp: {head: linear, space: {lr: 0.01}}
    mine: {head: mine:Linear, space: {lr: 0.01, strength: {uniform: [0, 1]}}}
    means: {head: mine:Means}
    broken: {head: mine:Broken, space: {lr: 0.01, strength: 1}}
"""
CELL = "tune/encoder/given/points/{}/fraction=100/seed=0"


def write_points(folder: Path) -> None:
    """Features of three classes, as somebody else has extracted them."""
    generator = np.random.default_rng(0)
    labels = np.arange(240) % 3
    vectors = generator.normal(size=(3, 12))[labels] + 0.3 * generator.normal(size=(240, 12))
    splits = np.array(["train", "train", "validation", "test"])[np.arange(240) // 3 % 4]
    columns = {
        "key": [f"point-{number:03d}" for number in range(240)],
        "vector": vectors.astype(np.float32).tolist(),
        "label": labels,
        "split": splits.tolist(),
    }
    pq.write_table(pa.table(columns), folder / "points.parquet")


def rows(file: Path) -> pa.Table:
    """A file's own columns, and none that pyarrow finds in its path."""
    return pq.ParquetFile(file).read()


def test_own_methods_train_are_kept_and_err_alone(run_on_ray: Run, tmp_path: Path) -> None:
    write_points(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "own.yaml").write_text(EXPERIMENT)
    code, printed = run_on_ray(tmp_path, "sweep", "own.yaml")
    assert code == 1, printed
    failed = CELL.format("broken")
    assert f"failed   {failed}: mine.py, line 23: KeyError: 'nothing'" in printed
    store = tmp_path / "nml-store"
    assert not (store / failed / "manifest.json").exists()
    for method in ("mine", "means"):
        assert (store / CELL.format(method) / "extension" / "mine.py").read_text() == MINE
        row = rows(store / CELL.format(method) / "cell.parquet").to_pylist()[0]
        assert row["head"] == {"mine": "mine:Linear", "means": "mine:Means"}[method]
        assert row["test_accuracy"] > 80, row
    mine = store / CELL.format("mine")
    own = rows(mine / "hyperparameters.parquet")
    assert own["name"].to_pylist() == ["strength", "strength"]
    assert "train/size" in rows(mine / "curves.parquet")["metric"].to_pylist()
    page = (store / "report/own/report.html").read_text()
    assert "methods written as extensions: means (mine:Means) and mine (mine:Linear)" in page

    (tmp_path / "mine.py").write_text(MINE.replace("nothing", "strength"))
    code, printed = run_on_ray(tmp_path, "sweep", "own.yaml")
    assert code == 2, printed
    assert "the source of mine changed" in printed


NET = '''
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.next = nn.Conv2d(width, 2 * width, 3, stride=2)

    def forward(self, images):
        return self.next(self.stem(images).relu()).relu().mean((2, 3))

def small(image, width=8):
    """A small convolutional network."""
    return Net(image.channels, width)

class Anchored(nn.Module):
    hyperparameters = {"strength": (0.0, 1.0)}

    def __init__(self, dim, outputs):
        super().__init__()
        self.classifier = nn.Linear(dim, outputs)

    def forward(self, features):
        return self.classifier(features)

    def loss(self, encoder, batch):
        moved = sum((w - encoder.start[n]).square().sum() for n, w in encoder.weights.items())
        ce = batch.task_loss(self.forward(encoder(batch.inputs)))
        return {"ce": ce, "moved": batch.hyper["strength"] * moved}
'''
TRAINED = """
name: nets
extensions: [nets.py]
corpus: {name: digits, reader: {kind: digits}, rows_per_shard: 512}
noise: {name: symmetric, kind: symmetric, levels: [0]}
pretrain:
  recipe:
    objective: supervised
    name: small
    model: nets:small
    model_options: {width: 12}
    image: {size: 8, channels: 1, mean: [0.5], std: [0.5]}
    schedule: {epochs: 2, batch_size: 64, lr: 0.01}
encoders:
  - name: drawn
    kind: extension
    model: nets:small
    image: {size: 8, channels: 1, mean: [0.5], std: [0.5]}
features: {views: {count: 0}}
tasks: [digits, digits-rotated]
overlap: allow
tracking: {enabled: false}
tuning:
  configurations: 1
  epochs: 2
  batch_size: 64
  methods:
    lp: {head: linear, space: {lr: 0.03}}
    anchored: {adapt: ft, head: nets:Anchored, space: {lr: 0.01, strength: 0.001}}
"""


@pytest.mark.slow
def test_an_own_encoder_goes_through_every_stage(run_on_ray: Run, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NET)
    (tmp_path / "nets.yaml").write_text(TRAINED)
    code, printed = run_on_ray(tmp_path, "sweep", "nets.yaml")
    assert code == 0, printed
    store = tmp_path / "nml-store"
    run = "digits/symmetric/small/noise=0/seed=0"
    for step in (f"pretrain/{run}", "encoder/drawn"):
        assert (store / step / "extension/nets.py").read_text() == NET
    accuracy = {
        (of, task, method): rows(
            store / f"tune/{of}/{task}/{method}/fraction=100/seed=0/cell.parquet"
        ).to_pylist()[0]["test_accuracy"]
        for of in (run, "encoder/drawn")
        for task in ("digits", "digits-rotated")
        for method in ("lp", "anchored")
    }
    assert accuracy[run, "digits", "anchored"] > 15  # chance is 10, and it trains for 18 steps
    assert accuracy[run, "digits", "lp"] > accuracy["encoder/drawn", "digits", "lp"] + 10
    page = (store / "report/nets/report.html").read_text()
    assert "supervised pre-training of nets:small" in page
    assert "anchored (nets:Anchored)" in page

    (tmp_path / "nets.py").write_text(f"{NET}\n")
    code, printed = run_on_ray(tmp_path, "plan", "nets.yaml")
    assert code == 0, printed
    assert "drift encoder/drawn\n  the source of nets changed" in printed

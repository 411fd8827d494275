"""A sweep with a file of one's own: it trains, is kept, errs alone, and reports like the rest."""

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from commands import TINY, UNTRACKED, Run
from tests import stores

MINE = '''
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

def mine_beats_lp(results):
    """Mine beats the probe.

    Source: a hypothesis
    """
    return results.methods("mine", "lp")
'''
METHODS = (
    "mine={head: mine:Linear, space: {lr: 0.01, strength: {uniform: [0, 1]}}}",
    "means={head: mine:Means}",
    "broken={head: mine:Broken, space: {lr: 0.01, strength: 1}}",
)
CELL = "tune/digits/symmetric/resnet-small/noise=20/seed=0/{}/{}/fraction=100/seed=0"


@pytest.fixture(scope="module")
def swept(
    undisturbed: Path, run_on_ray: Run, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str], str]:
    """(the folder, the words of the sweep, what it printed)."""
    folder = stores.copy(undisturbed, tmp_path_factory.mktemp("extension"))
    (folder / "mine.py").write_text(MINE)
    methods = [word for method in METHODS for word in ("--set", f"tuning.methods.{method}")]
    words = [*TINY, *UNTRACKED, *methods, "--extension", "mine.py"]
    code, printed = run_on_ray(folder, "sweep", *words)
    assert code == 1, printed
    return folder, words, printed


def test_a_broken_method_fails_with_its_line_and_the_others_go_on(
    swept: tuple[Path, list[str], str],
) -> None:
    folder, _, printed = swept
    failed = CELL.format("digits", "broken").replace("noise=20", "noise=0")
    assert f"failed   {failed} (and 1 more): mine.py, line 23: KeyError: 'nothing'" in printed
    store = folder / "nml-store"
    for task in ("digits", "digits-rotated"):
        for method in ("mine", "means"):
            kept = store / CELL.format(task, method) / "extension" / "mine.py"
            assert kept.read_text() == MINE
    row = pq.read_table(store / CELL.format("digits", "mine") / "cell.parquet").to_pylist()[0]
    assert row["head"] == "mine:Linear"
    assert row["test_accuracy"] > 50
    own = pq.read_table(store / CELL.format("digits", "mine") / "hyperparameters.parquet")
    assert own["name"].to_pylist() == ["strength", "strength"]
    curves = pq.read_table(store / CELL.format("digits", "mine") / "curves.parquet")
    assert "train/size" in curves["metric"].to_pylist()


def test_what_is_finished_is_reused_and_an_own_claim_is_reported(
    swept: tuple[Path, list[str], str], run: Run
) -> None:
    folder, words, _ = swept
    left = [word for word in words if "broken" not in word]
    left = [w for i, w in enumerate(left) if not (w == "--set" and left[i + 1] == "--extension")]
    code, printed = run(folder, "plan", *left)
    assert code == 0, printed
    (tune,) = (line.split() for line in printed.splitlines() if line.startswith("tune"))
    assert tune[2:] == []
    with (folder / "nml-store/report/demo/claims.csv").open() as file:
        found = {row["claim"]: row for row in csv.DictReader(file)}
    assert "mine-beats-lp" in found

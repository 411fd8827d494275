"""`docs/notebooks.md` is true: its examples run on a store and give the report's numbers."""

import re
from pathlib import Path
from typing import Any

import pytest

import synthetic
from jobs.storage.folder import Folder
from orchestrator.experiment import last_sweep, load
from orchestrator.plan import build
from orchestrator.store.store import Store

PAGE = Path(__file__).resolve().parents[1] / "docs/notebooks.md"


def test_the_examples_run_and_give_the_reports_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["tuning.fractions=[100]", "tasks=[digits, digits-rotated]"]
    experiment = load.load(noise="0,20", seeds="0,1,2", overrides=given)
    store = Store(Folder.of(tmp_path / "nml-store"))
    synthetic.fill(build.build(experiment), store)
    last_sweep.remember(experiment, store.root)
    monkeypatch.chdir(tmp_path)

    opened, *examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) == 3
    names: dict[str, Any] = {}
    for example in (opened, *examples):
        exec(example, names)
    assert capsys.readouterr().out.count("\n") > 15

    by_hand, averages = names["table"], names["averages"]
    for level in (0.0, 20.0):
        mean = averages.loc[("id/lp/accuracy", level), "mean"]
        assert by_hand.loc[("id", "lp"), level] == pytest.approx(mean)
    assert averages.loc[("id/lp/accuracy", 20.0), "low"] < mean
    cells = names["cells"]
    one = cells[(cells.task == "digits-rotated") & (cells.noise == 20) & (cells.pretrain_seed == 1)]
    scores = one.set_index("method")["test_metric"]
    added = scores["nmtune-paper"] - scores["mlp"]
    assert names["added"].loc[(20.0, 1)] == pytest.approx(added)

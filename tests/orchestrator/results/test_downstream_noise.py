"""Cells with downstream label noise are shown apart, and are in no average of clean cells."""

import csv
from pathlib import Path

import pytest

import synthetic
from analysis import downstream_noise, wording
from analysis.claims.claims import verdicts
from analysis.figures.downstream_noise import against_label_noise
from analysis.report.page import html_page
from analysis.report.write import write
from analysis.summary import summary
from jobs.storage.folder import Folder
from orchestrator.cli import _run
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepState, StepStatus
from orchestrator.results import collect
from orchestrator.results.tables import FinishedSteps
from orchestrator.store.store import Store
from orchestrator.tracking.runs import RunViews, groups

NOISY = "tuning.label_noise=[0,40]"
TASKS = ["tuning.fractions=[100]", "tasks=[digits, digits-rotated]"]


def planned(*more: str) -> Plan:
    return build.build(load.load(noise="0,10", seeds="0,1", overrides=[*TASKS, *more]))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(Folder.of(tmp_path_factory.mktemp("label-noise")))
    synthetic.fill(planned(NOISY), made)
    return made


def test_no_average_and_no_verdict_has_them(store: Store) -> None:
    clean, both = collect.collect(planned(), store), collect.collect(planned(NOISY), store)
    assert both.label_noise_cells.num_rows == both.cells.num_rows > 0
    assert clean.label_noise_cells.num_rows == 0
    assert both.cells.equals(clean.cells)
    assert both.predictions.equals(clean.predictions)
    assert summary(both).equals(summary(clean))
    assert verdicts(both) == verdicts(clean)


def test_the_report_shows_them_by_method_and_level(store: Store) -> None:
    found = collect.collect(planned(NOISY), store)
    page = html_page(found)
    section = page.partition('<section id="label-noise-tables">')[2].partition("</section>")[0]
    assert "40 % label noise" in section
    assert "10 % pre-training noise" in section
    assert "no other average has these cells" in section
    clean, noisy = downstream_noise.sources(found)
    assert (clean.level, noisy.level) == (0.0, 10.0)
    average = downstream_noise.scores(found, noisy, "id", "lp")
    change = average.change(40.0)
    assert change is not None
    assert change.interval.mean == pytest.approx(-20, abs=2)  # synthetic: half a point a percent
    assert f"Δ {wording.interval(change.interval, sign=True)}" in section
    panels = against_label_noise(found).axes
    assert [axes.get_title(loc="left") for axes in panels] == [
        f"{domain}, {level} % pre-training noise" for domain in ("ID", "OOD") for level in (0, 10)
    ]
    methods = len(planned().experiment.tuning.methods)
    assert all(len(axes.get_legend_handles_labels()[1]) == methods for axes in panels)
    assert not any("label_noise=" in row["address"] for row in found.sorted_cells())


@pytest.mark.slow
def test_a_problem_has_the_coordinates_of_its_address(store: Store, tmp_path: Path) -> None:
    noisy = "tune/c/symmetric/r/noise=30/seed=1/digits/lp/fraction=100/label_noise=20/seed=0"
    of_pretrained = "tune/encoder/mine/digits/lp/fraction=100/seed=0"
    expected = {
        noisy: (30.0, 1, "digits", "lp", 20.0),
        of_pretrained: (None, None, "digits", "lp", 0.0),
        "features/c/symmetric/r/noise=30/seed=1/digits": (30.0, 1, None, None, None),
        "pretrain/c/symmetric/r/noise=0.5/seed=2": (0.5, 2, None, None, None),
        "noise/c/symmetric/draw=0/level=5": (5.0, None, None, None, None),
        "corpus/c": (None, None, None, None, None),
    }
    failed = dict.fromkeys(expected, StepStatus(StepState.FAILED, "too warm, or too cold"))
    readout = FinishedSteps(planned(), store).readout(failed, [])
    names = ("noise", "seed", "task", "method", "label_noise")
    rows = {row["address"]: tuple(map(row.get, names)) for row in readout.problems.to_pylist()}
    assert rows == expected
    write(readout, tmp_path)
    with (tmp_path / "problems.csv").open(newline="") as file:
        (row,) = (row for row in csv.DictReader(file) if row["address"] == noisy)
    assert row == {
        "address": noisy,
        "status": "failed",
        "noise": "30.0",
        "seed": "1",
        "task": "digits",
        "method": "lp",
        "label_noise": "20.0",
        "reason": "too warm, or too cold",
    }


def test_a_sweep_without_them_says_nothing_of_them(store: Store) -> None:
    assert "label-noise" not in html_page(collect.collect(planned(), store))


def test_the_accuracy_on_a_tracking_page_is_of_clean_cells(store: Store) -> None:
    plan = planned(NOISY)
    group = next(iter(groups(plan).values()))
    views = RunViews(plan, store)
    times = {cell.address: "2030-01-01T00:00:00+00:00" for cell in group.cells}
    all_of_them = views.cells(group, views.rows(times), times)
    clean = [cell.address for cell in group.cells if not cell.labels["label_noise"]]
    assert len(clean) < len(group.cells)
    assert all_of_them.points == views.cells(group, views.rows(clean), times).points


def test_pretrained_encoders_have_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(40, np.float32)), 4)
    given = {"key": [f"k{i}" for i in range(10)], "vector": vectors, "label": [0, 1] * 5}
    pq.write_table(pa.table(given), "mine.parquet")
    words = ["--features", "mine.parquet", "--set", NOISY]
    plan = build.build(load.load(features="mine.parquet", overrides=[NOISY]))
    synthetic.fill(plan, Store(Folder.of(tmp_path / "nml-store")))
    assert _run(["report", *words, "--out", "bare"]) == 0
    assert not (tmp_path / "bare/figures").exists()  # by NML_FIGURES=0, which the tests set
    monkeypatch.delenv("NML_FIGURES")
    assert _run(["report", *words, "--out", "made"]) == 0
    capsys.readouterr()
    page = (tmp_path / "made/report.html").read_text()
    section = page.partition('<section id="label-noise-tables">')[2].partition("</section>")[0]
    assert "<td>mine</td>" in section
    assert "40 % label noise" in section
    assert (tmp_path / "made/figures/label-noise.png").stat().st_size > 0
    with (tmp_path / "made/label-noise.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    noisy = [cell for cell in plan.of_kind("tune") if cell.labels["label_noise"]]
    assert [row["label_noise"] for row in rows] == ["40.0"] * len(noisy)
    assert {row["encoder"] for row in rows} == {"mine"}

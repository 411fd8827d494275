"""The progress display: counts of every kind, and messages of running steps only."""

import io
import itertools
import time

import pytest

from orchestrator.plan.states import StepState
from orchestrator.run import progress
from orchestrator.run.progress import Bars, Lines
from orchestrator.step.step import KINDS

RUN = "pretrain/a/symmetric/r/noise={}/seed=0"


@pytest.fixture
def lines() -> tuple[Lines, io.StringIO]:
    printed = io.StringIO()
    return Lines(dict.fromkeys(KINDS, 3), {"corpus": 3}, stream=printed, interval=0), printed


def last(printed: io.StringIO) -> str:
    return printed.getvalue().splitlines()[-1]


def test_a_line_has_only_the_messages_of_running_steps(
    lines: tuple[Lines, io.StringIO],
) -> None:
    display, printed = lines
    for level in (0, 30):
        display.begin(RUN.format(level))
        display.say(RUN.format(level), 0.1, "epoch 1/10")
    assert "pretrain 0/3" in last(printed)
    assert last(printed).endswith(" | noise=30/seed=0  epoch 1/10 (beside 1 more)")
    display.settle(RUN.format(30), StepState.DONE, "")
    assert "pretrain 1/3" in last(printed)
    assert last(printed).endswith(" | noise=0/seed=0  epoch 1/10")
    display.settle(RUN.format(0), StepState.FAILED, "out of memory")
    assert f"failed {RUN.format(0)}: out of memory" in printed.getvalue()
    assert "pretrain 1/3 (1 failed)" in last(printed)
    assert "|" not in last(printed)


def test_messages_of_ended_steps_are_not_shown(
    lines: tuple[Lines, io.StringIO],
) -> None:
    display, printed = lines
    display.begin(RUN.format(0))
    display.settle(RUN.format(0), StepState.DONE, "")
    display.say(RUN.format(0), 0.9, "epoch 9/10")
    assert "epoch" not in last(printed)


def test_lines_keep_their_interval_and_the_last_counts_are_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    printed = io.StringIO()
    display = Lines({"tune": 1}, {}, stream=printed, interval=1000)
    display.begin("tune/x")
    for _ in range(20):
        display.say("tune/x", 0.5, "8 configurations")
    assert printed.getvalue() == ""
    display.settle("tune/x", StepState.DONE, "")
    display.close()
    assert printed.getvalue().count("\n") == 1
    assert last(printed).endswith("tune 1/1")


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_narrow_screen_cuts_messages_but_not_counts(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    bars = Bars(dict.fromkeys(KINDS, 240), {"corpus": 240})
    bars.begin(RUN.format(30))
    bars.say(RUN.format(30), 0.5, "epoch 1/10 loss 4.312, 1,208 images/s, of which nobody waits")
    for number in range(3):
        bars.begin(f"tune/{number}")
        bars.settle(f"tune/{number}", StepState.FAILED, "out of memory")
    bars.close()
    *_, table = capsys.readouterr().err.rpartition("corpus")
    assert max(map(len, table.splitlines())) <= columns
    printed = {line.split()[0]: line for line in f"corpus{table}".splitlines() if line.strip()}
    assert printed.keys() == {*KINDS, "sweep"}
    assert "240/240" in printed["corpus"]
    assert "0/240" in printed["pretrain"]
    assert "noise=30" in printed["pretrain"]
    assert "0/240 (3 failed)" in printed["tune"]


def test_the_time_left_stands_in_80_columns_below_a_heading(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    clock = itertools.count(step=60)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    bars = Bars({"pretrain": 3}, {})
    bars.begin(RUN.format(0))
    bars.settle(RUN.format(0), StepState.DONE, "")
    bars.begin(RUN.format(30))
    bars.close()
    shown = capsys.readouterr().err.splitlines()
    assert any(line.split()[:3] == ["stage", "steps", "time"] for line in shown)
    whole = next(line for line in reversed(shown) if line.startswith("sweep"))
    assert len(whole) <= 80
    assert "1/3" in whole
    assert "min left" in whole


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_cells_that_are_only_evaluated_do_not_count_as_much_time(clock: list[float]) -> None:
    cells = [f"tune/a/symmetric/r/noise=0/seed=0/t/lp/fraction=100/seed={n}" for n in range(6)]
    printed = io.StringIO()
    display = Lines({"tune": 6}, {}, dict.fromkeys(cells[3:]), stream=printed, interval=0)
    display.begin(cells[0])
    display.say(cells[0], 0.0, "8 configurations")
    clock[0] = 600.0
    display.settle(cells[0], StepState.DONE, "")
    assert "(about 20 min left)" in last(printed)
    display.begin(cells[3])
    display.settle(cells[3], StepState.DONE, "")
    assert "(about 20 min left)" in last(printed), "an evaluation is no third of the work"


def test_cells_that_do_other_work_have_a_rate_of_their_own(clock: list[float]) -> None:
    cells = [f"tune/a/symmetric/r/noise=0/seed=0/t/ft/fraction=100/seed={n}" for n in range(6)]
    printed = io.StringIO()
    works = dict.fromkeys(cells[2:], "evaluation")
    display = Lines({"tune": 7}, {"tune": 1}, works, stream=printed, interval=0)
    display.begin(cells[0])
    display.say(cells[0], 0.0, "8 configurations")
    clock[0] = 600.0
    display.settle(cells[0], StepState.DONE, "")
    assert "(at least 10 min left)" in last(printed), "no evaluation has been seen"
    display.begin(cells[2])
    display.say(cells[2], 0.0, "images")
    clock[0] = 660.0
    display.say(cells[2], 0.5, "images")
    assert "(about 17 min left)" in last(printed), "10 for the other cell, and 3.5 times 2"


def test_a_step_that_waits_for_a_cpu_is_charged_no_time(clock: list[float]) -> None:
    cell = "tune/a/symmetric/r/noise=0/seed=0/t/lp/fraction=100/seed=0"
    printed = io.StringIO()
    display = Lines({"pretrain": 2, "tune": 2}, {}, stream=printed, interval=0)
    display.begin(RUN.format(0))
    display.say(RUN.format(0), 0.0, "epoch 0/10")
    display.begin(cell)
    clock[0] = 600.0
    display.settle(RUN.format(0), StepState.DONE, "")
    display.say(cell, 0.0, "8 configurations")
    clock[0] = 660.0
    display.settle(cell, StepState.DONE, "")
    assert "(about 11 min left)" in last(printed), "10 for the other run, 1 for the other cell"


def test_a_log_is_never_silent_for_ten_seconds() -> None:
    assert progress.INTERVAL_SECONDS * 1.25 <= 10.0
    printed = io.StringIO()
    display = Lines({"pretrain": 1}, {}, stream=printed, interval=0.2)
    display.begin(RUN.format(0))  # and nothing is said of it
    time.sleep(1.5)
    assert printed.getvalue().count("pretrain 0/1") >= 2
    display.close()

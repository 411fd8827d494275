"""The face of a run: counts of every kind, and what the running steps say, no others."""

import io
import itertools

import pytest

from orchestrator.plan.states import StepState
from orchestrator.run import progress
from orchestrator.run.progress import Bars, Lines
from orchestrator.step.step import KINDS

RUN = "pretrain/a/symmetric/r/noise={}/seed=0"


@pytest.fixture
def lines() -> tuple[Lines, io.StringIO]:
    shown = io.StringIO()
    return Lines(dict.fromkeys(KINDS, 3), {"corpus": 3}, stream=shown, interval=0), shown


def last(shown: io.StringIO) -> str:
    return shown.getvalue().splitlines()[-1]


def test_a_line_has_the_words_of_what_runs_and_of_nothing_else(
    lines: tuple[Lines, io.StringIO],
) -> None:
    face, shown = lines
    for level in (0, 30):
        face.begin(RUN.format(level))
        face.say(RUN.format(level), 0.1, "epoch 1/10")
    assert "pretrain 0/3" in last(shown)
    assert last(shown).endswith(" | noise=30/seed=0  epoch 1/10 (beside 1 more)")
    face.settle(RUN.format(30), StepState.DONE, "")
    assert "pretrain 1/3" in last(shown)
    assert last(shown).endswith(" | noise=0/seed=0  epoch 1/10")
    face.settle(RUN.format(0), StepState.FAILED, "out of memory")
    assert f"failed {RUN.format(0)}: out of memory" in shown.getvalue()
    assert "pretrain 1/3 (1 failed)" in last(shown)
    assert "|" not in last(shown)


def test_what_is_said_of_a_step_that_has_ended_is_not_shown(
    lines: tuple[Lines, io.StringIO],
) -> None:
    face, shown = lines
    face.begin(RUN.format(0))
    face.settle(RUN.format(0), StepState.DONE, "")
    face.say(RUN.format(0), 0.9, "epoch 9/10")
    assert "epoch" not in last(shown)


def test_lines_keep_their_interval_and_the_last_state_is_always_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    shown = io.StringIO()
    face = Lines({"tune": 1}, {}, stream=shown, interval=1000)
    face.begin("tune/x")
    for _ in range(20):
        face.say("tune/x", 0.5, "8 configurations")
    assert shown.getvalue() == ""
    face.settle("tune/x", StepState.DONE, "")
    face.close()
    assert shown.getvalue().count("\n") == 1
    assert last(shown).endswith("tune 1/1")


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_narrow_screen_cuts_the_words_and_no_counts(
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
    shown = {line.split()[0]: line for line in f"corpus{table}".splitlines() if line.strip()}
    assert shown.keys() == set(KINDS)
    assert "240/240" in shown["corpus"]
    assert "0/240" in shown["pretrain"]
    assert "noise=30" in shown["pretrain"]
    assert "0/240 (3 failed)" in shown["tune"]

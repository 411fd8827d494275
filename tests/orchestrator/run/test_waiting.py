"""No command is silent for long, and what is quick leaves no trace."""

import io
import signal
import time

import pytest

from orchestrator.run import waiting as module
from orchestrator.run.sweep import _Once
from orchestrator.run.waiting import waiting


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_what_is_done_within_a_second_and_clears_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert module.SHOWN_AFTER < 2.0
    monkeypatch.setattr(module, "SHOWN_AFTER", 0.01)
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with waiting("reaching s3://bucket"):
        time.sleep(0.3)
    assert "reaching s3://bucket ... 0 s" in screen.getvalue()
    assert screen.getvalue().endswith(module.CLEAR)


def test_a_log_gets_a_line_only_when_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.SAID_EVERY < 10.0
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    with waiting("reading"):
        pass
    assert log.getvalue() == ""
    monkeypatch.setattr(module, "SAID_EVERY", 0.05)
    with waiting("reading"):
        time.sleep(0.4)
    assert log.getvalue().startswith("reading ... 0 s\n")


def test_an_error_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Terminal())
    with pytest.raises(ValueError, match="wrong"), waiting("reading"):
        raise ValueError("wrong")


def test_ctrl_c_is_seen_once() -> None:
    """The first ends the run; those that follow do not disturb its end."""
    seen = _Once()
    with pytest.raises(KeyboardInterrupt):
        seen(signal.SIGINT, None)
    seen(signal.SIGINT, None)

"""Works as plain Ray tasks: each is reported by itself, in a form that can leave its process."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ray

from jobs.contract import Failure, Hooks, Outcome, Spec, StageError, Work
from jobs.remote import guarded, received, report_each
from jobs.storage.folder import Folder


class OnlyHereError(Exception):
    """Does not unpickle: its class needs more arguments than its message."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def act(work: Work) -> Outcome:
    """Do what the work's address names."""
    match work.address.partition("/")[0]:
        case "fault":
            raise StageError("the sentence")
        case "bug":
            raise OnlyHereError("a", "bug")
        case "death":
            os._exit(1)
        case "slow":
            while not work.output.exists("ended"):  # Ray cannot end a task within one long sleep
                time.sleep(0.1)
    return Outcome({"pid": os.getpid()})


@dataclass
class Reports:
    results: dict[str, Outcome | BaseException] = field(default_factory=dict)
    stop: Callable[[], bool] = lambda: False

    @property
    def hooks(self) -> Hooks:
        def done(address: str, result: Outcome | BaseException) -> None:
            assert address not in self.results
            self.results[address] = result

        return Hooks(done, lambda *_: None, lambda: self.stop())


def works(folder: Path, *addresses: str) -> list[Work]:
    root = Folder.of(folder)
    return [Work(address, "0", Spec(), {}, root, root) for address in addresses]


def test_each_work_is_reported_by_itself_and_errors_can_travel(
    ray_session: None, tmp_path: Path
) -> None:
    reports = Reports()
    together = works(tmp_path, "good/1", "fault", "bug", "good/2")
    report_each(act, [(together, 1, 0)], reports.hooks)
    assert list(reports.results) == ["good/1", "fault", "bug", "good/2"]
    one, fault, bug, two = reports.results.values()
    assert isinstance(one, Outcome)
    assert one == two  # of one process, which is not the caller's
    assert one.counts["pid"] != os.getpid()
    assert isinstance(fault, StageError)
    assert str(fault) == "the sentence"
    assert isinstance(bug, RuntimeError)
    assert str(bug) == "OnlyHereError: a bug"
    assert any("in act" in note for note in bug.__notes__)


def test_a_process_that_dies_is_the_result_of_its_own_works_alone(
    ray_session: None, tmp_path: Path
) -> None:
    reports = Reports()
    lost, kept = works(tmp_path, "death", "good")
    report_each(act, [([lost], 1, 0), ([kept], 1, 0)], reports.hooks)
    assert isinstance(reports.results["death"], ray.exceptions.RayError)
    assert isinstance(reports.results["good"], Outcome)


def test_a_request_to_stop_soon_ends_the_rest_without_a_report(
    ray_session: None, tmp_path: Path
) -> None:
    reports = Reports()
    reports.stop = lambda: "good" in reports.results
    quick, slow = works(tmp_path, "good", "slow")
    report_each(act, [([quick], 1, 0), ([slow], 1, 0)], reports.hooks)
    assert set(reports.results) == {"good"}
    # Ray may not cancel a task that begins at that moment. It would keep its CPU from other tests.
    (tmp_path / "ended").touch()


def broken() -> Outcome:
    raise StageError("the sentence")


def test_a_stage_errors_message_does_not_change() -> None:
    failure = guarded("tune/a", broken)
    assert isinstance(failure, Failure)
    assert (failure.sentence, failure.final, failure.address) == ("the sentence", True, "tune/a")
    assert "in broken" in failure.traceback
    error = received(failure)
    assert isinstance(error, StageError)
    assert str(error) == "the sentence"


@pytest.mark.parametrize(
    ("error", "sentence", "final"),
    [
        (StageError("the sentence"), "the sentence", True),
        (OnlyHereError("a", "bug"), "OnlyHereError: a bug", False),
        (ValueError("many\n\nlines\n"), "ValueError: lines", False),
        (ValueError(), "ValueError: no message", False),
        (ray.exceptions.RayTaskError("f", "trace", StageError("inner")), "inner", True),
    ],
)
def test_a_failure_stays_the_same_however_many_processes_it_crosses(
    error: Exception, sentence: str, final: bool
) -> None:
    first = Failure.of(error, "tune/a")
    assert (first.sentence, first.final) == (sentence, final)
    sent = Failure.from_json(first.as_json())
    assert sent == pickle.loads(pickle.dumps(first)) == first
    again = Failure.of(sent.as_error(), "tune/a")
    assert (again.sentence, again.final, again.address) == (sentence, final, "tune/a")
    assert sent.traceback in again.traceback

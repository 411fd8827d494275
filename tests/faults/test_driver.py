"""What happens to a sweep whose driver is killed or stopped.

One sweep is struck four times, twice while it pre-trains, and goes on each time. It starts
from a finished store that lacks what comes of one noise level.
"""

import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mlflow import MlflowClient

import stores
from commands import TINY, Command, Start
from jobs.storage.folder import Folder
from orchestrator.run.watchdog import ENDED
from stores import LEVEL_20, digests, finished, table

pytestmark = [pytest.mark.faults, pytest.mark.slow]

OFTEN = ["--set", "pretrain.checkpoint_minutes=0.005"]


@dataclass
class Struck:
    """What one blow left."""

    code: int
    output: str
    alive: list[str]  # processes of the sweep that are still there
    done: dict[str, str]  # the steps committed by then, and when


@dataclass
class Story:
    """The sweep, its blows by name, and what the last driver said."""

    folder: Path
    blows: dict[str, Struck] = field(default_factory=dict)
    code: int = -1
    output: str = ""


def pretraining(folder: Path) -> Callable[[], bool]:
    """Whether a checkpoint has been written since now."""
    scratch = folder / "nml-store/.scratch/pretrain"
    before = set(scratch.rglob("checkpoint-*.json"))
    return lambda: bool(set(scratch.rglob("checkpoint-*.json")) - before)


def extracting(folder: Path) -> Callable[[], bool]:
    """Whether the pre-training of the level that was missing is done."""
    encoder = folder / "nml-store" / LEVEL_20[0]
    return lambda: any(encoder.rglob("manifest.json"))


def tuning(folder: Path) -> Callable[[], bool]:
    """Whether a cell of the level that was missing is done."""
    cells = folder / "nml-store" / LEVEL_20[2]
    return lambda: any(cells.rglob("manifest.json"))


def to_all(sent: signal.Signals) -> Callable[[Command], None]:
    return lambda command: os.killpg(command.process.pid, sent)


def to_the_driver(sent: signal.Signals) -> Callable[[Command], None]:
    return lambda command: os.kill(command.process.pid, sent)


BLOWS = {
    "ctrl-c": (pretraining, to_all(signal.SIGINT)),
    "kill in pre-training": (pretraining, to_the_driver(signal.SIGKILL)),
    "sigterm": (extracting, to_all(signal.SIGTERM)),
    "kill in tuning": (tuning, to_the_driver(signal.SIGKILL)),
}
POLITE = ["ctrl-c", "sigterm"]


@pytest.fixture(scope="module")
def story(undisturbed: Path, start: Start, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = stores.copy(undisturbed, tmp_path_factory.mktemp("struck"), *LEVEL_20)
    told = Story(folder)
    for name, (moment, strike) in BLOWS.items():
        reached = moment(folder)
        command = start(folder, "sweep", *TINY, *OFTEN)
        command.wait_until(reached, f"the moment of {name}")
        strike(command)
        code, output = command.finish()
        told.blows[name] = Struck(code, output, command.left(), finished(folder))
    told.code, told.output = start(folder, "sweep", *TINY, *OFTEN).finish()
    return told


@pytest.mark.parametrize("blow", BLOWS)
def test_a_struck_sweep_leaves_no_process_behind(story: Story, blow: str) -> None:
    assert story.blows[blow].alive == []


@pytest.mark.parametrize("blow", POLITE)
def test_a_stopped_sweep_says_that_it_goes_on_from_here(story: Story, blow: str) -> None:
    struck = story.blows[blow]
    assert struck.code == 130, struck.output
    assert "the same command continues from here" in struck.output
    assert ENDED not in struck.output
    assert "Traceback" not in struck.output


@pytest.mark.parametrize("blow", [name for name in BLOWS if name not in POLITE])
def test_a_killed_sweep_leaves_a_sentence_too(story: Story, blow: str) -> None:
    assert ENDED in story.blows[blow].output


@pytest.mark.parametrize("blow", BLOWS)
def test_a_finished_step_is_not_run_twice(story: Story, blow: str) -> None:
    assert story.blows[blow].done
    assert story.blows[blow].done.items() <= finished(story.folder).items()


def test_a_struck_sweep_goes_on_to_the_same_numbers(story: Story, undisturbed: Path) -> None:
    assert story.code == 0, story.output
    found, expected = (
        {name: digest for name, digest in digests(Folder.of(root)).items() if name[:4] != "tune"}
        for root in (story.folder / "nml-store", undisturbed / "nml-store")
    )
    assert found == expected
    assert table(story.folder) == table(undisturbed)


def test_a_struck_sweep_has_one_run_in_mlflow_for_each_step(story: Story) -> None:
    after = finished(story.folder)
    runs = runs_by_address(story.folder)
    assert max(runs.values()) == 1
    steps = {address for address in after if not address.startswith("tune/")}
    cells = {  # one run an encoder and method
        "/".join([*parts[:6], parts[7]])
        for parts in (address.split("/") for address in after if address.startswith("tune/"))
    }
    methods = {f"sweep/demo/{address.rpartition('/')[2]}" for address in cells}
    assert set(runs) == {*steps, *cells, "sweep/demo", *methods}


def runs_by_address(folder: Path) -> Counter[str]:
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("demo")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    return Counter(run.data.tags["nml.address"] for run in runs)

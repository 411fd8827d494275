"""What happens to a sweep whose training worker is killed, or that is signalled as a whole."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from commands import Command, Start

pytestmark = [pytest.mark.faults, pytest.mark.slow]

RUN = "pretrain/digits/symmetric/resnet-small/noise=20/seed=0"


def words(*sets: str) -> list[str]:
    """A sweep that is hardly more than one pre-training run, long enough to be hit."""
    fixed = [
        "pretrain.recipe.schedule.epochs=12",
        "pretrain.recipe.schedule.batch_size=32",
        "pretrain.checkpoint_minutes=0.005",
        "tasks=[digits]",
        "tuning.fractions=[100]",
        "tuning.configurations=1",
        "tuning.epochs=1",
        "tuning.methods={lp: {head: linear, space: {lr: 0.01}}}",
    ]
    return ["sweep", "--noise", "20", *[w for each in (*fixed, *sets) for w in ("--set", each)]]


STREAMED = "pretrain.resources.decoded_gb=0"


def weights(folder: Path) -> bytes:
    return (folder / "nml-store" / RUN / "model.safetensors").read_bytes()


def table(folder: Path) -> bytes:
    return (folder / "nml-store/report/demo/table.csv").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, output = start(folder, *words()).finish()
    assert code == 0, output
    return folder


def scratch(folder: Path) -> Path:
    return folder / "nml-store/.scratch/pretrain"


def checkpoints(folder: Path) -> list[Path]:
    return sorted(scratch(folder).rglob("checkpoint-*.json"))


def wait_until(command: Command, reached: Callable[[], bool], timeout: float = 180) -> None:
    deadline = time.monotonic() + timeout
    while not reached():
        assert command.process.poll() is None, command.finish()
        assert time.monotonic() < deadline, "the moment to strike never came"
        time.sleep(0.02)


def worker_of(command: Command) -> psutil.Process | None:
    for process in psutil.Process(command.process.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                return process
        except psutil.NoSuchProcess:
            continue
    return None


def test_a_worker_killed_while_it_streams_ends_with_the_held_runs_weights(
    start: Start, undisturbed: Path, tmp_path: Path
) -> None:
    command = start(tmp_path, *words(STREAMED))
    wait_until(command, lambda: bool(checkpoints(tmp_path)))
    worker = worker_of(command)
    assert worker is not None
    worker.kill()
    code, output = command.finish()
    assert code == 0, output
    assert weights(tmp_path) == weights(undisturbed)
    assert table(tmp_path) == table(undisturbed)


def test_a_signal_to_all_of_a_sweep_leaves_what_the_next_one_goes_on_from(
    start: Start, undisturbed: Path, tmp_path: Path
) -> None:
    command = start(tmp_path, *words())
    wait_until(command, lambda: bool(checkpoints(tmp_path)))
    os.killpg(command.process.pid, signal.SIGTERM)
    code, output = command.finish(timeout=60)
    assert code == 130, output
    assert "Traceback" not in output
    deadline = time.monotonic() + 20
    while command.alive() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert command.alive() == []
    code, output = start(tmp_path, *words()).finish()
    assert code == 0, output
    assert weights(tmp_path) == weights(undisturbed)
    assert table(tmp_path) == table(undisturbed)

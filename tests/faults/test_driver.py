"""What happens to a sweep whose driver is killed, or stopped, or whose step fails."""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from commands import TINY, Command, Start

pytestmark = [pytest.mark.faults, pytest.mark.slow]


def table(folder: Path) -> bytes:
    return (folder / "nml-store/report/demo/table.csv").read_bytes()


def finished(folder: Path) -> dict[str, str]:
    """When each committed step was finished."""
    root = folder / "nml-store"
    return {
        str(path.parent.relative_to(root)): json.loads(path.read_text())["provenance"]["finished"]
        for path in root.rglob("manifest.json")
        if "report" not in path.parts
    }


def wait_until(command: Command, reached: Callable[[], bool], timeout: float = 180) -> None:
    deadline = time.monotonic() + timeout
    while not reached():
        assert command.process.poll() is None, command.finish()
        assert time.monotonic() < deadline, "the moment to strike never came"
        time.sleep(0.05)


def training(folder: Path) -> Callable[[], bool]:
    scratch = folder / "nml-store/.scratch/pretrain"
    return lambda: any(p.suffix == ".safetensors" for p in scratch.rglob("*"))


def tuning(folder: Path) -> Callable[[], bool]:
    cells = folder / "nml-store/tune"
    return lambda: len(list(cells.rglob("manifest.json"))) >= 2


@pytest.mark.parametrize("moment", [training, tuning])
def test_a_killed_sweep_goes_on_to_the_same_numbers(
    moment: Callable[[Path], Callable[[], bool]],
    undisturbed: Path,
    start: Start,
    tmp_path: Path,
) -> None:
    command = start(tmp_path, "sweep", *TINY)
    wait_until(command, moment(tmp_path))
    os.kill(command.process.pid, signal.SIGKILL)
    command.process.wait()
    deadline = time.monotonic() + 30
    while command.alive() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert command.alive() == []
    before = finished(tmp_path)
    assert before
    code, output = start(tmp_path, "sweep", *TINY).finish()
    assert code == 0, output
    after = finished(tmp_path)
    assert before.items() <= after.items(), "a finished step was run twice"
    assert table(tmp_path) == table(undisturbed)
    assert max(runs_by_address(tmp_path).values()) == 1
    steps = {address for address in after if not address.startswith("tune/")}
    cells = {  # one run an encoder and method
        "/".join([*parts[:6], parts[7]])
        for parts in (address.split("/") for address in after if address.startswith("tune/"))
    }
    assert set(runs_by_address(tmp_path)) == {*steps, *cells, "sweep/demo"}


def runs_by_address(folder: Path) -> Counter[str]:
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("demo")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    return Counter(run.data.tags["nml.address"] for run in runs)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_leaves_no_process_behind(
    sent: signal.Signals, start: Start, tmp_path: Path
) -> None:
    command = start(tmp_path, "sweep", *TINY)
    wait_until(command, training(tmp_path))
    os.killpg(command.process.pid, sent) if sent is signal.SIGINT else command.process.send_signal(
        sent
    )
    code, output = command.finish(timeout=60)
    assert code == 130
    assert "the same command goes on from here" in output
    assert "Traceback" not in output
    deadline = time.monotonic() + 10
    while command.alive() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert command.alive() == []


def test_a_step_that_cannot_be_done_is_named_and_the_rest_goes_on(
    start: Start, tmp_path: Path
) -> None:
    broken = ["--set", "pretrain.recipe.model_options={no_such_option: 1}"]
    code, output = start(tmp_path, "sweep", *TINY, *broken).finish()
    assert code == 1, output
    assert "pretrain/digits/symmetric/resnet-small/noise=0/seed=0" in output
    assert "no_such_option" in output
    assert "Traceback" not in output
    assert any(address.startswith("noise/") for address in finished(tmp_path))


def test_a_sweep_whose_first_step_fails_says_why_and_no_more(start: Start, tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing of the kind")
    corpus = "{name: mine, reader: {kind: parquet, path: broken.parquet, label: label}}"
    task = f"name: mine\ntitle: Mine\ndomain: id\ncorpus: {corpus}\n"
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/mine.yaml").write_text(task)
    sets = [f"corpus={corpus}", "tasks=[mine]", "task_folders=[tasks]"]
    words = [word for value in sets for word in ("--set", value)]
    code, output = start(tmp_path, "sweep", "--noise", "0", *words).finish()
    assert code == 1, output
    assert "failed   corpus/mine: " in output
    assert "broken.parquet" in output
    assert "nothing to report" not in output
    assert "Traceback" not in output

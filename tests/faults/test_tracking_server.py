"""What happens to a sweep whose MLflow server goes away half-way."""

import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

import synthetic
from commands import TINY, Command, Start, free_port
from jobs.storage.folder import Folder
from orchestrator import experiment, mirror, planner
from orchestrator.shown import groups
from orchestrator.store import Store

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@contextmanager
def server(folder: Path, port: int) -> Iterator[str]:
    """A real MLflow server on loopback, over a database in the folder."""
    uri = f"http://127.0.0.1:{port}"
    store = f"sqlite:///{folder}/server.db"
    words = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    words += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(
        words,
        cwd=folder,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1)
                break
            except OSError:
                assert time.monotonic() < deadline, "the MLflow server did not start"
                time.sleep(0.3)
        yield uri
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=30)


def addresses(uri: str) -> Counter[str]:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("demo")
    runs = [] if experiment is None else client.search_runs([experiment.experiment_id])
    return Counter(run.data.tags["nml.address"] for run in runs)


RUNS = 1 + 2 + 2 + 4 + 2 * 4 + 1  # steps, one for the cells of an encoder and method, the sweep


def wait_until(command: Command, reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not reached():
        assert command.process.poll() is None, command.finish()
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.5)


def test_the_sweep_finishes_says_so_once_and_sync_fills_the_gap(
    start: Start, tmp_path: Path
) -> None:
    port, folder = free_port(), tmp_path / "sweep"
    with server(tmp_path, port) as uri:
        command = start(folder, "sweep", *TINY, MLFLOW_TRACKING_URI=uri)
        wait_until(command, lambda: any(a.startswith("pretrain/") for a in addresses(uri)))
    code, output = command.finish()
    assert code == 0, output
    assert output.count("does not answer") == 1, output
    assert "nml-orch sync" in output
    assert not (folder / "mlflow.db").exists()
    with server(tmp_path, port) as uri:
        before = addresses(uri)
        code, output = start(folder, "sync", *TINY, MLFLOW_TRACKING_URI=uri).finish()
        assert code == 0, output
        after = addresses(uri)
    assert before < after
    assert max(after.values()) == 1
    assert len(after) == RUNS


def test_a_server_that_is_away_for_a_while_needs_no_sync(start: Start, tmp_path: Path) -> None:
    port, folder = free_port(), tmp_path / "sweep"
    longer = ["--set", "pretrain.recipe.schedule.epochs=60"]
    with server(tmp_path, port) as uri:
        command = start(folder, "sweep", *TINY, *longer, MLFLOW_TRACKING_URI=uri)
        wait_until(command, lambda: "corpus/digits" in addresses(uri))
    wait_until(command, lambda: bool(list((folder / "nml-store/pretrain").rglob("manifest.json"))))
    with server(tmp_path, port) as uri:
        code, output = command.finish()
        assert code == 0, output
        found = addresses(uri)
    assert len(found) == RUNS
    assert max(found.values()) == 1
    assert output.count("does not answer") == 1, output


def test_what_was_missed_is_told_as_soon_as_the_server_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the sweep goes on: whoever looks need not wait for its end."""
    monkeypatch.setattr(mirror, "AGAIN_SECONDS", 1.0)
    made = planner.build(experiment.load(noise="0,20", overrides=["tasks=[digits]"]))
    store = Store(Folder.of(tmp_path / "store"))
    said: list[str] = []
    port = free_port()
    tracker = mirror.Tracker(made, store, f"http://127.0.0.1:{port}", say=said.append)
    try:
        for manifest in synthetic.fill(made, store):
            tracker.commit(made.steps[manifest.address], manifest)
        deadline = time.monotonic() + 120
        while not said:
            assert time.monotonic() < deadline, "nothing was said of a server that is not there"
            time.sleep(0.1)
        assert "does not answer" in said[0]
        with server(tmp_path, port) as uri:
            while len(said) < 2:
                assert time.monotonic() < deadline, said
                time.sleep(0.2)
            found = addresses(uri)
        assert "answers again" in said[1]
        assert set(found) == {
            *(step.address for step in made.steps.values() if step.kind != "tune"),
            *groups(made),
            "sweep/demo",
        }
        assert max(found.values()) == 1
    finally:
        tracker.close(None)

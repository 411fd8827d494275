"""What happens to a sweep whose MLflow server goes away half-way."""

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

import stores
import synthetic
from commands import TINY, Run, answers, free_port, waiting
from jobs.storage.folder import Folder
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.results import collect
from orchestrator.store.store import Store
from orchestrator.tracking import mirror
from orchestrator.tracking.runs import groups
from stores import LEVEL_20

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
        for _ in waiting("the start of the MLflow server", every=0.2):
            if answers(f"{uri}/health"):
                break
        yield uri
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def addresses(uri: str) -> Counter[str]:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("demo")
    runs = [] if experiment is None else client.search_runs([experiment.experiment_id])
    return Counter(run.data.tags["nml.address"] for run in runs)


RUNS = (
    1 + 1 + 2 + 2 + 2 + 4 + 2 * 3 + 1 + 3
)  # steps, the cells of an encoder and method, the sweep, its methods


def test_the_sweep_finishes_says_so_once_and_sync_fills_the_gap(
    undisturbed: Path, run: Run, run_on_ray: Run, tmp_path: Path
) -> None:
    """Of a sweep that lacks what comes of one level's encoder."""
    port, folder = free_port(), stores.copy(undisturbed, tmp_path / "sweep", *LEVEL_20[1:])
    asked, ended = threading.Event(), threading.Event()

    def serve_until_features_are_there() -> None:
        with server(tmp_path, port) as uri:
            asked.set()
            for _ in waiting("features in MLflow", every=0.5):
                if ended.is_set() or f"{LEVEL_20[1]}/seed=0/digits" in addresses(uri):
                    return

    serving = threading.Thread(target=serve_until_features_are_there)
    serving.start()
    asked.wait()
    uri = f"http://127.0.0.1:{port}"
    try:
        code, output = run_on_ray(folder, "sweep", *TINY, MLFLOW_TRACKING_URI=uri)
    finally:
        ended.set()
        serving.join()
    assert code == 0, output
    assert output.count("does not answer") == 1, output
    assert "nml-orch sync" in output
    assert not (folder / "mlflow.db").exists()
    with server(tmp_path, port) as uri:
        before = addresses(uri)
        code, output = run(folder, "sync", *TINY, MLFLOW_TRACKING_URI=uri)
        assert code == 0, output
        after = addresses(uri)
    assert before < after
    assert max(after.values()) == 1
    assert len(after) == RUNS


def test_what_was_missed_is_told_as_soon_as_the_server_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the sweep goes on, for whoever looks need not wait for its end; or else at its end."""
    monkeypatch.setattr(mirror, "RETRY_SECONDS", 1.0)
    made = build.build(load.load(noise="0,20", overrides=["tasks=[digits]"]))
    store = Store(Folder.of(tmp_path / "store"))
    manifests = synthetic.fill(made, store)
    steps = {m.address: m for m in manifests if not m.address.startswith("tune/")}
    said: list[str] = []
    port = free_port()
    tracker = mirror.Tracker(made, store, f"http://127.0.0.1:{port}", say=said.append)
    closed = False

    def commit(which: Callable[[str], bool]) -> None:
        for manifest in manifests:
            if which(manifest.address):
                tracker.commit(made.steps[manifest.address], manifest)

    def hear(words: str, count: int) -> None:
        for _ in waiting(words):
            if len(said) >= count:
                break
        assert words in said[count - 1]

    try:
        commit(lambda address: address in steps)
        hear("does not answer", 1)
        with server(tmp_path, port) as uri:
            hear("answers again", 2)
            assert set(addresses(uri)) == {*steps, "sweep/demo"}
        commit(lambda address: address not in steps)
        hear("does not answer", 3)
        with server(tmp_path, port) as uri:
            report = collect.refresh(made, store)
            with collect.local(report) as files:
                closed = True
                assert tracker.close(report.record(files))
            found = addresses(uri)
        methods = {f"sweep/demo/{name}" for name in made.experiment.tuning.methods}
        assert set(found) == {*steps, *groups(made), "sweep/demo", *methods}
        assert max(found.values()) == 1
    finally:
        if not closed:
            tracker.close(None)

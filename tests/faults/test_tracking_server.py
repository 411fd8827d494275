"""What happens to a sweep whose MLflow server goes away half-way."""

import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from commands import TINY, Start, free_port

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


def test_the_sweep_finishes_says_so_once_and_sync_fills_the_gap(
    start: Start, tmp_path: Path
) -> None:
    port, folder = free_port(), tmp_path / "sweep"
    with server(tmp_path, port) as uri:
        command = start(folder, "sweep", *TINY, MLFLOW_TRACKING_URI=uri)
        deadline = time.monotonic() + 240
        while not any(a.startswith("pretrain/") for a in addresses(uri)):
            assert command.process.poll() is None, command.finish()
            assert time.monotonic() < deadline, "no pre-training run was mirrored"
            time.sleep(0.5)
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
    steps, cells = 1 + 2 + 2 + 4, 2 * 4  # one run for the cells of an encoder and method
    assert len(after) == steps + cells + 1  # and the sweep's own

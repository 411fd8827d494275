"""What `sync` and `ui` tell their user to do works when it is done, with a real MLflow."""

import importlib.util
import os
import re
import shlex
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from commands import Run, free_port
from followed import Case
from jobs.storage.folder import Folder
from orchestrator.step.address import TrackingAddress
from orchestrator.store.lease import Leases

HERE = "sqlite:///m.db"
ELSEWHERE = (
    r"(name another server with|set (?P<variable>\w+) or) (?P<option>--set tracking\.uri)=URI$"
)


@pytest.fixture(scope="module")
def synced(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """The folder of a store whose runs are in a database beside it."""
    folder = tmp_path_factory.mktemp("synced")
    Case(folder).store()
    code, output = run(folder, "sync", MLFLOW_TRACKING_URI=HERE)
    assert code == 0, output
    return folder


def refused(folder: Path, run: Run, remedy: str, words: str, **environment: str) -> re.Match[str]:
    code, output = run(folder, *shlex.split(words), **environment)
    assert code != 0
    found = re.search(remedy, output.strip())
    assert found is not None, output
    return found


def synchronized(folder: Path, run: Run, words: str, **environment: str) -> None:
    code, output = run(folder, *shlex.split(words), **environment)
    assert code == 0, output
    assert "MLflow is now up to date with the store" in output


@pytest.mark.parametrize("configured", [False, True])
def test_another_server_is_named_as_the_message_says(
    configured: bool, synced: Path, run: Run
) -> None:
    """A variable is no remedy where the experiment names the server."""
    dead = f"http://127.0.0.1:{free_port()}"
    words = f"sync --set tracking.uri={dead}" if configured else "sync"
    environment = {} if configured else {"MLFLOW_TRACKING_URI": dead}
    remedy = f"does not answer .*; start it, or {ELSEWHERE}"
    found = refused(synced, run, remedy, words, **environment)
    assert (found["variable"] is None) == configured
    synchronized(synced, run, f"sync {found['option']}={HERE}", **environment)
    if not configured:
        synchronized(synced, run, words, **{found["variable"]: HERE})


@pytest.mark.skipif(
    importlib.util.find_spec("psycopg2") is not None, reason="the driver is installed"
)
@pytest.mark.parametrize("command", ["sync", "plan"])
def test_a_database_without_a_driver_is_not_to_be_started(
    command: str, synced: Path, run: Run
) -> None:
    uri = "postgresql+psycopg2://127.0.0.1:1/x"
    _, output = run(synced, command, MLFLOW_TRACKING_URI=uri)
    remedy = (
        r"MLflow cannot open .* \(No module named '\w+'\); .*install that driver, or set (\w+) or"
    )
    found = re.search(remedy, " ".join(output.split()))
    assert found is not None, output
    code, output = run(synced, command, **{found[1]: HERE})
    assert code == 0
    assert "driver" not in output


class Forbidding(BaseHTTPRequestHandler):
    """A server that lets nobody in."""

    def _forbid(self) -> None:
        self.send_response(403)
        self.end_headers()

    do_GET = do_POST = _forbid  # noqa: N815 - names of the base class

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_a_server_that_refuses_is_changed_for_another(synced: Path, run: Run) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Forbidding) as server:
        Thread(target=server.serve_forever).start()
        words = f"sync --set tracking.uri=http://127.0.0.1:{server.server_port}"
        remedy = rf"refuses the request .*; give the experiment another name, or {ELSEWHERE}"
        found = refused(synced, run, remedy, words)
        server.shutdown()
    synchronized(synced, run, f"sync {found['option']}={HERE}")


def test_a_store_is_synchronized_when_the_sweep_has_ended(synced: Path, run: Run) -> None:
    words = f"sync --set tracking.uri={HERE}"
    leases = Leases(Folder.of(synced / "nml-store"))
    assert leases.acquire(str(TrackingAddress("demo")))
    refused(synced, run, "is mirroring this store; sync when it has ended$", words)
    leases.close()
    synchronized(synced, run, words)


def test_pages_open_where_a_database_is(
    synced: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda path, words, environment: begun.append(words))
    remedy = r"no MLflow database at \S+; run a sweep in this folder first$"
    refused(synced, run, remedy, "ui")
    (synced / "m.db").rename(synced / "mlflow.db")  # where a sweep without a server writes
    code, output = run(synced, "ui")
    (synced / "mlflow.db").rename(synced / "m.db")
    assert code == 0, output
    assert begun

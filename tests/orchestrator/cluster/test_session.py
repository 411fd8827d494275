"""Ray runs during a session and no longer."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands import PATIENCE
from orchestrator import cluster
from orchestrator.errors import ClusterError

ROOT = Path(__file__).resolve().parents[3]

LATE = """
from orchestrator import cluster
cluster.settings()
import ray
try:
    ray.put(1)
except Exception as error:
    print(type(error).__name__, ray.is_initialized())
"""


IN_SESSION = """
import tempfile
from orchestrator import cluster
with cluster.session(cpus=1):
    import ray
    print(ray.get(ray.remote(tempfile.gettempdir).remote()))
"""


@pytest.mark.slow
def test_ray_starts_whatever_the_temporary_folder_is_called(tmp_path: Path) -> None:
    """It is too long and has special characters; the next test has each of these alone."""
    folder = tmp_path / ("a b %20 #\u00e9" + 90 * "x")
    folder.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", IN_SESSION],
        env={**clean, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "/tmp\n", done.stderr
    assert f"TMPDIR={folder} is too long or has special characters" in done.stderr


@given(
    name=st.sampled_from(["TMPDIR", "RAY_TMPDIR"]), folder=st.text("ab/ \u00e9%#?'.-_", max_size=90)
)
def test_a_temporary_folder_is_kept_if_sockets_fit_in_it(name: str, folder: str) -> None:
    before = tempfile.tempdir
    with mock.patch.dict(os.environ, {name: folder}):
        cluster._use_short_folders()
        fits = len(folder.encode()) <= 36 and not set(folder) & set(" \u00e9%#?'")
        assert os.environ[name] == (folder if fits else "/tmp")
    tempfile.tempdir = before


def test_a_call_outside_a_session_starts_no_ray() -> None:
    """A late thread makes such a call. Else Ray would start and delay the end of the process."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", LATE],
        env={**clean, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "RaySystemError False\n", done.stderr


def test_a_ray_that_does_not_start_in_time_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine Ray gives up after 30 s, with an Exception of no type of its own."""
    import ray

    def give_up(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", give_up)
    with (
        pytest.raises(ClusterError, match="cannot start Ray on this machine: The current node"),
        cluster.session(),
    ):
        pass


def test_a_ray_that_is_late_is_started_again_and_nothing_of_the_first_start_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    left: list[subprocess.Popen[bytes]] = []

    def late_once(**_: object) -> None:
        if not left:
            waits = [sys.executable, "-c", "import time; time.sleep(3600)", ray.__file__]
            left.append(subprocess.Popen(waits))
            raise Exception("The current node timed out during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", late_once)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with cluster.session():
        assert left[0].wait(PATIENCE) == -signal.SIGKILL


GARBAGE_MEANWHILE = """
import gc, threading
from orchestrator import cluster

gone = threading.Event()

class Core:
    \"\"\"Ray's core, which takes a second to come back from its end.\"\"\"

    def __init__(self, core):
        self._core = core

    def __getattr__(self, name):
        return getattr(self._core, name)

    def shutdown_driver(self):
        self._core.shutdown_driver()
        gone.set()
        other.join(1)

def leave_garbage():
    gone.wait()
    while ids:
        circle = [ids.pop()]
        circle.append(circle)

with cluster.session(cpus=1):
    import ray
    ids = [ray.put(None) for _ in range(300)]
    worker = ray._private.worker.global_worker
    worker.core_worker = Core(worker.core_worker)
    gc.set_threshold(20)
    other = threading.Thread(target=leave_garbage)
    other.start()
print("ended well", gc.isenabled())
"""


@pytest.mark.slow
def test_garbage_that_another_thread_leaves_while_ray_ends_does_not_end_the_process() -> None:
    line = [sys.executable, "-c", GARBAGE_MEANWHILE]
    ended = subprocess.run(line, capture_output=True, text=True)
    assert ended.stdout == "ended well True\n", ended.stderr

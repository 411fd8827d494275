"""`nml-orch` as a person starts it: a process of its own, and everything that comes from it.

Where the process itself is not what a test is about, `in_process` runs the same words here, which
spares the start of Python, of its libraries and of Ray.
"""

import contextlib
import io
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import psutil

from orchestrator import cluster
from orchestrator.cli import _run
from orchestrator.cluster import fork_server

TINY = [
    "--noise",
    "0,20",
    "--seeds",
    "0",
    "--set",
    "pretrain.recipe.schedule.epochs=12",
    "--set",
    "pretrain.recipe.schedule.batch_size=32",
    "--set",
    "tasks=[digits, digits-rotated]",
    "--set",
    "tuning.fractions=[100]",
    "--set",
    "tuning.configurations=2",
    "--set",
    "tuning.epochs=2",
    "--set",
    "tuning.methods={lp: {head: linear, space: {lr: {loguniform: [0.001, 0.1]}}}, "
    "nmtune-released: {head: released, space: {lr: {loguniform: [0.0001, 0.01]}, mse: 1.0, "
    "cov: 0.04, svd: 0.001}}}",
]
"""The demo, cut down to what a test needs: two levels, one replicate, an ID and an OOD task, three
methods (with NMTune's control).

Its pre-training is long enough to be stopped more than once.
"""

UNTRACKED = ["--set", "tracking.enabled=false"]
"""For sweeps whose runs in MLflow no test reads."""

PATIENCE = 900.0
"""Seconds after which a test gives up waiting: more than the slowest machine takes."""


@dataclass
class Command:
    """A started `nml-orch`, and everything it started."""

    process: subprocess.Popen[str]
    mark: str
    folder: Path

    def finish(self, timeout: float = PATIENCE) -> tuple[int, str]:
        """Its exit code and all that it printed."""
        output, _ = self.process.communicate(timeout=timeout)
        return self.process.returncode, output

    def alive(self) -> list[str]:
        """Command lines of the processes that came from it and still run."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("NML_TEST_MARK") == self.mark
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline())[:120])
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def left(self) -> list[str]:
        """What still runs of an ended command after a while to end in."""
        deadline = time.monotonic() + 120
        while (found := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def wait_until(self, reached: Callable[[], bool], what: str, every: float = 0.02) -> None:
        """Return at the moment `reached`. Fails if the command ends before."""
        for _ in waiting(what, every):
            if reached():
                return
            assert self.process.poll() is None, (what, self.finish())


Start = Callable[..., Command]
Run = Callable[..., tuple[int, str]]


def waiting(what: str, every: float = 0.02) -> Iterator[None]:
    """Go round `every` so many seconds until the loop is left. Fails after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        yield
        time.sleep(every)
    raise AssertionError(f"never came: {what}")


def in_process(folder: Path, *words: str, **environment: str) -> tuple[int, str]:
    """Exit code and printed text of `nml-orch WORDS` in a folder, run in this process.

    It cannot start Ray beside the one of the tests; see the fixture `run_on_ray`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    printed = io.StringIO()
    before = dict(os.environ)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        for name in ("RAY_ADDRESS", "NML_DEBUG", "MLFLOW_TRACKING_URI"):
            os.environ.pop(name, None)
        os.environ.update(environment)
        with (
            contextlib.chdir(folder),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
        ):
            code = _run(list(words))
    finally:
        signal.signal(signal.SIGTERM, handler)
        os.environ.clear()
        os.environ.update(before)
    return code, printed.getvalue()


def in_process_on_ray(folder: Path, *words: str, **environment: str) -> tuple[int, str]:
    """The same, on the Ray that this process has started already."""
    with (
        mock.patch.object(cluster, "session", return_value=contextlib.nullcontext()),
        mock.patch.object(fork_server, "start", return_value=None),
    ):
        return in_process(folder, *words, **environment)


def free_port() -> int:
    """A port of this machine's loopback that nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a server answers there."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True

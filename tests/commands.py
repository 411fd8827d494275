"""`nml-orch` as a person starts it: a process of its own, and everything that comes from it."""

import socket
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil

TINY = [
    "--noise",
    "0,20",
    "--set",
    "pretrain.recipe.schedule.epochs=6",
    "--set",
    "tasks=[digits, digits-rotated]",
    "--set",
    "tuning.fractions=[100]",
    "--set",
    "tuning.configurations=2",
    "--set",
    "tuning.epochs=2",
]
"""The demo, cut down to what a test needs: two levels, an ID and an OOD task."""


@dataclass
class Command:
    """A started `nml-orch`, and everything it started."""

    process: subprocess.Popen[str]
    mark: str
    folder: Path

    def finish(self, timeout: float = 300) -> tuple[int, str]:
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


Start = Callable[..., Command]


def free_port() -> int:
    """A port of this machine's loopback that nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

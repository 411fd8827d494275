"""Starts the process that forks the workers of a private Ray, and ends it.

A worker imports torch, timm and Ray: several seconds of a processor and some 400 MB, for each of
them. A fork takes 30 ms, and shares this memory with the others as long as none writes to it. So
`serve_forks.py` runs beside the driver, from before Ray starts, and imports what workers need.
`start_worker.py` asks it for a fork, and starts the worker as Ray does if it gets none.
(`multiprocessing.forkserver` is such a process too, but Ray's raylet starts the workers, and knows
only command lines.)

On Linux only, and not beside GPUs, where it has not been tried. `NML_FORK=0` in the environment
does without it.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from glob import glob
from pathlib import Path

import psutil

log = logging.getLogger("nml.cluster")

ADDRESS = "NML_FORK_SERVER"
"""The variable of a worker's environment that names the server's socket."""

SCRIPT = str(Path(__file__).with_name("serve_forks.py"))
GPUS = ("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd")


class ForkServer:
    """The driver's end of the server. Raises OSError if it cannot be started."""

    def __init__(self, modules: Iterable[str]) -> None:
        self._modules = list(modules)
        self._folder = tempfile.mkdtemp(prefix="nml-fork-")  # of this user alone
        self.address = os.path.join(self._folder, "socket")
        try:
            self._process = self._started()
        except OSError:  # a path too long for a socket, say
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def _started(self) -> subprocess.Popen[bytes]:
        flags = ["-s"] * bool(sys.flags.no_user_site)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen(128)
            return subprocess.Popen(
                [sys.executable, *flags, SCRIPT, str(listener.fileno()), *self._modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[listener.fileno()],
            )

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._process.pid

    def restart(self) -> None:
        """End it and start it anew, for another Ray. If that fails, Ray starts its workers."""
        self._end()
        with suppress(OSError):
            os.unlink(self.address)
            self._process = self._started()

    def close(self) -> None:
        """End it, after Ray."""
        if self._process.poll() is not None:
            log.info("the fork server had ended early: Ray started its workers one by one")
        self._end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self) -> None:
        """End it, and the forks that Ray has left: some never come to the end of their exit."""
        left: list[psutil.Process] = []
        if self._process.poll() is None:  # else its id may be another process's by now
            with suppress(psutil.NoSuchProcess):
                left = psutil.Process(self.pid).children(recursive=True)
        self._process.kill()
        self._process.wait()
        for fork in left:
            with suppress(psutil.NoSuchProcess):
                fork.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()


def possible() -> bool:
    """Whether the workers of a private Ray can be forked on this machine."""
    return sys.platform == "linux" and not any(map(glob, GPUS))


def start(modules: Iterable[str]) -> ForkServer | None:
    """A server that imports `modules` in this order, as far as they can be imported.

    None where no worker can be forked, or where RAY_ADDRESS names a cluster, which has its own.
    """
    unwanted = os.environ.get("NML_FORK") == "0" or os.environ.get("RAY_ADDRESS")
    if unwanted or not possible():
        return None
    try:
        return ForkServer(modules)
    except OSError as error:
        log.info("no fork server, so Ray starts its workers one by one: %s", error)
        return None

"""Ray nodes on one machine, each kept apart as if it were a machine of its own.

Each node is a real `ray start` with an address of its own on loopback, in a namespace of mounts in
which a folder of this machine (the driver's temporary files, say) is another, empty one. So what a
stage leaves in a local file by mistake is missing on the next node, as it would be on a cluster.
Ray keeps a task's process under its node's raylet and gives it the task's name, which is how one
sees from outside who does what, and whom to strike.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from commands import free_port, waiting

ROOT = Path(__file__).resolve().parents[2]
LOOK_SECONDS = 0.1
MASK = 'mount -t tmpfs tmpfs "$0" && exec "$@"'


def may_mask() -> bool:
    """Whether this user can give a process mounts of its own."""
    words = ["unshare", "--mount", "true"]
    return bool(shutil.which("unshare")) and not subprocess.run(words, check=False).returncode


@dataclass
class Node:
    """One started node."""

    address: str
    process: subprocess.Popen[str]
    log: Path
    seen: set[str] = field(default_factory=set)  # names of the tasks and actors that it ran

    _raylet: psutil.Process | None = None

    def raylet(self) -> psutil.Process | None:
        """The process that makes it a node, while it lives."""
        if self._raylet is None:
            with suppress(psutil.NoSuchProcess):
                for each in psutil.Process(self.process.pid).children(recursive=True):
                    if each.name() == "raylet":
                        self._raylet = each
        return self._raylet if self._raylet and self._raylet.is_running() else None

    def busy(self) -> set[str]:
        """What it runs at this moment, by name."""
        found = set()
        raylet = self.raylet()
        for child in children(raylet.pid) if raylet else ():
            with suppress(OSError):
                title = Path(f"/proc/{child}/cmdline").read_bytes().partition(b"\0")[0].decode()
                if title.startswith("ray::") and not title.startswith("ray::IDLE"):
                    found.add(title.removeprefix("ray::"))
        return found


_parents: dict[int, int] = {}  # of the processes that live


def children(process: int) -> list[int]:
    """The processes that a process has started. Cheap: only of new ones the parent is looked up."""
    for child in {*psutil.pids()} ^ _parents.keys():
        try:
            _parents[child] = psutil.Process(child).ppid()
        except psutil.NoSuchProcess:
            _parents.pop(child, None)
    return [child for child, parent in list(_parents.items()) if parent == process]


class Machines:
    """A cluster: a head that runs nothing but the driver, and nodes of one CPU each."""

    def __init__(self, folder: Path, hidden: Path) -> None:
        """`hidden`: the folder of this machine that the nodes do not see."""
        folder.mkdir(parents=True, exist_ok=True)
        hidden.mkdir(parents=True, exist_ok=True)
        self._folder, self.hidden = folder, hidden
        self._ray = Path(tempfile.mkdtemp(prefix="nml-", dir="/tmp"))  # sockets' paths are short
        self._count = 0
        self._started: list[Node] = []
        self.port = free_port()
        words = ["--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false"]
        words += [f"--ray-client-server-port={free_port()}", f"--temp-dir={self._ray}"]
        self.head = self._start(words, mask=False)
        self.nodes: list[Node] = []
        self._wait(self.head)
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()

    @property
    def environment(self) -> dict[str, str]:
        """What a driver needs in its own."""
        return {
            "RAY_ADDRESS": f"127.0.0.1:{self.port}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "15",  # else a lost head is waited for 60 s
            "TMPDIR": str(self.hidden),
        }

    def add(self, path: Path | None = None) -> Node:
        """Start one more node; what Python finds in `path` there comes before all else.

        One at a time: two that start at once on one machine pick the same sockets' names.
        """
        words = [f"--address=127.0.0.1:{self.port}", "--num-cpus=1"]
        node = self._start(words, mask=True, path=path)
        self._wait(node)
        self.nodes.append(node)
        return node

    def kill(self, node: Node) -> None:
        """End a node as a power cut would: kill -9 of its raylet."""
        raylet = node.raylet()
        assert raylet is not None, node.log.read_text()
        raylet.kill()
        if node in self.nodes:
            self.nodes.remove(node)

    def lose_head(self) -> None:
        """End the head's control store and raylet, and with them what makes this a cluster."""
        for each in psutil.Process(self.head.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if each.name() in ("gcs_server", "raylet"):
                    each.kill()

    def close(self) -> None:
        """End everything that was started, and what it left. May be called twice."""
        self._ended.set()
        self._watch.join()
        for node in reversed(self._started):
            with suppress(ProcessLookupError):
                os.killpg(node.process.pid, signal.SIGKILL)
            node.process.wait()
        shutil.rmtree(self._ray, ignore_errors=True)

    def _start(self, words: Sequence[str], *, mask: bool, path: Path | None = None) -> Node:
        self._count += 1
        address = f"127.0.0.{self._count}"
        log = self._folder / f"node-{self._count}.txt"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        command += ["--disable-usage-stats", "--include-log-monitor=false"]
        command += [f"--node-ip-address={address}", *words]
        if mask:
            command = ["unshare", "--mount", "sh", "-c", MASK, str(self.hidden), *command]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        with log.open("w") as written:
            process = subprocess.Popen(
                command,
                cwd=self._folder,
                env={
                    **clean,
                    "RAY_AUTH_MODE": "disabled",
                    "RAY_worker_niceness": "0",
                    "RAY_raylet_start_wait_time_s": "180",  # a busy machine is not a broken one
                    "PYTHONPATH": os.pathsep.join(map(str, [path, ROOT] if path else [ROOT])),
                    "TMPDIR": str(self.hidden),
                },
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
                text=True,
                start_new_session=True,
            )
        node = Node(address, process, log)
        self._started.append(node)
        return node

    def _wait(self, node: Node) -> None:
        for _ in waiting(f"the start of {node.address}"):
            if "Ray runtime started" in node.log.read_text():
                return
            assert node.process.poll() is None, node.log.read_text()

    def _look(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            for node in list(self.nodes):
                node.seen |= node.busy()

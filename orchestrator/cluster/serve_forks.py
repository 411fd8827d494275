"""Forks the workers of a private Ray from one process that has imported what they need.

`fork_server.py` runs this by its path. It imports the modules that it is told to, one after another
while nobody asks. Those from "ray" on wait for the first request: Ray keeps what its import reads
from the environment, to which the raylet adds the same for all its workers. Forks must not share
the state from which Ray draws the ids of objects. If they did, this process would end, and Ray
would start its workers as usual.

It ends with the driver, because its standard input ends then.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import runpy
import select
import shutil
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)  # which it ignores
OBJECTS = 10_000  # as in nml_orch
FIELDS = 4  # file descriptors of a request: the three standard ones, and a file that says the rest


class _Request:
    """What a fork is to be: its command line, environment, folder, signals and number of files."""

    def __init__(self, connection: socket.socket, descriptors: list[int]) -> None:
        self._connection = connection
        self._descriptors = descriptors
        with open(descriptors[-1], closefd=False) as file:
            asked = json.load(file)
        self._words: list[str] = asked["words"]
        self._folder: str = asked["folder"]
        self._blocked: list[int] = asked["blocked"]
        self._files: list[int] = asked["files"]
        self.environment: dict[str, str] = asked["environment"]

    def close(self) -> None:
        self._connection.close()
        for each in self._descriptors:
            os.close(each)

    def become(self) -> None:
        """Make this process the worker, and tell who asked. Raises OSError if that has ended."""
        for standard, given in enumerate(self._descriptors[:-1]):
            os.dup2(given, standard)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._files[0], self._files[1]))
        _set_environment(self.environment)
        os.chdir(self._folder)
        if (numpy := sys.modules.get("numpy")) is not None:
            numpy.random.seed()  # else all forks draw the same; Python's `random` does so itself
        sys.argv = self._words
        self._connection.send(b"1")
        self.close()
        runpy.run_path(self._words[0], run_name="__main__")


def _set_environment(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _received(listener: socket.socket) -> _Request | None:
    """A request; None if who asked has ended."""
    connection, _ = listener.accept()
    _, descriptors, _, _ = socket.recv_fds(connection, 1, FIELDS)
    if len(descriptors) == FIELDS:
        return _Request(connection, descriptors)
    connection.close()
    return None


def _serve(listener: socket.socket, modules: list[str]) -> _Request | None:
    """Fork until the driver ends or forks are unsafe: then return None; in a fork, its request."""
    driver = sys.stdin.fileno()
    rays = modules.index("ray") if "ray" in modules else len(modules)
    waiting, with_ray = modules[:rays], modules[rays:]
    safe = False  # whether forks draw different ids, since the last import
    while True:
        ready, _, _ = select.select([driver, listener], [], [], 0 if waiting else None)
        if driver in ready:
            return None
        if listener not in ready:
            _import(waiting.pop(0))
            safe = False
            continue
        request = _received(listener)
        if request is None:
            continue
        if with_ray and not _import_with_ray(with_ray, request.environment):
            return None
        with_ray = []
        safe = safe or "ray" not in sys.modules or _drawn_in_fork() != _drawn_in_fork()
        if not safe:
            return None
        if os.fork() == 0:
            return request
        request.close()


def _import(name: str) -> None:
    """Import a module. One that cannot be imported is left to the workers that need it."""
    with suppress(Exception):
        if name.startswith("jobs."):
            import_module("nml_orch").pin()
        import_module(name)
    gc.freeze()  # a search for garbage in a fork would write to all that it shares


def _import_with_ray(modules: list[str], environment: dict[str, str]) -> bool:
    """Import them in a worker's environment. False if Ray was imported before, in another."""
    if "ray" in sys.modules:
        return False
    _set_environment(environment)
    with suppress(Exception):
        actor: Any = import_module("ray.actor")
        actor.ActorClassID = _ClassId(actor.ActorClassID)
    for name in modules:
        _import(name)
    return True


class _ClassId:
    """Stands for Ray's ids of classes: Ray draws one for each actor of its own libraries."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind

    def from_random(self) -> object:
        return self._kind(os.urandom(self._kind.size()))


def _drawn_in_fork() -> bytes:
    """The first id that a fork draws as Ray does; empty if it cannot."""
    reads, writes = os.pipe()
    if os.fork() == 0:
        try:
            ray = import_module("ray._raylet")
            os.write(writes, ray.TaskID.for_fake_task(ray.JobID.from_int(1)).binary())
        finally:
            os._exit(0)
    os.close(writes)
    with open(reads, "rb") as drawn:
        return drawn.read()


def _main(listener: int, modules: list[str]) -> None:
    ray = find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    # Where Python looks first for a worker's modules, in place of this file's own folder.
    sys.path[0] = os.path.join(os.path.dirname(ray.origin), "_private", "workers")
    # Ctrl-C and the end of the group are the driver's affair; nobody waits for forks.
    usual = {each: signal.signal(each, signal.SIG_IGN) for each in SIGNALS}
    gc.set_threshold(OBJECTS)
    # As many threads as Ray gives a worker of one CPU. Stages with more set those of torch.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with socket.socket(fileno=listener) as listening:
        folder = os.path.dirname(listening.getsockname())
        request = _serve(listening, modules)
    if request is None:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)  # at once: nothing that was imported has anything to end
    for each, action in usual.items():
        signal.signal(each, action)
    request.become()


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2:])

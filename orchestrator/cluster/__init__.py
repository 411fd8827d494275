"""Starts Ray or joins a cluster, with little output and with the settings of this project.

With `RAY_ADDRESS` it joins that cluster. Without it, it starts a private Ray on this machine, which
ends with the process. Workers of a joined cluster get the settings by the job's runtime
environment.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from jobs import INSTRUCTION_SETS
from jobs.reach import grpc_fault
from orchestrator.cluster.fork_server import ADDRESS, ForkServer
from orchestrator.cluster.one_machine import without_services
from orchestrator.errors import ClusterError

WORKER_ENV = {
    "RAY_DATA_USE_DATASOURCE_V2": "0",  # its Parquet reader starts footer actors for each file
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "PYTHONWARNINGS": "ignore",
    "TQDM_DISABLE": "1",
}
"""Settings of all our processes, driver and workers."""

PRIVATE_ENV = {
    "RAY_AUTH_MODE": "disabled",  # only this machine can reach it
    # With 0, Ray binds a cluster of one machine to loopback, as it does on macOS and Windows. Else
    # it listens on every address, whatever node address `ray.init` gets.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
"""Settings of a private Ray. Ray reads them when it is imported."""


SOCKET_FOLDER = 36  # bytes of a temporary folder that leave room for Ray's sockets
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # nosec: Ray makes folders of its own there
_PLAIN = re.compile(r"[\w./+=@~-]*", re.ASCII)

STARTS = 3  # of a private Ray, before it is given up

log = logging.getLogger("nml.cluster")

SETUP_HOOK = "nml_orch.prepare"
"""The function that a worker runs before its first task: it puts our packages before user files."""


def settings() -> None:
    """Put our settings into this process's environment. Call it before Ray is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Else a thread of Ray that ends late starts another Ray after ours has ended, and the process
    # does not end cleanly.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    for name, value in WORKER_ENV.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("RAY_ADDRESS"):
        for name, value in PRIVATE_ENV.items():
            os.environ.setdefault(name, value)


@contextmanager
def session(cpus: int | None = None, workers: ForkServer | None = None) -> Iterator[None]:
    """Ray runs until the block ends. Raises ClusterError if it cannot be started or joined.

    A private Ray has as many CPUs, else this machine's, and its workers come from `workers` (see
    `fork_server.start`).
    """
    settings()
    import ray

    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_answers(address)
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address:
        runtime = {"env_vars": _worker_environment(), "worker_process_setup_hook": SETUP_HOOK}
        options |= {"address": address, "runtime_env": runtime}
    else:
        _use_short_folders()
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    with nullcontext() if address else without_services():
        try:
            if address:
                ray.init(**options)
            else:
                with _setup_hook():
                    _start(options, workers)
        except Exception as error:  # Ray raises nearly anything, a bare Exception on a busy machine
            reason = " ".join(str(error).split())[:300]
            if address:
                raise _cannot_join(address, reason) from error
            raise ClusterError(
                f"cannot start Ray on this machine: {reason} If it is busy or short of memory, run "
                f"the same command again when it is less so"
            ) from error
        if not os.environ.get("NML_DEBUG"):
            # Else Ray prints a screenful for each lost worker or node, whatever `log_to_driver` is.
            ray._private.worker._worker_logs_enabled = False
        try:
            yield
        finally:
            _end()


def _end() -> None:
    """End Ray, without a search for garbage by another thread meanwhile.

    Such a search may free an id of an object. Ray's core, which counts these, ends the process at
    once when it is asked after its own end and before Python knows of it.
    """
    import ray

    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()


def _start(options: Mapping[str, Any], workers: ForkServer | None) -> None:
    """Start a private Ray. It gives up after 30 s; a busy machine may take longer, so try again."""
    import ray

    for left in reversed(range(STARTS)):
        before = _processes_of_ray()
        try:
            with _variable(ADDRESS, workers.address if workers else ""):
                ray.init(**options)
            return
        except Exception:
            for process in _processes_of_ray() - before:  # which Ray leaves behind
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            if not left:
                raise
            if workers:
                workers.restart()


def _processes_of_ray() -> set[psutil.Process]:
    """Those that this process has started, itself or through others."""
    import ray

    home, found = str(Path(ray.__file__).parent), set[psutil.Process]()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if home in " ".join(process.cmdline()):
                found.add(process)
    return found


def _check_answers(address: str) -> None:
    """Raise ClusterError if no Ray answers at RAY_ADDRESS. Ray itself would try for minutes."""
    from ray._private.services import canonicalize_bootstrap_address

    scheme, mark, rest = address.rpartition("://")
    if mark and scheme != "ray":
        raise _cannot_join(address, f"it takes HOST:PORT or ray://HOST:PORT, not {scheme}://")
    try:  # Ray reads "auto", and calls localhost by this machine's address
        found = rest if mark else canonicalize_bootstrap_address(address)
        if found is None:  # "local"
            return
        host, _, port = found.partition("?")[0].rpartition(":")
        if not host or not port.isdecimal():
            raise _cannot_join(address, "it has no port")
        fault = grpc_fault(host.strip("[]"), int(port))
    except (ConnectionError, ValueError, OSError) as error:
        raise _cannot_join(address, " ".join(str(error).split())[:300]) from error
    if fault:
        seen = "" if found == rest else f"for Ray it is {found}; "
        raise _cannot_join(address, seen + fault)


def _cannot_join(address: str, reason: str) -> ClusterError:
    return ClusterError(
        f"cannot join the Ray cluster at {address}, which the environment variable RAY_ADDRESS "
        f"names ({reason}); start that cluster, correct RAY_ADDRESS (the head's HOST:PORT, mostly "
        f"port 6379), or unset it to use this machine alone"
    )


def _use_short_folders() -> None:
    """Replace temporary folders in which no socket can be: Ray's, and those of Python's processes.

    The path of a socket has at most 107 bytes. Ray puts some 70 of them after RAY_TMPDIR or TMPDIR,
    and splits its workers' command lines at blanks.
    """
    for name in ("RAY_TMPDIR", "TMPDIR"):
        folder = os.environ.get(name, "")
        if len(os.fsencode(folder)) <= SOCKET_FOLDER and _PLAIN.fullmatch(folder):
            continue
        short = next((at for at in SHORT_FOLDERS if os.access(at, os.W_OK | os.X_OK)), None)
        if short is None:
            raise ClusterError(
                f"{name}={folder} is too long or has special characters, so Ray's sockets cannot "
                f"be there; set it to a folder of at most {SOCKET_FOLDER} plain characters"
            )
        log.warning(
            "%s=%s is too long or has special characters for Ray's sockets; temporary files go to "
            "%s (set %s to a folder of at most %d plain characters to choose another)",
            *(name, folder, short, name, SOCKET_FOLDER),
        )
        os.environ[name] = short
        tempfile.tempdir = None  # Python keeps the folder that it found first


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """What is started in this block has this environment variable."""
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def _setup_hook() -> AbstractContextManager[None]:
    """The workers of a Ray that is started in this block run SETUP_HOOK before their first task.

    They inherit Ray's environment variable for it. A runtime environment would do the same, but the
    workers that Ray starts before it knows that environment would be wasted.
    """
    from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR as NAME

    return _variable(NAME, SETUP_HOOK)


def _worker_environment() -> dict[str, str]:
    """The settings that workers of a joined cluster get: those of this process."""
    names = (*WORKER_ENV, *INSTRUCTION_SETS)
    return {name: os.environ[name] for name in names if name in os.environ}


@dataclass(frozen=True)
class Resources:
    """The resources of all nodes together."""

    nodes: int
    cpus: float
    gpus: float
    most_cpus: float  # of the node with most CPUs
    most_gpus: float  # of the node with most GPUs
    each: tuple[tuple[float, float], ...] = ()  # of every node: CPUs and GPUs


def resources() -> Resources:
    """The cluster's resources. Call it only inside a `session`."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = ([node.get(unit, 0.0) for node in alive] for unit in ("CPU", "GPU"))
    most = max(cpus, default=0), max(gpus, default=0)
    return Resources(len(alive), sum(cpus), sum(gpus), *most, tuple(zip(cpus, gpus, strict=True)))

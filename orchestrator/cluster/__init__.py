"""Starting Ray, or joining it: quiet, with the settings this project relies on.

`RAY_ADDRESS` joins a running cluster; without it a private one is started on this machine and
ended with the process. Settings reach the workers through the job's runtime environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from jobs import INSTRUCTION_SETS
from orchestrator.errors import ClusterError

WORKER_ENV = {
    "RAY_DATA_USE_DATASOURCE_V2": "0",  # its Parquet reader starts footer actors for each file
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "PYTHONWARNINGS": "ignore",
    "TQDM_DISABLE": "1",
}
"""Settings of every process of ours, driver and workers alike."""

PRIVATE_ENV = {
    "RAY_AUTH_MODE": "disabled",  # nobody but this machine can reach it
    # Ray binds a cluster of one machine to loopback on macOS and Windows, and this is its switch.
    # It listens on every address otherwise, whatever node address `ray.init` is given.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
"""Settings of a Ray that nobody joins; read when Ray is imported."""


FIRST = "nml_orch.pin"
"""What a worker runs before its first task, by name: our packages come before a user's files."""


def settings() -> None:
    """Put our settings into this process's environment; Ray reads some when it is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A thread of Ray's own that is late to end would start another Ray after ours has been ended,
    # which then keeps the process from ending well.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    for name, value in WORKER_ENV.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("RAY_ADDRESS"):
        for name, value in PRIVATE_ENV.items():
            os.environ.setdefault(name, value)


@contextmanager
def session(cpus: int | None = None) -> Iterator[None]:
    """Ray, up for the length of the block. Raises ClusterError when it cannot be had."""
    settings()
    import ray

    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address:
        runtime = {"env_vars": _of_workers(), "worker_process_setup_hook": FIRST}
        options |= {"address": address, "runtime_env": runtime}
    else:
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    try:
        with nullcontext() if address else _first_in_workers():
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
        raise ClusterError(f"cannot {where}: {' '.join(str(error).split())[:300]}") from error
    if not os.environ.get("NML_DEBUG"):
        # A lost worker or node costs a screenful on stdout otherwise, `log_to_driver` or not.
        ray._private.worker._worker_logs_enabled = False
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _first_in_workers() -> Iterator[None]:
    """A Ray that is started inside has workers that run `FIRST` first.

    Its workers inherit the variable by which Ray tells them. A runtime environment would say the
    same, and cost the workers that Ray starts before it knows of one.
    """
    from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR as NAME

    os.environ[NAME] = FIRST
    try:
        yield
    finally:
        del os.environ[NAME]


def _of_workers() -> dict[str, str]:
    """What the workers of a joined cluster get: this process's settings, a user's own included."""
    names = (*WORKER_ENV, *INSTRUCTION_SETS)
    return {name: os.environ[name] for name in names if name in os.environ}


@dataclass(frozen=True)
class Resources:
    """What the joined cluster has in all."""

    nodes: int
    cpus: float
    gpus: float
    most_cpus: float  # of one node
    most_gpus: float


def resources() -> Resources:
    """The cluster's resources; inside a `session` only."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = ([node.get(unit, 0.0) for node in alive] for unit in ("CPU", "GPU"))
    return Resources(len(alive), sum(cpus), sum(gpus), max(cpus, default=0), max(gpus, default=0))

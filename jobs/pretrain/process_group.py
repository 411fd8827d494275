"""How the workers of one run find each other: torch's process group, set up by Ray Train.

One worker needs no group. For workers on one node the group keeps to that node: its members meet
in a file, and listen on loopback only. (torch's usual meeting point, a TCP store, listens on every
address, and has no setting for it.) Only a group on several nodes is set up as Ray does it.

torch is imported in the workers alone: the driver and Ray Train's controller read these classes
too, and there it would take 2 s and 300 MB for each.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from types import TracebackType
from typing import Any

import ray
from ray.train import BackendConfig
from ray.train.backend import Backend

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""The environment variables that name the network interface of torch's two backends."""

_LEAVE_SECONDS = 30  # for workers to leave their group before their processes are ended


def config(workers: int) -> BackendConfig:
    """Ray Train's settings for the process group of so many workers."""
    return _OneWorkerConfig() if workers == 1 else _GroupConfig()


class _OneWorkerConfig(BackendConfig):
    """No group; torch's current GPU is the worker's own."""

    @property
    def train_func_context(self) -> type[_OwnGPU]:
        """What the training runs in."""
        return _OwnGPU


class _GroupConfig(_OneWorkerConfig):
    """A group of torch's."""

    @property
    def backend_cls(self) -> type[Backend]:
        """Ray's own backend, but for groups on one node."""
        return _GroupBackend


class _OwnGPU:
    """Ray Train's context for torch; its module imports torch."""

    def __enter__(self) -> None:
        from ray.train.torch import TorchConfig

        self._context = TorchConfig().train_func_context()
        self._context.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._context.__exit__(kind, error, traceback)


class _GroupBackend(Backend):
    share_cuda_visible_devices = True  # as Ray's: NCCL reaches the GPUs of its node

    _folder = ""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Set up the process group."""
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) else "gloo"
        if len(set(worker_group.execute(_node))) > 1:
            from ray.train.torch.config import TorchConfig, _TorchBackend

            _TorchBackend().on_start(worker_group, TorchConfig(backend))
            return
        self._folder = worker_group.execute_single(0, _new_folder)
        count = len(worker_group)
        joining = [
            worker_group.execute_single_async(rank, _join, backend, rank, count, self._folder)
            for rank in range(count)
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """End the group and delete its file."""
        leaving = worker_group.execute_async(_leave)
        ray.wait(leaving, num_returns=len(leaving), timeout=_LEAVE_SECONDS)
        if self._folder:
            worker_group.execute_single_async(0, shutil.rmtree, self._folder, ignore_errors=True)


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _new_folder() -> str:
    return tempfile.mkdtemp(prefix="nml-group-")


def _join(backend: str, rank: int, world: int, folder: str) -> None:
    """Join the group of the workers on this node."""
    from ray.train.torch import config as ray_config

    for name in INTERFACES:
        os.environ.setdefault(name, "lo")
    ray_config._set_torch_distributed_env_vars()
    url = f"file://{folder}/store"
    ray_config._setup_torch_process_group(backend, rank, world, url)


def _leave() -> None:
    """Leave the group of this process."""
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=True)

"""How the workers of one run find each other: torch's process group, set up by Ray Train.

One worker needs no group. For workers on one node the group keeps to that node: its members meet
in a file, and listen on loopback only. (torch's usual meeting point, a TCP store, listens on every
address, and has no setting for it.) Only a group on several nodes is set up as Ray does it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

import ray
import ray.train.torch
from ray.train.backend import Backend
from ray.train.torch.config import _TorchBackend

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""The environment variables that name the network interface of torch's two backends."""


def config(workers: int) -> ray.train.torch.TorchConfig:
    """Ray Train's settings for the process group of so many workers."""
    return _OneWorkerConfig() if workers == 1 else _GroupConfig()


class _OneWorkerConfig(ray.train.torch.TorchConfig):
    @property
    def backend_cls(self) -> type[Backend]:
        """Ray's base class, which starts nothing."""
        return Backend


class _GroupConfig(ray.train.torch.TorchConfig):
    @property
    def backend_cls(self) -> type[Backend]:
        """Ray's own backend, but for groups on one node."""
        return _GroupBackend


class _GroupBackend(_TorchBackend):
    _folder = ""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Set up the process group."""
        if len(set(worker_group.execute(_node))) > 1:
            super().on_start(worker_group, backend_config)
            return
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        self._folder = worker_group.execute_single(0, _new_folder)
        count = len(worker_group)
        joining = [
            worker_group.execute_single_async(
                rank, _join, "nccl" if gpus else "gloo", rank, count, self._folder
            )
            for rank in range(count)
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """End the group and delete its file."""
        super().on_shutdown(worker_group, backend_config)
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

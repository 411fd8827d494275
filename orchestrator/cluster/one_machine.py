"""Leaves out of a private Ray what only a cluster needs. Ray has no options for it.

Left out are five processes: the autoscaler, the reader of the workers' logs, the server of the
dashboard (for which `ray.init` waits although the dashboard is off), the actor in which Ray Data
counts for the dashboard (for which its first data set waits), and the actor through which Ray
Data and Ray Train ask for nodes. Each has 50 to 120 MB and takes up to two seconds of a processor.
Where another version of Ray calls one of them otherwise, that one starts as usual.

The workers that Ray Train and Ray Tune ask for are started by setup_worker.py, which is quicker
than Ray's script.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from orchestrator.cluster.fork_server import ADDRESS

STATISTICS = "ray.data._internal.stats"
EXECUTOR = "ray.data._internal.execution.streaming_executor"
TRAINER = "ray.train.v2.api.data_parallel_trainer"
START = str(Path(__file__).with_name("start_worker.py"))
SETUP = str(Path(__file__).with_name("setup_worker.py"))


@contextmanager
def without_services() -> Iterator[None]:
    """In this block a Ray that is started has none of these processes.

    Ray Data and Ray Train must have been imported before; if not, they count and ask as usual.
    """
    from ray._private import node

    replaced: list[tuple[Any, str, Any]] = [(node, "Node", _node(node.Node))]
    if hasattr(statistics := sys.modules.get(STATISTICS), "get_or_create_stats_actor"):
        replaced.append((statistics, "get_or_create_stats_actor", _Uncounted))
    if (data := sys.modules.get("ray.data")) is not None:
        executor = import_module(EXECUTOR)
        known = hasattr(executor, "create_cluster_autoscaler")
        if known and hasattr(data.ExecutionResources, "from_resource_dict"):
            replaced.append((executor, "create_cluster_autoscaler", _WholeMachine))
    trainer: Any = sys.modules.get(TRAINER)
    if hasattr(trainer, "create_scaling_policy"):
        policy = partial(_policy_without_requests, trainer.create_scaling_policy)
        replaced.append((trainer, "create_scaling_policy", policy))
    usual = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    try:
        for module, name, ours in replaced:
            setattr(module, name, ours)
        yield
    finally:
        for module, name, theirs in usual:
            setattr(module, name, theirs)


def _node(usual: type) -> type:
    class Node(usual):  # type: ignore[misc]
        def start_raylet(self, *given: Any, **options: Any) -> None:
            if not any(map(str.isspace, SETUP)):  # at which Ray splits a worker's command
                self._ray_params.setup_worker_path = SETUP
                if os.environ.get(ADDRESS):
                    self._ray_params.worker_path = START
            super().start_raylet(*given, **options)

        def start_monitor(self) -> None:
            pass

        def start_log_monitor(self) -> None:
            pass

        def start_api_server(self, **_: object) -> None:
            pass

    return Node


def _policy_without_requests(usual: Callable[[Any], Any], config: object) -> Any:
    """Ray Train's policy; that for a worker group of fixed size without its requests for nodes."""
    policy = usual(config)
    kind: Any = type(policy)
    if kind.__name__ != "FixedScalingPolicy" or not hasattr(kind, "_maybe_send_resource_request"):
        return policy

    class Policy(kind):  # type: ignore[misc]
        def after_controller_start(self, *_: object) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    return Policy(config)


class _WholeMachine:
    """Stands for the cluster autoscaler of Ray Data: a data set has all there is, and no more."""

    def __init__(self, *_: object, **__: object) -> None:
        import ray
        from ray.data import ExecutionResources

        self._all = ExecutionResources.from_resource_dict(ray.cluster_resources())

    def get_total_resources(self) -> object:
        return self._all

    def try_trigger_scaling(self) -> None:
        pass

    def on_executor_shutdown(self) -> None:
        pass


class _Uncounted:
    """Stands for the actor. Of its methods, one alone answers something: the id of a data set."""

    def __getattr__(self, name: str) -> _Uncounted:
        return self

    def remote(self, *_: object, **__: object) -> object:
        import ray

        return ray.put(uuid4().hex)

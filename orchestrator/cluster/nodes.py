"""Checks that all nodes of the cluster see the storage and run the same versions.

A sweep on several nodes needs one storage that all can read and write, and the same code on all.
Both are checked before any step starts: the driver writes a token to the storage, and a task on
each node reads it and writes a copy. Works only inside a `session`. Nodes that join later are not
checked.
"""

from __future__ import annotations

import platform
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.storage.folder import Folder
from orchestrator.errors import ClusterError, StoreError
from orchestrator.store.provenance import versions

COMPARED = ("python", "nml-orch", "ray", "torch", "timm", "open_clip_torch", "pyarrow", "numpy")
"""The versions that must be the same on all nodes."""

PREFLIGHT = ".preflight"
ANSWER_SECONDS = 120.0  # a node's first task waits until its environment is set up


@dataclass(frozen=True)
class NodeReport:
    """What one node reports."""

    node: str  # its address
    versions: Mapping[str, str]
    storage_fault: str = ""  # why it cannot read or write the storage; empty if it can


def check(storage: Folder) -> Sequence[NodeReport]:
    """The report of every node; none if there is only one node.

    Raises StoreError if a node does not see the storage, ClusterError if a node does not answer or
    runs other versions than the driver.
    """
    found = ask(storage)
    failed = [report for report in found if report.storage_fault]
    if failed:
        raise StoreError(
            f"storage {storage.uri} is not shared: {_list_nodes([r.node for r in failed])} "
            f"({failed[0].storage_fault}); set `storage` to a bucket (s3://, gs://) or to a folder "
            f"that is mounted on every node"
        )
    fault = version_fault(found)
    if fault:
        raise ClusterError(fault)
    return found


def ask(storage: Folder) -> Sequence[NodeReport]:
    """The report of every node, unchecked. A single node is not asked: it is this machine.

    Raises ClusterError if a node does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]
    if len(alive) < 2:
        return ()
    token, folder = uuid.uuid4().hex, storage / PREFLIGHT
    folder.write_bytes(token, token.encode())
    try:
        remote = ray.remote(_answer)
        asked = {
            remote.options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(folder, token, node["NodeManagerAddress"]): node["NodeManagerAddress"]
            for node in alive
        }
        ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
        if late:
            names = [asked[reference] for reference in late]
            raise ClusterError(
                f"{_list_nodes(names)} did not answer within {ANSWER_SECONDS:g} s; look at "
                f"`ray status`, end the node or wait for it, and start again"
            )
        reports = [_collect(folder, token, asked[reference], reference) for reference in ready]
        return [report for report in reports if report is not None]
    finally:
        folder.delete()


def version_fault(found: Sequence[NodeReport]) -> str:
    """The first node whose versions differ from this process's, as a message; empty if none."""
    here = _versions()
    for report in found:
        other = [
            f"{name} {report.versions.get(name, 'missing')} (here {here[name]})"
            for name in COMPARED
            if name in here and report.versions.get(name) != here[name]
        ]
        if other:
            return (
                f"node {report.node} runs {', '.join(other)}; install the same versions on every "
                f"node (setup_commands of the cluster file), then `ray up` it again"
            )
    return ""


def _collect(folder: Folder, token: str, node: str, reference: Any) -> NodeReport | None:
    """A node's report; None if the node is gone since it was asked."""
    import ray

    try:
        report: NodeReport = ray.get(reference)
    except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
        return None  # the task needs no CPU: a node that is there can run it
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"node {node} cannot run nml-orch ({' '.join(str(error).split())[-200:]}); install the "
            f"same version there"
        ) from error
    if report.storage_fault:
        return report
    try:
        copied = folder.read_bytes(f"{token}-{node}") == token.encode()
    except OSError:
        copied = False
    fault = "" if copied else "the driver does not see what the node writes there"
    return NodeReport(report.node, report.versions, fault)


def _answer(folder: Folder, token: str, node: str) -> NodeReport:
    """Runs on a node: reads the driver's token and writes a copy beside it."""
    try:
        read = folder.read_bytes(token)
        folder.write_bytes(f"{token}-{node}", read)
        fault = ""
    except FileNotFoundError:
        fault = "the node does not see what the driver writes there"
    except OSError as error:
        fault = error.strerror or " ".join(str(error).split())[:200]
    return NodeReport(node, _versions(), fault)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **versions()}


def _list_nodes(nodes: Sequence[str]) -> str:
    first = ", ".join(nodes[:3])
    more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
    return f"node{'s' if len(nodes) > 1 else ''} {first}{more}"

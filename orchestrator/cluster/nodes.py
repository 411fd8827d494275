"""What each node of the cluster sees: the storage, and the versions of what runs there.

A sweep on several nodes works only if all of them read and write one storage and run the same
code. Both are tried before anything starts: the driver writes a token, a task on each node reads
it and answers beside it. Inside a `session` only. A node that joins later is not asked.
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
"""What must be the same on all nodes."""

PREFLIGHT = ".preflight"
ANSWER_SECONDS = 120.0  # a node's first task waits for its environment to be set up


@dataclass(frozen=True)
class Seen:
    """One node's answer."""

    node: str  # its address
    versions: Mapping[str, str]
    storage: str = ""  # why the token could not be read and answered; empty: it could


def check(storage: Folder) -> Sequence[Seen]:
    """Every node's answer, when there are several; StoreError or ClusterError if they disagree.

    Raises StoreError when a node does not see the storage, ClusterError when a node does not
    answer or runs other versions than the driver.
    """
    found = ask(storage)
    blind = [seen for seen in found if seen.storage]
    if blind:
        raise StoreError(
            f"storage {storage.uri} is not shared: {_named([s.node for s in blind])} "
            f"({blind[0].storage}); set `storage` to a bucket (s3://, gs://) or to a folder that "
            f"is mounted on every node"
        )
    complaint = disagreement(found)
    if complaint:
        raise ClusterError(complaint)
    return found


def ask(storage: Folder) -> Sequence[Seen]:
    """Every node's answer, without judging it. A single node is not asked: it is this one."""
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
                f"{_named(names)} did not answer within {ANSWER_SECONDS:g} s; look at "
                f"`ray status`, end the node or wait for it, and start again"
            )
        return [_collect(folder, token, asked[reference], reference) for reference in ready]
    finally:
        folder.delete()


def disagreement(found: Sequence[Seen]) -> str:
    """In what a node's versions differ from this process's; empty when in nothing."""
    here = _versions()
    for seen in found:
        other = [
            f"{name} {seen.versions.get(name, 'missing')} (here {here[name]})"
            for name in COMPARED
            if name in here and seen.versions.get(name) != here[name]
        ]
        if other:
            return (
                f"node {seen.node} runs {', '.join(other)}; install the same versions on every "
                f"node (setup_commands of the cluster file), then `ray up` it again"
            )
    return ""


def _collect(folder: Folder, token: str, node: str, reference: Any) -> Seen:
    import ray

    try:
        seen: Seen = ray.get(reference)
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"node {node} cannot run nml-orch ({' '.join(str(error).split())[-200:]}); install the "
            f"same version there as here"
        ) from error
    if seen.storage:
        return seen
    try:
        answered = folder.read_bytes(f"{token}-{node}") == token.encode()
    except OSError:
        answered = False
    why = "" if answered else "what it writes there is not seen here"
    return Seen(seen.node, seen.versions, why)


def _answer(folder: Folder, token: str, node: str) -> Seen:
    """Runs on a node: read the driver's token, write the answer beside it."""
    try:
        read = folder.read_bytes(token)
        folder.write_bytes(f"{token}-{node}", read)
        why = ""
    except FileNotFoundError:
        why = "what is written there is not seen on it"
    except OSError as error:
        why = error.strerror or " ".join(str(error).split())[:200]
    return Seen(node, _versions(), why)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **versions()}


def _named(nodes: Sequence[str]) -> str:
    shown = ", ".join(nodes[:3])
    more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
    return f"node{'s' if len(nodes) > 1 else ''} {shown}{more}"

"""The nodes of the cluster that are alive, and the wait for one in place of a lost one.

Runs in the driver, inside a Ray session.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import ray

from jobs.contract import Hooks, Work
from jobs.pretrain.packs import Node, group_slots
from jobs.pretrain.spec import Resources

REPLACEMENT_SECONDS = 180.0
"""How long runs that no longer fit on the cluster wait for a node in place of a lost one."""

LOOK_SECONDS = 0.5


def alive() -> list[Node]:
    """The nodes that are there now."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in found]


def ids() -> set[str]:
    """Ray's names of the nodes that are there now."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def room_for(resources: Resources, works: Sequence[Work], hooks: Hooks) -> list[Node]:
    """The nodes, as soon as a worker group fits on them.

    On a cluster that has lost nodes, at most REPLACEMENT_SECONDS are waited for that, as lost nodes
    are mostly replaced; on any other, nothing would change. A request to stop ends the wait.
    """
    deadline = time.monotonic() + REPLACEMENT_SECONDS
    while not group_slots(resources, nodes := alive()):
        lost = not all(node["Alive"] for node in ray.nodes())
        if not lost or hooks.stopping() or time.monotonic() > deadline:
            break
        for work in works:
            hooks.say(work.address, 0.0, "waits for a node in place of a lost one")
        time.sleep(LOOK_SECONDS)
    return nodes

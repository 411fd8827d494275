"""Which runs share a worker group, and which of these train side by side.

Takes the works of a turn and the cluster's nodes; gives packs: the runs of one worker group each.
There are as many packs as worker groups fit on the cluster at once, and their sizes differ by one
at most, so runs train side by side only where there are fewer groups than runs. Runs of a cohort,
which differ in noise alone, are kept together as far as that allows. Packing never affects a
result. Knows no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TypeVar, cast

from jobs.contract import Work
from jobs.pretrain.spec import PretrainStep, Resources

_T = TypeVar("_T")


@dataclass(frozen=True)
class Node:
    """The resources of one node of the cluster."""

    cpus: float
    gpus: float


def cohorts(works: Sequence[Work]) -> list[list[Work]]:
    """The works in groups that differ in noise alone: equal steps on the same corpus."""
    found: dict[tuple[str, str], list[Work]] = {}
    for work in works:
        key = (cast(PretrainStep, work.spec).model_dump_json(), work.inputs["corpus"].uri)
        found.setdefault(key, []).append(work)
    return list(found.values())


def packs(grouped: Sequence[Sequence[_T]], slots: int) -> list[list[_T]]:
    """Cohorts distributed over at most `slots` packs, in order, of equal size to within one."""
    works = list(chain.from_iterable(grouped))
    count = min(slots, len(works))
    edges = [len(works) * number // count for number in range(count + 1)]
    return [works[start:stop] for start, stop in pairwise(edges)]


def group_slots(resources: Resources, nodes: Sequence[Node]) -> int:
    """How many worker groups with these resources fit on the cluster at once."""
    return sum(_workers_on(resources, node) for node in nodes) // resources.workers


def most_on_a_node(resources: Resources, nodes: Sequence[Node], groups: int) -> int:
    """Most workers of so many groups that may be on one node at once."""
    return min(groups * resources.workers, max(_workers_on(resources, node) for node in nodes))


def infeasible_message(resources: Resources, nodes: Sequence[Node]) -> str:
    """One sentence for resources that exceed the cluster's."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    gpu = f" and {resources.gpus_per_worker:g} GPUs" if resources.gpus_per_worker else ""
    return (
        f"pretrain.resources asks for {resources.workers} workers of "
        f"{resources.cpus_per_worker} CPUs{gpu} each, and the cluster's {len(nodes)} nodes have "
        f"{cpus:g} CPUs and {gpus:g} GPUs in all; lower pretrain.resources or add nodes"
    )


def _workers_on(resources: Resources, node: Node) -> int:
    """How many workers fit on a node at once."""
    workers = node.cpus // resources.cpus_per_worker
    if resources.gpus_per_worker:
        workers = min(workers, node.gpus // resources.gpus_per_worker)
    return int(workers)

"""How many pre-training runs will train side by side, and why, in a sentence.

Takes a plan, the steps that are left, and the nodes if they are known. The cluster decides how many
worker groups there are (`jobs/pretrain/packs.py`); runs of a group that differ in noise alone train
side by side. How many of them memory holds is measured in the group, before the first step; its
progress messages say it. Imports neither Ray nor torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import cast

from jobs.pretrain.packs import Node, group_slots, packs
from jobs.pretrain.spec import PretrainStep, Resources
from orchestrator.plan.plan import Plan

Cohort = tuple[str, str]
"""What runs that differ in noise alone have in common: their spec and their corpus."""


def together_line(
    plan: Plan, left: Collection[str], nodes: Sequence[Node] | None, where: str = ""
) -> str | None:
    """The sentence; None if at most one run is left, or none fits.

    `nodes`: None where the sweep will find them; `where`: what they are, for people.
    """
    runs = [step for step in plan.of_kind("pretrain") if step.address in left]
    if len(runs) < 2:
        return None
    resources = cast(PretrainStep, runs[0].spec).resources
    cohorts: dict[Cohort, list[Cohort]] = {}
    for step in runs:
        cohort = step.spec.model_dump_json(), step.inputs["corpus"]
        cohorts.setdefault(cohort, []).append(cohort)
    begin, most = f"Pre-training: {len(runs)} runs", max(map(len, cohorts.values()))
    if nodes is None:
        if most == 1 or resources.together == 1:
            return None
        return (
            f"{begin}. Where the cluster has room for fewer at once, {_up_to(most, resources)} "
            f"that differ in noise alone train side by side{_memory(resources)}; the sweep says it"
        )
    slots = group_slots(resources, nodes)
    if slots == 0:
        return None
    packed = packs(list(cohorts.values()), slots)
    groups = f"{len(packed)} worker group{'s' * (len(packed) > 1)}"
    if len(packed) == len(runs):
        return f"{begin} in {groups}, each by itself: {where} has room for all at once"
    begin += f" in {groups}, as many as {where} has room for at once"
    beside = max(max(Counter(pack).values()) for pack in packed)
    if beside == 1:
        return f"{begin}, one after another: no two of a group differ in noise alone"
    if resources.together == 1:
        return f"{begin}, one after another (pretrain.resources.together is 1)"
    return (
        f"{begin}; {_up_to(beside, resources)} of a group that differ in noise alone train side by "
        f"side{_memory(resources)}"
    )


def _up_to(runs: int, resources: Resources) -> str:
    if resources.together != "auto" and resources.together < runs:
        return f"at most {resources.together} (pretrain.resources.together)"
    return f"up to {runs}"


def _memory(resources: Resources) -> str:
    if resources.together != "auto":
        return ""
    return ", as many as memory holds (measured before their first step)"

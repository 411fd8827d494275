"""What a plan is, a graph of steps, and where each step stands in a store.

A step is known by its *address* (readable, and its folder in the store) and by its *fingerprint*,
a hash of everything that bears on its result: its spec's semantic fields, its stage's protocol
version and the fingerprints of the steps it reads. Workers, paths, storage and log settings bear on
neither. How an experiment becomes a plan is in `planner.py`; standing is told from manifests alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from orchestrator.errors import DriftError
from orchestrator.experiment import Experiment
from orchestrator.step.step import Difference, Step, differences

if TYPE_CHECKING:
    from orchestrator.index import Record
    from orchestrator.store import Store


@dataclass(frozen=True)
class Plan:
    """The steps of one experiment, each after the ones it reads."""

    experiment: Experiment
    steps: Mapping[str, Step]

    def of_kind(self, kind: str) -> list[Step]:
        """The steps of one kind, in order."""
        return [step for step in self.steps.values() if step.kind == kind]

    def only(self, *kinds: str) -> Plan:
        """The steps of some kinds, and all that they read."""
        kept = {step.address for step in self.steps.values() if step.kind in kinds}
        for step in reversed(list(self.steps.values())):  # each stands after its inputs
            if step.address in kept:
                kept.update(step.inputs.values())
        return Plan(self.experiment, {a: s for a, s in self.steps.items() if a in kept})


class Standing(StrEnum):
    """What a sweep would do with a step."""

    DONE = "done"  # committed with this fingerprint: reused
    RUN = "run"  # to be done
    DRIFT = "drift"  # committed with another fingerprint: refused
    BLOCKED = "blocked"  # reads a step that has drifted


@dataclass(frozen=True)
class Assessment:
    """A step's standing, with the reason."""

    standing: Standing
    reason: str = ""
    differences: tuple[Difference, ...] = ()
    record: Record | None = None  # of the committed step, done or drifted


def assess(plan: Plan, store: Store, *, verify: bool = False) -> dict[str, Assessment]:
    """Where every step of the plan stands, from the store alone.

    `verify` has every manifest opened, as is due before anything is run.
    """
    found: dict[str, Assessment] = {}
    records = store.records(plan.steps, verify=verify)
    for step in plan.steps.values():
        record = records.get(step.address)
        if record is not None and record.fingerprint == step.fingerprint:
            found[step.address] = Assessment(Standing.DONE, record=record)
        elif record is not None and (manifest := store.manifest(step.address)) is not None:
            changes = tuple(differences(manifest.fields, step.fields))
            reason = "; ".join(map(str, changes))
            found[step.address] = Assessment(Standing.DRIFT, reason, changes, record)
        else:
            drifted = [
                address
                for address in step.inputs.values()
                if found[address].standing in (Standing.DRIFT, Standing.BLOCKED)
            ]
            if drifted:
                found[step.address] = Assessment(Standing.BLOCKED, f"reads {drifted[0]}")
            else:
                found[step.address] = Assessment(Standing.RUN)
    return found


def refuse_drift(assessments: Mapping[str, Assessment]) -> None:
    """Raise DriftError with the differences, unless no step has drifted.

    Drift that only follows from an input's is counted, not repeated.
    """
    drifted = {a: s for a, s in assessments.items() if s.standing is Standing.DRIFT}
    if not drifted:
        return
    roots: dict[str, list[str]] = {}
    followers = 0
    for address, assessment in drifted.items():
        own = [d for d in assessment.differences if not d.path.startswith("inputs.")]
        if own:
            roots.setdefault("\n".join(f"    {d}" for d in own), []).append(address)
        else:
            followers += 1
    lines = [f"{len(drifted)} finished steps were made from other settings:"]
    for changes, addresses in roots.items():
        more = f" (and {len(addresses) - 1} more)" if len(addresses) > 1 else ""
        lines += [f"  {addresses[0]}{more}", changes]
    if followers:
        lines.append(f"  {followers} more read a step that changed")
    lines.append(
        "Give what changed a new name (the recipe's, the corpus's, ... `name` field) to keep both, "
        "or redo these steps with --force."
    )
    raise DriftError("\n".join(lines))

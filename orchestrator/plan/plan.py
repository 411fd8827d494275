"""A plan: a graph of steps, each after the steps it reads, and the tasks they belong to.

A plan is closed: task files are read when it is made, and never again. `build.py` makes a plan from
an experiment; `assess.py` finds the state of each step.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from jobs.tasks.spec import Task
from orchestrator.errors import UserError
from orchestrator.experiment.model import Experiment
from orchestrator.step.step import Step


@dataclass(frozen=True)
class Plan:
    """The steps of one experiment, each after the ones it reads."""

    experiment: Experiment
    tasks: tuple[Task, ...]  # as read when the plan was made
    steps: Mapping[str, Step]

    def of_kind(self, kind: str) -> list[Step]:
        """The steps of one kind, in order."""
        return [step for step in self.steps.values() if step.kind == kind]

    def readers(self, addresses: Collection[str]) -> set[str]:
        """These steps and all that read them, directly or through others."""
        found = set(addresses)
        for step in self.steps.values():  # each comes after its inputs
            if not found.isdisjoint(step.inputs.values()):
                found.add(step.address)
        return found

    def named(self, names: Sequence[str]) -> set[str]:
        """The steps with these addresses, or whose addresses begin with these folders.

        Raises UserError, with the nearest address, for a name without a step.
        """
        found: set[str] = set()
        for name in names:
            wanted = name.strip("/")
            below = {a for a in self.steps if a == wanted or a.startswith(f"{wanted}/")}
            if not wanted or not below:
                near = difflib.get_close_matches(wanted, self.steps, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else "`nml-orch plan -v` lists all"
                raise UserError(f"--redo: this experiment has no step {name!r}; {hint}")
            found |= below
        return found

    def only(self, *kinds: str) -> Plan:
        """The steps of some kinds, and all that they read or come after."""
        kept = {step.address for step in self.steps.values() if step.kind in kinds}
        for step in reversed(list(self.steps.values())):  # each comes after its inputs
            if step.address in kept:
                kept.update((*step.inputs.values(), *step.after))
        return Plan(self.experiment, self.tasks, {a: s for a, s in self.steps.items() if a in kept})

"""A plan: a graph of steps, each after the steps it reads, and the tasks they belong to.

A plan is closed: task files are read when it is made, and never again. `build.py` makes a plan from
an experiment; `assess.py` finds the state of each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.tasks.spec import Task
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

    def only(self, *kinds: str) -> Plan:
        """The steps of some kinds, and all that they read."""
        kept = {step.address for step in self.steps.values() if step.kind in kinds}
        for step in reversed(list(self.steps.values())):  # each comes after its inputs
            if step.address in kept:
                kept.update(step.inputs.values())
        return Plan(self.experiment, self.tasks, {a: s for a, s in self.steps.items() if a in kept})

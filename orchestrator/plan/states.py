"""The states that a step of a plan can be in: one vocabulary for plans, sweeps, status and reports.

Which of them a step is in is told by `assess.py` from the store, and by the executor of a running
sweep.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class StepState(StrEnum):
    """What is known of a step, in the order in which states are told."""

    REUSED = "reused"  # was done before this sweep, or by another one meanwhile
    DONE = "done"  # committed with the planned fingerprint
    RUNNING = "running"  # a sweep is doing it
    FAILED = "failed"
    BLOCKED = "blocked"  # reads a step that has failed, has drifted or is blocked itself
    DRIFT = "drift"  # committed with another fingerprint: refused
    MISSING = "missing"  # not done, and nothing is in its way

    @property
    def finished(self) -> bool:
        """Whether the store holds the step as planned."""
        return self in (StepState.REUSED, StepState.DONE)


@dataclass(frozen=True)
class StepStatus:
    """A step's state, with the reason where there is one."""

    state: StepState
    reason: str = ""

"""The states of a step: one vocabulary for plans, sweeps, status and reports.

`assess.py` finds a step's state from the store; during a sweep the executor knows it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class StepState(StrEnum):
    """The states of a step, in the order in which they are listed."""

    REUSED = "reused"  # was done before this sweep, or by another one meanwhile
    DONE = "done"  # committed with the planned fingerprint
    RUNNING = "running"  # a sweep is doing it
    FAILED = "failed"
    BLOCKED = "blocked"  # reads a step that has failed, has drifted or is blocked itself
    DRIFT = "drift"  # committed with another fingerprint: refused
    MISSING = "missing"  # not done, and nothing blocks it

    @property
    def finished(self) -> bool:
        """Whether the store holds the step as planned."""
        return self in (StepState.REUSED, StepState.DONE)


@dataclass(frozen=True)
class StepStatus:
    """A step's state, with the reason where there is one."""

    state: StepState
    reason: str = ""

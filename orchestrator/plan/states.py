"""The states of a step: one vocabulary for plans, sweeps, status and reports.

`assess.py` finds a step's state from the store; during a sweep the executor knows it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.step.step import Step


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


def blocked_by(step: Step, ended: str, found: Mapping[str, StepStatus]) -> str:
    """Why a step cannot begin after another one, `ended`, has ended badly; empty if it still can.

    `found` has the steps that have ended. A step comes `after` several others as long as one of
    them may end well.
    """
    if ended in step.inputs.values():
        return f"reads {ended}"
    after = [found.get(address) for address in step.after]
    if after and all(status is not None and _lost(status) for status in after):
        return f"comes after {ended}"
    return ""


def _lost(status: StepStatus) -> bool:
    return status.state in (StepState.FAILED, StepState.BLOCKED, StepState.DRIFT)

"""Restarts of a worker group that ended before its runs: decide whether to start it again, and how.

Takes the errors of its workers and what changed since its start; gives the decision, and the error
message for giving up. A lost node (preemption) is no fault of the run and never counts. A lost
worker counts only if the runs made no progress since the last restart: so a run on machines that
are often preempted finishes, and a run that always kills its workers is given up. An error raised
by the training itself always counts. Where memory does not suffice for runs side by side, half as
many train at once, which counts as no failure. Knows neither Ray nor torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jobs.contract import StageError

_MEMORY = ("low on memory", "OutOfMemoryError", "out-of-memory", "OOM", "exit code 137")
_WORKER_LOST = ("ActorDiedError", "ActorUnavailableError", "WorkerHealthCheckFailedError")


class TooManyTogetherError(RuntimeError):
    """Runs cannot go on side by side: fewer of them at once may. Says why."""


@dataclass(frozen=True)
class Limit:
    """Most runs that train side by side, and why."""

    most: int | None = None  # None: as many as memory holds
    why: str = "memory holds no more"

    @classmethod
    def of(cls, together: Literal["auto"] | int) -> Limit:
        """The limit of `resources.together`."""
        if together == "auto":
            return cls()
        return cls(together, f"pretrain.resources.together is {together}")

    def most_of(self, runs: int) -> int:
        """Most of so many runs."""
        return min(runs, self.most or runs)

    def halved(self, runs: int, why: str) -> Limit:
        """Half as many, if so many runs were to train."""
        return Limit(-(-self.most_of(runs) // 2), why)


def too_many_together(errors: Sequence[BaseException]) -> str | None:
    """Why fewer runs must train side by side; None if their number is not to blame."""
    for error in errors:
        inner = getattr(error, "_base_exc", error)
        if isinstance(inner, TooManyTogetherError):
            return str(inner)
    if any(word in str(error) for error in errors for word in _MEMORY):
        return "the machine's memory ran out"
    return None


@dataclass
class RestartBudget:
    """The number of restarts that a worker group is allowed, and has used."""

    most: int
    spent: int = 0

    def allows(self, errors: Sequence[BaseException], *, node_gone: bool, progressed: bool) -> bool:
        """Whether to start the group again; `progressed`: its runs did since its last start."""
        lost = all(type(error).__name__ in _WORKER_LOST for error in errors)
        if node_gone or (lost and progressed):
            return True
        self.spent += 1
        return self.spent <= self.most


def stage_error(errors: Sequence[BaseException]) -> StageError | None:
    """The first StageError, which a restart cannot cure, without the worker's wrapping."""
    for error in errors:
        inner = getattr(error, "_base_exc", error)
        if isinstance(inner, StageError):
            return StageError(str(inner))
    return None


def giving_up_message(errors: Sequence[BaseException], spent: int) -> str:
    """One sentence that says why a worker group is not started again."""
    texts = [str(error) for error in errors]
    if any(word in text for text in texts for word in _MEMORY):
        return (
            f"its workers were ended {spent} times because the machine's memory ran out; lower "
            f"pretrain.resources.decoded_gb (images are then read from the shards while "
            f"training), or pretrain.resources.images_per_pass"
        )
    last = next(
        (line for text in texts for line in reversed(text.splitlines()) if line.strip()), ""
    )
    return f"its workers ended {spent} times before it was done ({last.strip()[:300]})"

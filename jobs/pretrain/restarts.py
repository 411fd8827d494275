"""Restarts of a worker group that ended before its runs: decide whether to start it again.

Takes the errors of its workers and what changed since its start; gives the decision, and the error
message for giving up. A lost node (preemption) is no fault of the run and never counts. A lost
worker counts only if the runs made no progress since the last restart: so a run on machines that
are often preempted finishes, and a run that always kills its workers is given up. An error raised
by the training itself always counts. Knows no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.contract import StageError

_MEMORY = ("low on memory", "OutOfMemoryError", "out-of-memory", "OOM", "exit code 137")
_WORKER_LOST = ("ActorDiedError", "ActorUnavailableError", "WorkerHealthCheckFailedError")


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

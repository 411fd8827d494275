"""What becomes of a worker group that ended before its runs did: go on, or give up.

Takes the errors of its workers and what has changed since it started; gives a decision, and the
sentence of the one to give up. A node that is gone (preemption) is nobody's mistake and never
counts; a lost worker counts when its runs got no further than at the loss before it, so that a run
on a machine that is often taken away still ends, and one that kills its workers every time does
too. An error raised by the training itself always counts. Knows no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.contract import StageError

_MEMORY = ("low on memory", "OutOfMemoryError", "out-of-memory", "OOM", "exit code 137")
_LOST = ("ActorDiedError", "ActorUnavailableError", "WorkerHealthCheckFailedError")


@dataclass
class Budget:
    """How many more losses a worker group's runs are allowed."""

    most: int
    spent: int = 0

    def allows(self, errors: Sequence[BaseException], *, node_gone: bool, further: bool) -> bool:
        """Whether to start the group again; `further`: its runs got on since the loss before."""
        lost = all(type(error).__name__ in _LOST for error in errors)
        if node_gone or (lost and further):
            return True
        self.spent += 1
        return self.spent <= self.most


def own_error(errors: Sequence[BaseException]) -> StageError | None:
    """The first error that trying again cannot cure, out of what its worker wrapped it in."""
    for error in errors:
        inner = getattr(error, "_base_exc", error)
        if isinstance(inner, StageError):
            return StageError(str(inner))
    return None


def in_words(errors: Sequence[BaseException], spent: int) -> str:
    """One sentence of why a worker group was given up."""
    texts = [str(error) for error in errors]
    if any(word in text for text in texts for word in _MEMORY):
        return (
            f"its workers were ended {spent} times because the machine's memory ran out; lower "
            f"pretrain.resources.decoded_gb (images are then read from the shards as they are "
            f"needed), or pretrain.resources.images_per_pass"
        )
    last = next(
        (line for text in texts for line in reversed(text.splitlines()) if line.strip()), ""
    )
    return f"its workers ended {spent} times before it was done ({last.strip()[:300]})"

"""The epochs that every configuration of a cell is trained for, and what can end it earlier.

By default every configuration of every method gets the same epochs. An experiment can declare two
exceptions, the same for all methods; the epochs of each configuration are recorded with it:

- patience: a member stops when its validation (the task's metric, then the loss) has not improved
  on its own best for so many epochs. It can still be selected, with its last weights.
- halving: at the epochs of `Halving.cuts` the better 1/eta of a method's configurations continues.
  The others can no longer be selected. The learning rate follows the schedule of the whole budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jobs.tasks.target import Metric
from jobs.tuning.spec import Halving

Key = tuple[float, float, int]
"""Orders members, best first: minus the task's own metric on the validation part, validation loss,
drawing order."""


OnProgress = Callable[[float], None]
"""Called now and then with the share (0 to 1) of the work that is done, from the working thread."""


def ignore_progress(share: float) -> None:
    """The callback where nobody asks how far the work is."""


@dataclass(frozen=True)
class Budget:
    """The training budget of every method of a cell."""

    epochs: int
    batch_size: int  # samples a step, each with all its views
    halving: Halving | None = None
    patience: int | None = None  # epochs without a better validation
    metric: Metric = "accuracy"  # the task's own: what decides who is better

    def cuts(self, configurations: int) -> dict[int, int]:
        """How many configurations go on, by the epoch after which the others are dropped."""
        return {} if self.halving is None else dict(self.halving.cuts(configurations, self.epochs))

    def epochs_of(self, configurations: int) -> int:
        """The epochs that all of a method's configurations train for together, at most."""
        left, before, spent = configurations, 0, 0
        for epoch, go_on in (*self.cuts(configurations).items(), (self.epochs, 0)):
            spent, before, left = spent + left * (epoch - before), epoch, go_on
        return spent


class Patience:
    """Remembers each member's best epoch."""

    def __init__(self, epochs: int | None) -> None:
        self._epochs = epochs
        self._best: dict[int, tuple[float, float]] = {}
        self._waited: dict[int, int] = {}

    def is_over(self, member: int, key: Key) -> bool:
        """Whether a member with this validation after an epoch has to stop now."""
        if self._epochs is None:
            return False
        if member not in self._best or key[:2] < self._best[member]:
            self._best[member] = key[:2]
            self._waited[member] = 0
            return False
        self._waited[member] += 1
        return self._waited[member] >= self._epochs

"""The epochs that every configuration of a cell trains for, and what ends training earlier.

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
from jobs.tuning.schedule import Schedule
from jobs.tuning.spec import Halving

Key = tuple[float, float, int]
"""Sorts members, best first: minus the task's own metric on the validation part, validation loss,
drawing order."""


OnProgress = Callable[[float], None]
"""Called from time to time, in the working thread, with the share (0 to 1) of the work done."""


def ignore_progress(share: float) -> None:
    """A callback that does nothing."""


@dataclass(frozen=True)
class Budget:
    """The training budget of every method of a cell."""

    epochs: int
    batch_size: int  # samples a step, each with all its views
    halving: Halving | None = None
    patience: int | None = None  # epochs without a better validation
    metric: Metric = "accuracy"  # the task's own, by which members are compared
    views: int | None = None  # of each sample in an epoch, in turn; none: all
    schedule: Schedule = "cosine"  # of the learning rate, over all epochs

    def views_of(self, epoch: int, count: int) -> list[int]:
        """Which of a sample's `count` views, from 0, an epoch (from 1) trains on.

        Each epoch goes on where the one before ended, and begins again after the last view.
        """
        each = count if self.views is None else min(self.views, count)
        return [((epoch - 1) * each + number) % count for number in range(each)]

    def cuts(self, configurations: int) -> dict[int, int]:
        """Epoch -> how many configurations continue after it; the others are dropped."""
        return {} if self.halving is None else dict(self.halving.cuts(configurations, self.epochs))

    def epochs_of(self, configurations: int) -> int:
        """The sum of the epochs of all of a method's configurations, at most."""
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
        """Record a member's validation after an epoch; return whether the member must stop now."""
        if self._epochs is None:
            return False
        if member not in self._best or key[:2] < self._best[member]:
            self._best[member] = key[:2]
            self._waited[member] = 0
            return False
        self._waited[member] += 1
        return self._waited[member] >= self._epochs

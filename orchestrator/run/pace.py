"""How long the rest of a sweep takes, from the rates of what has run in it.

Takes what runs and what has ended, as time passes; gives seconds. The time that passes is shared by
the kinds of step that run in it, so a kind's rate is what it costs beside the others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

LEAST_DONE = 0.05  # steps of a kind, before its rate is believed


@dataclass(frozen=True)
class Left:
    """The seconds that are left, and whether some kind that is left has no rate yet."""

    seconds: float
    partial: bool

    def __str__(self) -> str:
        about = "at least" if self.partial else "about"
        return f"{about} {in_words(self.seconds)} left"


class Pace:
    """Shares out the time that passes, and tells what is left."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._last: float | None = None

    def pass_time(self, now: float, running: Collection[str]) -> None:
        """Count the time since the last call for the kinds that have been running in it."""
        if self._last is not None:
            for kind in running:
                passed = max(0.0, now - self._last) / len(running)
                self._spent[kind] = self._spent.get(kind, 0.0) + passed
        self._last = now

    def left(self, done: Mapping[str, float], rest: Mapping[str, float]) -> Left | None:
        """What is left, from the steps of each kind that this run has done, and those it has not.

        None while nothing has a rate, and when nothing is left.
        """
        open_kinds = {kind: steps for kind, steps in rest.items() if steps > 0}
        known = {
            kind: steps * self._spent[kind] / done[kind]
            for kind, steps in open_kinds.items()
            if done.get(kind, 0) >= LEAST_DONE and kind in self._spent
        }
        if not known:
            return None
        return Left(sum(known.values()), partial=len(known) < len(open_kinds))


def in_words(seconds: float) -> str:
    """Such as "1 min" (at least that), "14 min" or "3 h 20 min"."""
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours / 24:.0f} days"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"

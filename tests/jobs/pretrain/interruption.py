"""Runs whose process dies again and again, and what they leave."""

from __future__ import annotations

from jobs.contract import Outcome, Work
from jobs.pretrain.loop import Pace, Watch
from jobs.pretrain.run import train_run
from jobs.pretrain.telemetry import TIMINGS

OFTEN = Pace(time_share=float("inf"))  # a checkpoint at each segment end and epoch end
SELDOM = Pace(time_share=0.0)  # only at the very end


class Killed(BaseException):
    """As sudden as a signal: nothing in the loop may catch it."""


def dying(after: int) -> Watch:
    """Ends the process, as it were, at update number `after` of its own."""
    updates = 0

    def say(share: float, words: str) -> None:
        nonlocal updates
        updates += share > 0
        if updates == after:
            raise Killed

    return Watch(say=say)


def interrupted(work: Work, after: int = 4, pace: Pace = OFTEN) -> Outcome:
    """The work, its process dying after every `after` updates of its own until it is done."""
    while True:
        try:
            return train_run(work, watch=dying(after), pace=pace)
        except Killed:
            assert list(work.output.files()) == []


def outputs(work: Work) -> dict[str, bytes]:
    """All files but the one that the clock wrote."""
    names = [name for name, _ in work.output.files() if name != TIMINGS]
    return {name: work.output.read_bytes(name) for name in names}

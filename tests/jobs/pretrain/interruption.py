"""Runs that are killed again and again, and their outputs."""

from __future__ import annotations

from jobs.contract import Outcome, Work
from jobs.pretrain.loop import Pace, Watch
from jobs.pretrain.run import train_run
from jobs.pretrain.telemetry import TIMINGS

OFTEN = Pace(time_share=float("inf"))  # a checkpoint at the end of each segment and epoch
SELDOM = Pace(time_share=0.0)  # only at the very end


class Killed(BaseException):
    """Like a signal: nothing in the loop may catch it."""


def killing_watch(after: int) -> Watch:
    """A watch that kills the run at update number `after` of its process."""
    updates = 0

    def on_progress(share: float, words: str) -> None:
        nonlocal updates
        updates += share > 0
        if updates == after:
            raise Killed

    return Watch(on_progress=on_progress)


def interrupted(work: Work, after: int = 4, pace: Pace = OFTEN) -> Outcome:
    """Train the work, killing it after every `after` updates until it is done."""
    while True:
        try:
            return train_run(work, watch=killing_watch(after), pace=pace)
        except Killed:
            assert list(work.output.files()) == []


def outputs(work: Work) -> dict[str, bytes]:
    """All output files except the timings."""
    names = [name for name, _ in work.output.files() if name != TIMINGS]
    return {name: work.output.read_bytes(name) for name in names}

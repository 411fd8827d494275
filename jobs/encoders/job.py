"""The encoders stage: one Ray task takes in one named encoder; a failing one fails alone."""

from __future__ import annotations

import traceback
from collections.abc import Sequence

import ray

from jobs.contract import Hooks, Outcome, StageError, Work

POLL_SECONDS = 0.5


def run(works: Sequence[Work], hooks: Hooks) -> None:
    """Take in each work's encoder (spec: `EncoderStep`, no inputs).

    Output: as `jobs/pretrain/encoder.py` describes. After a stop, unfinished works are left
    unanswered.
    """
    waiting = {_take_in.remote(work): work for work in works}
    for work in works:
        hooks.say(work.address, 0.0, "taking in weights")
    while waiting:
        if hooks.stopping():
            for reference in waiting:
                ray.cancel(reference)
            return
        ended, _ = ray.wait(list(waiting), timeout=POLL_SECONDS)
        for reference in ended:
            work = waiting.pop(reference)
            try:
                hooks.done(work.address, ray.get(reference))
            except Exception as error:  # of the worker, not of the encoder
                hooks.done(work.address, error)


@ray.remote(num_cpus=1)
def _take_in(work: Work) -> Outcome | Exception:
    from jobs.encoders.take import take_in

    try:
        return take_in(work)
    except StageError as error:
        return error
    except Exception as error:
        answer = RuntimeError(f"{type(error).__name__}: {error}")
        answer.add_note("".join(traceback.format_exception(error)))
        return answer

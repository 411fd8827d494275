"""The encoders stage: one Ray task takes in one named encoder; a failing one fails alone."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.contract import Hooks, Outcome, Work
from jobs.remote import answer_each


def run(works: Sequence[Work], hooks: Hooks) -> None:
    """Take in each work's encoder (spec: `EncoderStep`, no inputs).

    Output: as `jobs/encoders/encoder.py` describes. After a stop, unfinished works are left
    unanswered.
    """
    for work in works:
        hooks.say(work.address, 0.0, "taking in weights")
    answer_each(_take_in, [([work], 1, 0) for work in works], hooks)


def _take_in(work: Work) -> Outcome:
    from jobs.encoders.pretrained import (
        take_in,  # timm and open_clip, which the driver does without
    )

    return take_in(work)

"""The encoders stage: one Ray task imports one pretrained encoder; a failing one fails alone."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.contract import Hooks, Outcome, Work
from jobs.remote import report_each


def run(works: Sequence[Work], hooks: Hooks) -> None:
    """Import each work's encoder (spec: `EncoderStep`, no inputs).

    `jobs/encoders/encoder.py` describes the output. After a stop, unfinished works are not
    reported.
    """
    for work in works:
        hooks.say(work.address, 0.0, "importing weights")
    report_each(_import_encoder, [([work], 1, 0) for work in works], hooks)


def _import_encoder(work: Work) -> Outcome:
    # Imports timm and open_clip, which the driver does not need.
    from jobs.encoders.pretrained import import_encoder

    return import_encoder(work)

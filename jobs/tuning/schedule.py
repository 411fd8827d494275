"""AdamW's constants and the schedule of the learning rate, equal for heads and encoders."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "linear"]

BETAS = (0.9, 0.999)
EPS = 1e-8


def share(schedule: Schedule, step: int, steps: int) -> float:
    """The share of the base learning rate at a step (from 0) of `steps`: 1 falling towards 0."""
    if schedule == "linear":
        return 1 - step / steps
    return 0.5 * (1 + math.cos(math.pi * step / steps))

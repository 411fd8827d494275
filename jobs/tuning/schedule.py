"""AdamW's constants and the schedule of the learning rate, equal for heads and encoders."""

from __future__ import annotations

import math

BETAS = (0.9, 0.999)
EPS = 1e-8


def cosine(step: int, steps: int) -> float:
    """The share of the base learning rate at a step (from 0) of `steps`: 1 falling towards 0."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))

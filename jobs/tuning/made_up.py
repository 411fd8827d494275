"""Configurations for the checks of an extension's methods, from the ranges that they declare."""

from __future__ import annotations

from jobs.extensions.declared import Declared, Range
from jobs.tuning.trained import Configuration


def made_up(declared: Declared, share: float) -> Configuration:
    """A configuration whose values are at a share, in (0, 1), of the declared ranges."""
    values = {name: _value(limits, share) for name, limits in declared.ranges.items()}
    standard = {n: v for n, v in values.items() if n in ("mse", "cov", "svd", "l2")}
    own = {n: v for n, v in values.items() if n not in (*standard, "lr", "weight_decay")}
    lr = 10 ** (-3 + 2 * share) if declared.trained else 0.0
    return Configuration(lr=lr, weight_decay=1e-4 if declared.trained else 0.0, own=own, **standard)


def _value(limits: Range, share: float) -> float:
    low = limits.low if limits.low is not None else min(0.0, limits.high or 0.0)
    high = limits.high if limits.high is not None else max(low + 1.0, limits.default or 0.0)
    value = low + share * (high - low)
    return float(round(value)) if limits.whole else value

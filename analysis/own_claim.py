"""A claim of a researcher's own, as a readout carries it; `analysis.claims.own` tests it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OwnClaim:
    """A claim as a researcher's file gives it."""

    id: str
    sentence: str
    source: str  # where it is from
    comparisons: Callable[[Any], list[Any]]  # of `analysis.claims.own.Results`

"""How a plan writes counts, times and sizes."""

from __future__ import annotations


def count(value: int | None) -> str:
    """A number of things; "?" if it is not known."""
    return "?" if value is None else f"{value:,}"


def hours(value: float | None) -> str:
    """Hours with three digits; "unknown" if they are."""
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def minutes(time: float) -> str:
    """Hours as a time in minutes, and in hours above two: "3 min", "2.5 h"."""
    if time * 60 < 1:
        return "below 1 min" if time else "0 min"
    return f"{time * 60:,.0f} min" if time < 2 else f"{hours(time)} h"


def size(number: int) -> str:
    """Bytes in the unit that gives them three digits."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"

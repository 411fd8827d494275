"""Single numbers as cells of the report's tables, each with what it sorts by."""

from __future__ import annotations

from analysis import wording
from analysis.report.html import Cell


def percent_cell(value: float) -> Cell:
    """A noise level or a share in percent."""
    return Cell(wording.percent(value), key=value)


def count_cell(value: int | None) -> Cell:
    """A count; a dash where there is none."""
    return Cell("–") if value is None else Cell(f"{value:,}", key=value)


def number_cell(value: float | None, digits: int) -> Cell:
    """A number with so many digits; a dash where there is none."""
    return Cell("–") if value is None else Cell(wording.number(value, digits), key=value)

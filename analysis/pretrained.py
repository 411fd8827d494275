"""Encoders that were named, not trained here: what they reach, in a table of their own.

They have no noise level and no pre-training seed, so they are kept apart from everything that is
averaged by level. Takes the cells and spectra of such encoders; gives their means over tuning seeds
alone, task by task: two encoders may have been given different tasks, and a mean over different
tasks would show the tasks.
"""

from __future__ import annotations

import math
from statistics import stdev
from typing import Any

import pyarrow as pa

from analysis.readout import Readout
from analysis.schemas import PRETRAINED_SUMMARY_SCHEMA


def summary(readout: Readout) -> pa.Table:
    """What each named encoder reaches on the test parts, as PRETRAINED_SUMMARY_SCHEMA."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in readout.pretrained_cells.to_pylist():
        place = tuple(row[name] for name in ("encoder", "task", "domain", "method", "fraction"))
        groups.setdefault(place, []).append(row)
    means = [
        {
            **dict(zip(PRETRAINED_SUMMARY_SCHEMA.names, place, strict=False)),
            "accuracy": _mean(found, "test_accuracy"),
            "macro_f1": _mean(found, "test_macro_f1"),
            "metric": found[0]["metric"],
            "score": _mean(found, "test_metric"),
            "deviation": _deviation(found),
            "tuning_seeds": len(found),
        }
        for place, found in groups.items()
        if all(_reached(row) is not None for row in found)
    ]
    return pa.Table.from_pylist(means, schema=PRETRAINED_SUMMARY_SCHEMA)


def rows(readout: Readout) -> list[dict[str, Any]]:
    """The cells, in an order that depends on nothing but their places."""
    found: list[dict[str, Any]] = readout.pretrained_cells.to_pylist()
    places = ("domain", "task", "method", "fraction", "encoder", "tuning_seed", "address")
    return sorted(found, key=lambda row: tuple(row[name] for name in places))


def shown(row: dict[str, Any]) -> float | None:
    """What a row of the summary is shown by: accuracy, or of numbers the task's own metric."""
    found: float | None = row["score"] if row["accuracy"] is None else row["accuracy"]
    return found


def _reached(cell: dict[str, Any]) -> float | None:
    found: float | None = cell["test_accuracy"]
    return cell["test_metric"] if found is None else found


def _deviation(cells: list[dict[str, Any]]) -> float | None:
    values = [value for cell in cells if (value := _reached(cell)) is not None]
    return stdev(values) if len(values) > 1 else None


def _mean(cells: list[dict[str, Any]], name: str) -> float | None:
    if any(cell[name] is None for cell in cells):
        return None
    return math.fsum(cell[name] for cell in cells) / len(cells)

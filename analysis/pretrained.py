"""What pretrained encoders reach: encoders that the experiment was given and did not train.

They have no noise level and no pre-training seed, so no average by level includes them. Takes their
cells and spectra, gives means over tuning seeds alone, task by task: two encoders may have
different tasks, and a mean over different tasks would show the tasks.
"""

from __future__ import annotations

import math
from statistics import stdev
from typing import Any

import pyarrow as pa

from analysis.readout import Readout
from analysis.schemas import PRETRAINED_SUMMARY_SCHEMA


def summary(readout: Readout) -> pa.Table:
    """What each pretrained encoder reaches on the test parts, as PRETRAINED_SUMMARY_SCHEMA."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in readout.pretrained_cells.to_pylist():
        key = tuple(row[name] for name in ("encoder", "task", "domain", "method", "fraction"))
        groups.setdefault(key, []).append(row)
    means = [
        {
            **dict(zip(PRETRAINED_SUMMARY_SCHEMA.names, key, strict=False)),
            "accuracy": _mean(found, "test_accuracy"),
            "macro_f1": _mean(found, "test_macro_f1"),
            "metric": found[0]["metric"],
            "score": _mean(found, "test_metric"),
            "deviation": _deviation(found),
            "tuning_seeds": len(found),
        }
        for key, found in groups.items()
        if all(_cell_score(row) is not None for row in found)
    ]
    return pa.Table.from_pylist(means, schema=PRETRAINED_SUMMARY_SCHEMA)


def rows(readout: Readout) -> list[dict[str, Any]]:
    """The cells as rows, sorted by domain, task, method, fraction, encoder, seed and address."""
    found: list[dict[str, Any]] = readout.pretrained_cells.to_pylist()
    keys = ("domain", "task", "method", "fraction", "encoder", "tuning_seed", "address")
    return sorted(found, key=lambda row: tuple(row[name] for name in keys))


def main_score(row: dict[str, Any]) -> float | None:
    """A summary row's main score: the task's own metric."""
    found: float | None = row["accuracy"] if row["score"] is None else row["score"]
    return found


def _cell_score(cell: dict[str, Any]) -> float | None:
    found: float | None = cell["test_metric"]
    return cell["test_accuracy"] if found is None else found


def _deviation(cells: list[dict[str, Any]]) -> float | None:
    values = [value for cell in cells if (value := _cell_score(cell)) is not None]
    return stdev(values) if len(values) > 1 else None


def _mean(cells: list[dict[str, Any]], name: str) -> float | None:
    if any(cell[name] is None for cell in cells):
        return None
    return math.fsum(cell[name] for cell in cells) / len(cells)

"""What pretrained encoders reach: encoders that the experiment was given and did not train.

They have no noise level and no pre-training seed, so no average by level includes them. Takes their
cells and spectra, gives means over tuning seeds alone, task by task: two encoders may have
different tasks, and a mean over different tasks would show the tasks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from statistics import stdev
from typing import Any

import pyarrow as pa

from analysis.readout import Readout
from analysis.schemas import DOMAINS, PRETRAINED_SUMMARY_SCHEMA


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


@dataclass(frozen=True)
class Reached:
    """What an encoder reaches in a domain with a method, at the largest fraction."""

    encoder: str
    domain: str
    method: str
    score: float  # by the tasks' own metrics
    tasks: tuple[str, ...]  # that every encoder and method of the domain has finished


def domain_means(readout: Readout) -> list[Reached]:
    """Means over the tasks that every encoder and method of a domain has finished.

    Tasks that one of them lacks are left out everywhere, so that a mean shows the encoder. Encoders
    and methods in the experiment's order, ID first.
    """
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in summary(readout).to_pylist():
        score = main_score(row)
        if row["fraction"] == readout.fraction and score is not None:
            found.setdefault((row["encoder"], row["domain"], row["method"]), {})[row["task"]] = (
                score
            )
    shared = {
        domain: sorted(set.intersection(*(set(s) for (_, d, _), s in found.items() if d == domain)))
        for _, domain, _ in found
    }
    order = (readout.question.encoders, DOMAINS, readout.question.methods)
    return [
        Reached(*key, math.fsum(scores[task] for task in tasks) / len(tasks), tuple(tasks))
        for key in product(*order)
        if (scores := found.get(key)) is not None and (tasks := shared[key[1]])
    ]


def metrics(readout: Readout, domain: str | None = None) -> dict[str, str]:
    """Each task's own metric, of one domain or of both."""
    rows = readout.pretrained_cells.select(["domain", "task", "metric"]).to_pylist()
    found = {(r["task"], r["metric"]) for r in rows if domain is None or r["domain"] == domain}
    return {task: metric or "accuracy" for task, metric in sorted(found, key=str)}


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

"""Encoders that were named, not trained here: what they reach, in a table of their own.

They have no noise level and no pre-training seed, so they are kept apart from everything that is
averaged by level. Takes the cells and spectra of such encoders; gives their means over tuning seeds
alone, task by task: two encoders may have been given different tasks, and a mean over different
tasks would show the tasks.
"""

from __future__ import annotations

import math
from itertools import product
from statistics import stdev
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from analysis import names
from analysis.markup import Cell, table

if TYPE_CHECKING:
    from analysis.readout import Readout

_OF_LEVELS = ("noise_kind", "noise", "pretrain_seed")

SUMMARY_SCHEMA = pa.schema(
    [
        pa.field("encoder", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("fraction", pa.float64(), nullable=False),
        pa.field("accuracy", pa.float64()),  # percent, mean over tuning seeds; null: of numbers
        pa.field("macro_f1", pa.float64()),
        pa.field("metric", pa.string()),  # the task's own
        pa.field("score", pa.float64()),  # by that metric, mean over tuning seeds
        pa.field("deviation", pa.float64()),  # of what is shown, over tuning seeds; null for one
        pa.field("tuning_seeds", pa.int64(), nullable=False),
    ]
)
"""One row an encoder, task, method and fraction."""


def schema_of(leveled: pa.Schema) -> pa.Schema:
    """A table's schema with the encoder's name in place of noise level and seed."""
    kept = [column for column in leveled if column.name not in _OF_LEVELS]
    return pa.schema([pa.field("encoder", pa.string(), nullable=False), *kept])


def summary(readout: Readout) -> pa.Table:
    """What each named encoder reaches on the test parts, as SUMMARY_SCHEMA."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in readout.named.to_pylist():
        place = tuple(row[name] for name in ("encoder", "task", "domain", "method", "fraction"))
        groups.setdefault(place, []).append(row)
    means = [
        {
            **dict(zip(SUMMARY_SCHEMA.names, place, strict=False)),
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
    return pa.Table.from_pylist(means, schema=SUMMARY_SCHEMA)


def rows(readout: Readout) -> list[dict[str, Any]]:
    """The cells, in an order that depends on nothing but their places."""
    found: list[dict[str, Any]] = readout.named.to_pylist()
    places = ("domain", "task", "method", "fraction", "encoder", "tuning_seed", "address")
    return sorted(found, key=lambda row: tuple(row[name] for name in places))


def accuracies(readout: Readout) -> str:
    """A row an encoder, task and fraction, a column a method: test accuracy.

    A task whose target is a number has its own metric there, and its row's head says so.
    """
    means = summary(readout).to_pylist()
    fractions = sorted({r["fraction"] for r in means}, reverse=True)
    question = readout.question
    known = (*question.id_tasks, *question.ood_tasks)
    methods = [m for m in question.methods if m in {r["method"] for r in means}]
    values = {(r["encoder"], r["task"], r["fraction"], r["method"]): r for r in means}
    of_numbers = {r["task"]: r["metric"] for r in means if r["accuracy"] is None}
    encoders = list(dict.fromkeys(r["encoder"] for r in means))
    lines: list[list[Cell | str]] = []
    for encoder in encoders:
        found = {(r["task"], r["fraction"]) for r in means if r["encoder"] == encoder}
        for task, fraction in product(known, fractions):
            if (task, fraction) not in found:
                continue
            title = f"{task}: {names.measured(of_numbers[task])}" if task in of_numbers else task
            used = Cell(names.percent(fraction), key=fraction)
            cells = [_of_seeds(values.get((encoder, task, fraction, m))) for m in methods]
            lines.append([encoder, title, used, *cells])
    if not lines:
        return ""
    several = max(r["tuning_seeds"] for r in means) > 1
    return table(
        ["Encoder", "Task", "Rows used", *map(names.method, methods)],
        lines,
        caption="Encoders that were not trained here: test accuracy in percent"
        + (" (of numbers, the correlation that the row names)" if of_numbers else "")
        + (", mean over tuning seeds, below it their standard deviation" if several else "")
        + ", by the share of the training rows; no noise level, and in no average; every cell in "
        "encoders.csv",
        numbers=1 + len(methods),
    )


def spaces(readout: Readout) -> str:
    """SVE, LSVR and effective rank of each encoder and image set."""
    columns = ("sve", "lsvr", "effective_rank")
    lines: list[list[Cell | str]] = [
        [
            row["encoder"],
            row["images"],
            row["preprocessing"],
            *(_cell(row[name], 2) for name in columns),
        ]
        for row in readout.named_spectra.to_pylist()
        if row["part"] == "test"
    ]
    if not lines:
        return ""
    return table(
        ["Encoder", "Images", "Preprocessing", "SVE", "LSVR", "Effective rank"],
        lines,
        caption="Feature space of the test parts of the named encoders",
        numbers=len(columns),
    )


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


def _of_seeds(row: dict[str, Any] | None) -> Cell:
    value = None if row is None else shown(row)
    if row is None or value is None:
        return Cell("–", mark="gap")
    spread = row["deviation"]
    under = () if spread is None else (f"± {names.number(spread)}",)
    return Cell(names.number(value), under, value)


def _mean(cells: list[dict[str, Any]], name: str) -> float | None:
    if any(cell[name] is None for cell in cells):
        return None
    return math.fsum(cell[name] for cell in cells) / len(cells)


def _cell(value: float | None, digits: int) -> Cell:
    if value is None:
        return Cell("–", mark="gap")
    return Cell(names.number(value, digits), key=value)

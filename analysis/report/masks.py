"""The report's tables of tasks of masks: IoU by class for each encoder and method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from analysis import wording
from analysis.readout import Readout
from analysis.report.html import Cell, Table

MOST_CLASSES = 24  # of a table; iou.csv has all


def class_iou(readout: Readout) -> Iterator[tuple[str, Table]]:
    """Task -> a table with a row for each encoder and method, and a column for each class."""
    rows = readout.class_iou.to_pylist()
    for task in dict.fromkeys(row["task"] for row in rows):
        yield task, _table(readout, task, [row for row in rows if row["task"] == task])


def _table(readout: Readout, task: str, rows: list[dict[str, Any]]) -> Table:
    pixels: dict[str, int] = {}
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    lines: dict[tuple[str, str], None] = {}
    for row in rows:
        pixels[row["class"]] = max(row["pixels"], pixels.get(row["class"], 0))
        source = row["encoder"] or f"{wording.percent(row['noise'])} noise"
        lines[source, row["method"]] = None
        if row["iou"] is not None:
            values[source, row["method"], row["class"]].append(row["iou"])
    most = set(sorted(pixels, key=lambda name: -pixels[name])[:MOST_CLASSES])
    classes = [name for name in pixels if name in most]
    left = len(pixels) - len(classes)
    shown: list[list[Cell | str]] = [
        [source, wording.method(method), *(_cell(values.get((source, method, c))) for c in classes)]
        for source, method in lines
    ]
    total = max(1, sum(pixels.values()))
    heads = [
        f"{name} ({wording.percent(round(100 * pixels[name] / total, 1))})" for name in classes
    ]
    return Table(
        ["Encoder", "Method", *heads],
        shown,
        caption=f"{readout.question.titles.get(task, task)}: IoU of each class in percent, mean "
        f"over seeds; beside a class its share of the test pixels"
        + (f"; {left} classes with fewer pixels are in iou.csv" if left else ""),
        numbers=len(classes),
    )


def _cell(found: list[float] | None) -> Cell:
    if not found:
        return Cell("–", mark="gap")
    mean = sum(found) / len(found)
    return Cell(wording.number(mean), key=mean)

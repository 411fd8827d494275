"""The figure of finished and missing cells: task and method by noise level and seed."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from analysis import wording
from analysis.figures import style
from analysis.readout import Readout

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_ROWS = 60  # with more, and on a phone, a row is a task with all its methods
_DONE, _PART, _NONE, _FAILED = "#0072B2", "#9cc7e4", style.BLANK, "#E69F00"

Square = tuple[str, str, float, int]  # task, method ("" when merged), level, seed


def matrix(readout: Readout) -> Figure:
    """The share of requested cells that are finished, by task, method, noise level and seed."""
    question = readout.question
    tasks = [*question.id_tasks, *question.ood_tasks]
    merged = style.on_phone() or len(tasks) * len(question.methods) > _MOST_ROWS
    rows = (
        [(task, "") for task in tasks]
        if merged
        else [(task, method) for task in tasks for method in question.methods]
    )
    columns = [(level, seed) for level in question.levels for seed in question.seeds]
    asked = Counter(
        (task, "" if merged else method, level, seed)
        for level, seed, task, method, _, _ in question.asked()
    )
    done, failed = _done(readout, merged), _failed(readout, merged)
    width = min(3.4 + 0.34 * len(columns), 16.0)
    figure, (axes,) = style.new_figure(1, 1, width=width, height=1.9 + 0.21 * len(rows))
    style.label_axes(axes, title="Cells by task, method, noise level and seed", x="", y="")
    for y, (task, method) in enumerate(rows):
        for x, (level, seed) in enumerate(columns):
            square = (task, method, level, seed)
            if asked[square]:
                _square(axes, (x, y), done[square], asked[square], failed=square in failed)
    _ticks(axes, rows, columns, question.seeds)
    style.footnote(
        figure,
        "Finished cells by square. Dark: all; light: a part; white: none; orange with a cross: "
        "some failed or are blocked. Columns: noise level, then pre-training seed.",
    )
    return figure


def _square(axes: Axes, at: tuple[int, int], done: int, asked: int, *, failed: bool) -> None:
    """A square with the number of its finished cells; a cross where one has failed."""
    from matplotlib.patches import Rectangle

    (x, y), share = at, done / asked
    colour = _DONE if share >= 1 else _FAILED if failed else _PART if share > 0 else _NONE
    box = Rectangle((x - 0.45, y - 0.45), 0.9, 0.9, facecolor=colour, edgecolor="#9a9a9a", lw=0.5)
    axes.add_patch(box)
    axes.text(
        *(x, y, f"{done}×" if failed and share < 1 else f"{done}"),
        color=style.BLANK if share >= 1 else style.OVER,
        ha="center",
        va="center",
        fontsize=6.5,
    )


def _ticks(
    axes: Axes,
    rows: list[tuple[str, str]],
    columns: list[tuple[float, int]],
    seeds: tuple[int, ...],
) -> None:
    labels = [f"{task}  {wording.method(method)}".strip() for task, method in rows]
    axes.set_yticks(range(len(rows)), [style.plain(label) for label in labels], fontsize=8)
    marks = [f"{level:g} %\n{seed}" if seed == seeds[0] else f"\n{seed}" for level, seed in columns]
    axes.set_xticks(range(len(columns)), marks, fontsize=8)
    axes.set_xlim(-0.6, len(columns) - 0.4)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(False)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _done(readout: Readout, merged: bool) -> Counter[Square]:
    names_ = ("task", "method", "noise", "pretrain_seed")
    columns = [readout.cells[name].to_pylist() for name in names_]
    return Counter(
        (task, "" if merged else method, level, seed)
        for task, method, level, seed in zip(*columns, strict=True)
    )


def _failed(readout: Readout, merged: bool) -> set[Square]:
    """The squares with a failed or blocked cell.

    Cells with downstream label noise are left out: the figure counts only clean cells.
    """
    return {
        (row["task"], "" if merged else row["method"], row["noise"], row["seed"])
        for row in readout.problems.to_pylist()
        if row["status"] in ("failed", "blocked") and row["task"] and not row["label_noise"]
    }

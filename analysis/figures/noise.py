"""The figure of a noise audit: which labels each class has after the noise.

Takes counts, or a readout with them, gives a matplotlib figure. Knows nothing of how the noise was
made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from analysis.figures.style import (
    BLANK,
    FAINT,
    INK,
    OVER,
    footnote,
    label_axes,
    new_figure,
    plain,
    subtitle,
)
from analysis.readout import Readout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WRITTEN_OUT = 20  # up to so many classes, every cell shows its percentage

Counts = npt.NDArray[np.int64]


def transition(counts: Counts, classes: Sequence[str], *, title: str, detail: str = "") -> Figure:
    """The realised transition matrix, in percent of each class's rows.

    `counts` [C, C]: rows by clean label, columns by the label trained on. Colours span the
    off-diagonal cells alone, since the much larger diagonal would hide them; it stays without one.
    """
    size = len(classes)
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    percent = 100 * counts / totals
    wrong = np.ma.masked_array(percent, mask=np.eye(size, dtype=bool))
    side = min(4.0 + 0.45 * size, 11.0)
    figure, (axes,) = new_figure(1, 1, width=side + 1.2, height=side)
    top = float(wrong.max()) if size > 1 else 0.0
    image = axes.imshow(wrong, cmap="Blues", vmin=0, vmax=top or 1.0, interpolation="nearest")
    label_axes(axes, title=title, x="label trained on", y="clean label")
    subtitle(axes, detail)
    axes.grid(False)
    if size <= WRITTEN_OUT:
        ticks = [plain(name) for name in classes]
        axes.set_xticks(range(size), ticks, rotation=45, ha="right")
        axes.set_yticks(range(size), ticks)
        for (row, column), value in np.ndenumerate(percent):
            shade = INK if row == column else BLANK if value > 0.6 * top else OVER
            text = f"{value:.1f}"
            axes.text(column, row, text, color=shade, ha="center", va="center", fontsize=8)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("percent of the class's rows", color=FAINT, fontsize=9)
    bar.ax.tick_params(colors=FAINT, labelsize=8)
    footnote(figure, "Diagonal without a colour: labels that are right.")
    return figure


def realised(readout: Readout) -> Figure:
    """The transition matrix at a readout's highest level, with its classes in table order."""
    rows = readout.transition.to_pylist()
    classes = list(dict.fromkeys(row["clean"] for row in rows))
    classes += [
        name for name in dict.fromkeys(r["noisy"] for r in rows) if name not in set(classes)
    ]
    at = {name: number for number, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), np.int64)
    for row in rows:
        counts[at[row["clean"]], at[row["noisy"]]] += row["rows"]
    total = int(counts.sum())
    wrong = total - int(np.trace(counts))
    question = readout.question
    return transition(
        counts,
        classes,
        title=f"{question.corpus}: {question.noise_kind} noise at {rows[0]['level']:g} %",
        detail=f"{wrong:,} of {total:,} training rows are wrong ({100 * wrong / total:.2f} %)",
    )

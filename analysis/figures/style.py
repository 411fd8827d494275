"""How every figure looks: colours, markers, lines, axes; and its PNG and SVG files.

The colours are Okabe and Ito's, which colour-blind readers can distinguish. Each line also has its
own marker and dash, so figures are readable in grey. Uses matplotlib's objects alone and never
pyplot's global state, so figures may be drawn on any thread.
"""

from __future__ import annotations

import io
import itertools
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import wording
from analysis.averages import Average
from analysis.statistics import LEAST_SEEDS, Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

INK = "#1a1a1a"
FAINT = "#5c5c5c"
GRID = "#e3e3e3"
OVER = "#1b1b1b"
"""Ink on a filled square, which has its colour on a dark page too."""
BLANK = "#fefefe"
"""White that stays white on a dark page."""
_LEAST_HEIGHT = 2.6  # inches of a panel on a phone
NARROWEST = 2.0  # points of accuracy that an axis spans at least: less would show chance alone

_SAVING = threading.Lock()  # while a figure is saved, process-wide parameters are changed


@dataclass(frozen=True)
class LineStyle:
    """Colour, marker and dash of a line."""

    colour: str
    marker: str
    dash: Any  # matplotlib's line style


_STYLES = (
    LineStyle("#0072B2", "o", "-"),
    LineStyle("#E69F00", "s", (0, (5, 2))),
    LineStyle("#009E73", "^", (0, (1, 1.3))),
    LineStyle("#D55E00", "D", (0, (6, 1.5, 1, 1.5))),
    LineStyle("#CC79A7", "v", (0, (3, 1, 1, 1, 1, 1))),
    LineStyle("#56B4E9", "P", (0, (8, 2))),
    LineStyle("#000000", "X", (0, (2, 2))),
)
_KNOWN = {"lp": 0, "mlp": 1, "nmtune-paper": 2, "nmtune-released": 3}


def method_styles(methods: Sequence[str]) -> dict[str, LineStyle]:
    """A style for each method; known methods have the same in every experiment."""
    free = [i for i in range(len(_STYLES)) if i not in {_KNOWN.get(m) for m in methods}]
    others = [m for m in methods if m not in _KNOWN]
    chosen = {m: _STYLES[_KNOWN[m]] for m in methods if m in _KNOWN}
    for at, method in enumerate(others):
        chosen[method] = _STYLES[free[at % len(free)]]
    return chosen


_SCALE = ("#00224e", "#2a3f6d", "#575d6d", "#7d7c78", "#a59c74", "#d2c060")  # the middle of cividis


def ordered_styles(count: int) -> list[LineStyle]:
    """Styles for ordered lines, dark to light: the order shows in grey and to the colour-blind."""
    step = (len(_SCALE) - 1) / max(count - 1, 1)
    return [
        LineStyle(_SCALE[round(at * step)], _STYLES[at % len(_STYLES)].marker, _STYLES[at % 5].dash)
        for at in range(count)
    ]


PLAIN = LineStyle("#000000", "o", "-")
"""The style of a single line."""


def line_style(at: int) -> LineStyle:
    """The style of a line that shows no method."""
    return _STYLES[at % len(_STYLES)]


WIDTH = 10.0
"""Inches: the width of a figure on a wide page."""
NARROW = 4.6
"""Inches: the width of a figure on a phone, whose panels stand one below the other."""

_narrow: ContextVar[bool] = ContextVar("narrow", default=False)


@contextmanager
def narrow() -> Iterator[None]:
    """Within it, figures are drawn for a phone: NARROW, with one panel in a row."""
    token = _narrow.set(True)
    try:
        yield
    finally:
        _narrow.reset(token)


def new_figure(
    rows: int, columns: int, *, width: float = WIDTH, height: float = 4.2, **options: Any
) -> tuple[Figure, list[Axes]]:
    """An empty figure of rows x columns panels, and the panels in order.

    `width` and `height` are those of the whole figure, in inches. No figure is narrower than WIDTH:
    the page scales all to one width, and letters should have one size. For a phone (`narrow`) a
    panel keeps its height, and its width is the page's.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    size = (max(width, WIDTH), height)
    if on_phone():
        size = (NARROW, max(height / rows, _LEAST_HEIGHT) * rows * columns)
        rows, columns = rows * columns, 1
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08, wspace=0.03, hspace=0.05)
    figure = Figure(figsize=size, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, [panel for row in panels for panel in row]


def on_phone() -> bool:
    """Whether figures are drawn for a phone."""
    return _narrow.get()


def plain(text: str) -> str:
    """Text with dollar signs escaped, which matplotlib would read as formulas."""
    return text.replace("$", r"\$")


def label_axes(axes: Axes, *, title: str, x: str, y: str) -> None:
    """Give a panel its title, axis labels with units, a light grid and no box."""
    title = plain(_wrapped(axes.figure, title, 10.5))
    # With `y`, matplotlib does not look at every tick again to place the title.
    axes.set_title(title, loc="left", y=1.0, fontsize=10.5, color=INK, fontweight="bold")
    axes.set_xlabel(x, fontsize=9.5, color=INK)
    axes.set_ylabel(y, fontsize=9.5, color=INK)
    axes.grid(True, axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelsize=9, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#9a9a9a")


def subtitle(axes: Axes, text: str) -> None:
    """Write a faint line between a panel and its title."""
    title, text = axes.get_title(loc="left"), _wrapped(axes.figure, text, 8.5)
    pad = 8 + 11 * (text.count("\n") + 1)
    axes.set_title(title, loc="left", y=1.0, pad=pad, fontsize=10.5, color=INK, fontweight="bold")
    axes.annotate(
        plain(text),
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 6),
        textcoords="offset points",
        fontsize=8.5,
        color=FAINT,
    )


def noise_axis(axes: Axes, levels: Sequence[float]) -> None:
    """Set ticks at the noise levels alone, with room at both ends."""
    axes.set_xticks(list(levels), [f"{level:g}" for level in levels])
    room = 0.06 * (max(levels) - min(levels)) or 1.0
    axes.set_xlim(min(levels) - room, max(levels) + room)


def fit(panels: Sequence[Axes], least: float = NARROWEST, top: float | None = None) -> None:
    """Fit the y axis that panels share to their lines, which take a third of its height or more.

    Interval bars of few seeds can be many times as long as the lines differ: these are cut. The
    axis spans at least `least` units, and ends just above `top`.
    """
    curves = [one for axes in panels for one in axes.lines if not _is_bar(one)]
    values = [float(y) for curve in curves for y in np.asarray(curve.get_ydata(), np.float64)]
    if values:
        bottom, ceiling = min(values), max(values)
        room = max(ceiling - bottom, least)
        limits = [axes.get_ylim() for axes in panels]
        low = max(min(each[0] for each in limits), bottom - room)
        high = min(max(each[1] for each in limits), ceiling + room)
        for axes in panels:
            axes.set_ylim(low, high)
    for axes in panels:
        widen(axes, least, top)


def widen(axes: Axes, least: float = NARROWEST, top: float | None = None) -> None:
    """Widen a y axis to at least `least` units, and end it just above `top`."""
    low, high = axes.get_ylim()
    short = least - (high - low)
    if short > 0:
        low, high = low - short / 2, high + short / 2
    if top is not None and high > top:
        room = 0.03 * (top - low)
        low, high = min(low, top - least), top + room
    axes.set_ylim(low, high)


def line(
    axes: Axes,
    found: Average,
    look: LineStyle,
    label: str,
    *,
    shift: float = 0.0,
    digits: int = 1,
) -> None:
    """Draw an average against noise, with interval bars where seeds allow; nothing if empty.

    `digits` are those of a point's value, which the page shows under the pointer.
    """
    points = [(level, found.interval(level)) for level in sorted(found.levels)]
    drawn = [(level, of) for level, of in points if of is not None]
    if not drawn:
        return
    x = [level + shift for level, _ in drawn]
    values = [f"{label} at {level:g} %: {wording.interval(of, digits)}" for level, of in drawn]
    axes.plot(
        x,
        [of.mean for _, of in drawn],
        color=look.colour,
        marker=look.marker,
        linestyle=look.dash,
        linewidth=1.8,
        markersize=6,
        markeredgecolor="white",
        markeredgewidth=0.7,
        label=plain(label),
        zorder=3,
        gid=series(label, values),
    )
    for at, (_, of) in zip(x, drawn, strict=True):
        bar(axes, at, of, look, label)


def bar(axes: Axes, at: float, of: Interval, look: LineStyle, label: str) -> None:
    """Draw an interval of a labelled line; nothing where there is none."""
    if of.low is not None and of.high is not None:
        ends, colour = [of.low, of.high], look.colour
        axes.plot([at, at], ends, color=colour, linewidth=1.3, zorder=2, gid=series(label))


SERIES = "series"
SEPARATOR = "\u241f"
"""Between the parts of an id that `series` gives."""


def series(label: str, points: Sequence[str] = ()) -> str:
    """The id of a line in an SVG file: whose it is, and what each of its points says.

    `analysis.report.svg` turns it into what the page's script reads, so that a reader can switch a
    method off and see a point's value.
    """
    return SEPARATOR.join((SERIES, label, *points))


def offsets(levels: Sequence[float], count: int) -> list[float]:
    """Small horizontal offsets, so the interval bars of `count` lines do not overlap."""
    gaps = [b - a for a, b in itertools.pairwise(levels)]
    span = max(levels) - min(levels) if levels else 0.0
    # Within the room that `noise_axis` leaves at both ends.
    step = min(0.07 * min(gaps, default=1.0), 0.08 * (span or 1.0) / max(count, 1))
    return [step * (at - (count - 1) / 2) for at in range(count)]


def legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Write one legend above all panels, with each label once."""
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if not handles:
        return
    labels = [_wrapped(figure, label, 9.5, beside=0.9) for label in handles]
    # A column is as wide as its longest label: some 0.075 inches a letter, 0.75 for the line.
    longest = max(len(part) for label in labels for part in label.split("\n"))
    width = 0.75 + 0.075 * longest
    figure.legend(
        list(handles.values()),
        labels,
        loc="outside upper left",
        ncol=max(1, min(len(handles), 5, int(figure.get_figwidth() / width))),
        frameon=False,
        fontsize=9.5,
        handlelength=3.2,
        labelcolor=INK,
    )


def footnote(figure: Figure, text: str) -> None:
    """Write a faint line under the panels; it says so where a bar is cut."""
    if any(_has_cut_bar(axes) for axes in figure.axes):
        text += " A bar that reaches the edge of its panel is longer than shown."
    text = _wrapped(figure, text, 8.5)
    figure.supxlabel(plain(text), x=0.01, ha="left", fontsize=8.5, color=FAINT)


def _wrapped(figure: Any, text: str, size: float, beside: float = 0.3) -> str:
    """Text in lines that a figure has room for, with `beside` inches kept free.

    A letter is about half as wide as it is high.
    """
    letters = int((figure.get_figwidth() - beside) * 72 / (0.53 * size))
    if not on_phone():
        letters = max(letters, len(text)) if size > 9 else letters
    return "\n".join(
        part for line in text.split("\n") for part in textwrap.wrap(line, max(letters, 12)) or [""]
    )


def _has_cut_bar(axes: Axes) -> bool:
    low, high = axes.get_ylim()
    for bar in filter(_is_bar, axes.lines):
        x, y = (np.asarray(of, np.float64) for of in (bar.get_xdata(), bar.get_ydata()))
        if len(x) == 2 and x[0] == x[1] and (y.min() < low or y.max() > high):
            return True
    return False


def _is_bar(line: Line2D) -> bool:
    """Whether a line has no label of its own: an interval bar, or a rule of the panel."""
    return str(line.get_label()).startswith("_")


def say_empty(axes: Axes, text: str) -> None:
    """Write into an empty panel why it is empty."""
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=FAINT, fontsize=9
    )


def interval_note(averages: Sequence[Average]) -> str:
    """What the bars of a figure are, in one sentence."""
    counts = sorted({len(found.seed_means(level)) for found in averages for level in found.levels})
    if not counts:
        return "Nothing finished yet."
    if counts == [1]:
        return "One pre-training seed: no interval."
    if counts[-1] < LEAST_SEEDS:
        return f"{counts[-1]} pre-training seeds: no interval of fewer than {LEAST_SEEDS}."
    if len(counts) == 1:
        return f"Bars: 95 % t interval over {counts[0]} pre-training seeds."
    return f"Bars: 95 % t interval over {counts[0]} to {counts[-1]} pre-training seeds" + (
        f"; a point of fewer than {LEAST_SEEDS} has none." if counts[0] < LEAST_SEEDS else "."
    )


def replicates_note(seeds: int) -> str:
    """The same where every value is over all pre-training seeds."""
    if seeds < LEAST_SEEDS:
        return "One seed: no interval." if seeds == 1 else f"{seeds} seeds: no interval."
    return f"Bars: 95 % t interval over {seeds} seeds."


def save(figure: Figure, kind: str) -> bytes:
    """The figure as "png" (150 dpi) or "svg" bytes; equal figures give equal bytes.

    Nothing may be added to the figure afterwards: its layout is fixed then.
    """
    import matplotlib

    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    with _SAVING, matplotlib.rc_context({"svg.hashsalt": "nml-orch"}):
        if (layout := figure.get_layout_engine()) is not None:
            # One layout for both files: they agree. `savefig` would draw once more for its own.
            layout.execute(figure)
            figure.set_layout_engine(None)
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()

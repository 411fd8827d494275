"""Figures of downstream accuracy: by noise, task by task, and by share of the training rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from analysis import wording
from analysis.averages import Average
from analysis.figures import overlay, style
from analysis.readout import Readout
from analysis.schemas import OWN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOISE = "Pre-training noise (%)"
_FEW, _COLUMNS = 9, 4  # up to 9 panels stand three in a row, more of them four


def against_noise(readout: Readout, measure: str = OWN) -> Figure:
    """Mean over the tasks of each domain against noise, one line for each method.

    `measure` is "test_metric" (each task's own), "test_accuracy" or "test_macro_f1".
    """
    domains = readout.domains()
    figure, panels = style.new_figure(1, max(len(domains), 1), width=5.2 * len(domains))
    everything: list[Average] = []
    for axes, domain in zip(panels, domains, strict=False):
        found = {m: readout.scores(domain, m, measure) for m in readout.methods()}
        members = {a.members for a in found.values() if a.levels}
        over = (
            wording.mean_of(next(iter(members)))
            if len(members) == 1
            else "means over each method's finished tasks"
        )
        style.label_axes(
            axes, title=wording.domain(domain), x=NOISE, y=_axis(readout, domain, measure)
        )
        overlay.published(axes, readout, domain, measure, style.method_styles(readout.methods()))
        _lines(axes, readout, found)
        style.subtitle(axes, over)
        everything += found.values()
    if not domains:
        style.label_axes(panels[0], title="", x=NOISE, y="")
        style.say_empty(panels[0], "no finished cell yet")
    style.legend(figure, panels)
    style.footnote(figure, f"{style.interval_note(everything)} {_share(readout)}")
    return figure


def _axis(readout: Readout, domain: str, measure: str = OWN) -> str:
    if measure == "test_macro_f1":
        return "Test macro F1 (%)"
    own = {} if measure == "test_accuracy" else readout.metrics(domain)
    return f"Test {wording.score_in_short(own)}"


def by_task(readout: Readout) -> Figure:
    """Each task's own metric against noise: a panel for each task, a line for each method."""
    tasks = _tasks(readout)
    metrics = dict(
        zip(readout.cells["task"].to_pylist(), readout.cells["metric"].to_pylist(), strict=True)
    )
    columns = 3 if len(tasks) <= _FEW else _COLUMNS
    columns = 2 if len(tasks) == 4 else min(columns, max(len(tasks), 1))
    rows = math.ceil(max(len(tasks), 1) / columns)
    figure, panels = style.new_figure(rows, columns, width=3.5 * columns, height=0.8 + 2.7 * rows)
    everything: list[Average] = []
    for axes, (domain, task) in zip(panels, tasks, strict=False):
        found = {m: readout.scores(domain, m, task=task) for m in readout.methods()}
        title = f"{task} ({domain.upper()})"
        style.label_axes(axes, title=title, x=NOISE, y=wording.metric_with_unit(metrics[task]))
        _lines(axes, readout, found)
        everything += found.values()
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    style.legend(figure, panels)
    style.footnote(
        figure, f"{style.interval_note(everything)} {_share(readout)} Scales differ between panels."
    )
    return figure


def by_fraction(readout: Readout) -> Figure:
    """Mean accuracy against the share of training rows, by domain (rows) and noise level."""
    domains, levels = readout.domains(), readout.levels
    fractions = sorted(readout.question.fractions)
    figure, panels = style.new_figure(
        len(domains),
        len(levels),
        width=2.5 * len(levels),
        height=0.9 + 2.9 * len(domains),
        sharey="row",
    )
    everything: list[Average] = []
    methods = readout.methods()
    for row, domain in enumerate(domains):
        for method, look in style.method_styles(methods).items():
            found = {f: readout.scores(domain, method, fraction=f) for f in fractions}
            everything += found.values()
            for column, level in enumerate(levels):
                axes = panels[row * len(levels) + column]
                _by_share(axes, found, level, look, wording.method(method))
        for column, level in enumerate(levels):
            axes = panels[row * len(levels) + column]
            last, first = row == len(domains) - 1, column == 0
            style.label_axes(
                axes,
                title=f"{domain.upper()}, {wording.percent(level)} noise",
                x="Training rows used (%)" if last else "",
                y=_axis(readout, domain) if first else "",
            )
            axes.set_xscale("log")
            axes.set_xticks(fractions, [f"{f:g}" for f in fractions])
            axes.minorticks_off()
            axes.margins(x=0.15)
        style.fit(panels[row * len(levels) : (row + 1) * len(levels)], top=100.0)
    style.legend(figure, panels)
    style.footnote(figure, style.interval_note(everything))
    return figure


def _by_share(
    axes: Axes, found: dict[float, Average], level: float, look: style.LineStyle, label: str
) -> None:
    points = [(fraction, of.interval(level)) for fraction, of in found.items()]
    drawn = [(fraction, of) for fraction, of in points if of is not None]
    if not drawn:
        return
    values = [f"{label} on {f:g} % of the rows: {wording.interval(of)}" for f, of in drawn]
    axes.plot(
        [fraction for fraction, _ in drawn],
        [of.mean for _, of in drawn],
        color=look.colour,
        marker=look.marker,
        linestyle=look.dash,
        markersize=5,
        linewidth=1.6,
        label=style.plain(label),
        gid=style.series(label, values),
    )
    for fraction, of in drawn:
        style.bar(axes, fraction, of, look, label)


def _lines(axes: Axes, readout: Readout, found: dict[str, Average]) -> None:
    levels = readout.levels
    chosen = style.method_styles(list(found))
    moves = style.offsets(levels, len(found))
    for (method, average), shift in zip(found.items(), moves, strict=True):
        style.line(axes, average, chosen[method], wording.method(method), shift=shift)
    style.noise_axis(axes, levels)
    style.fit([axes], top=100.0)


def _tasks(readout: Readout) -> list[tuple[str, str]]:
    """(domain, task) of the finished cells: ID first, in the experiment's order."""
    domains, tasks = readout.cells["domain"].to_pylist(), readout.cells["task"].to_pylist()
    found = set(zip(domains, tasks, strict=True))
    asked = [(d, t) for d in ("id", "ood") for t in readout.question.tasks(d)]
    return [pair for pair in asked if pair in found] + sorted(found - set(asked))


def _share(readout: Readout) -> str:
    return f"Heads trained on {wording.rows_used(readout.fraction)}."

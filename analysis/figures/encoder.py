"""Figures of the encoder: its feature space, its pre-training, what it memorised."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from analysis import wording
from analysis.averages import Average
from analysis.figures import style
from analysis.figures.accuracy import NOISE
from analysis.readout import Readout
from analysis.schemas import PREPROCESSING, VALIDATION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SPACE = {
    "sve": "SVE: singular value entropy (nats)",
    "lsvr": "LSVR: −log share of the largest (nats)",
}
_MEMORY = ("train_accuracy_clean", "train_accuracy_flipped")
_COLUMNS = 5


def feature_space(readout: Readout) -> Figure:
    """SVE and LSVR of the test features against noise, by domain of the data sets."""
    figure, panels = style.new_figure(1, 2, height=4.0)
    everything: list[Average] = []
    for axes, (measure, label) in zip(panels, _SPACE.items(), strict=True):
        style.label_axes(axes, title=measure.upper(), x=NOISE, y=label)
        for at, domain in enumerate(("id", "ood")):
            found = readout.feature_space(measure, domain=domain)
            if found.levels:
                text = f"{domain.upper()} ({wording.mean_of(found.members, 'data set')})"
                shift = style.offsets(readout.levels, 2)[at]
                style.line(axes, found, style.line_style(3 * at), text, shift=shift, digits=2)
                everything.append(found)
        style.noise_axis(axes, readout.levels)
        style.fit([axes], least=0.05)
    style.legend(figure, panels)
    style.footnote(
        figure, f"{style.interval_note(everything)} Preprocessing: {PREPROCESSING}; test parts."
    )
    return figure


def pretraining(readout: Readout) -> Figure:
    """Validation of the encoders, and training accuracy on clean and flipped samples."""
    figure, panels = style.new_figure(1, 2, height=4.0)
    validation = {measure: readout.pretraining_average(measure) for measure in VALIDATION}
    retrieves = any(validation[measure].levels for measure in VALIDATION[1:])
    title = "Held-out pairs, clean captions" if retrieves else "Held-out samples, clean labels"
    y = "Accuracy or R@1 (%)" if retrieves else "Accuracy (%)"
    style.label_axes(panels[0], title=title, x=NOISE, y=y)
    held_out = zip(VALIDATION, ("Validation", "Image to text", "Text to image"), strict=True)
    for at, (measure, label) in enumerate(held_out):
        if validation[measure].levels:
            look = style.line_style(at) if at else style.PLAIN
            style.line(panels[0], validation[measure], look, label)
    memory = {measure: readout.pretraining_average(measure) for measure in _MEMORY}
    style.label_axes(panels[1], title="Training samples, last epoch", x=NOISE, y="Accuracy (%)")
    for at, (measure, label) in enumerate(zip(_MEMORY, _labels(readout), strict=True)):
        style.line(panels[1], memory[measure], style.line_style(3 * at), label)
    if not any(found.levels for found in memory.values()):
        style.say_empty(panels[1], "not recorded by this objective")
    for axes in panels:
        style.noise_axis(axes, readout.levels)
    style.fit([panels[0]], top=100.0)
    panels[1].set_ylim(-3, 103)
    style.legend(figure, panels)
    style.footnote(figure, style.interval_note([*validation.values(), *memory.values()]))
    return figure


def memorisation(readout: Readout) -> Figure:
    """Training accuracy on clean and flipped samples by epoch: a panel for each noise level."""
    from matplotlib.ticker import MaxNLocator

    curves = _curves(readout)
    levels = sorted({level for level, _, _ in curves})
    columns = min(_COLUMNS, max(len(levels), 1))
    rows = math.ceil(max(len(levels), 1) / columns)
    figure, panels = style.new_figure(
        rows, columns, width=2.4 * columns, height=0.9 + 2.7 * rows, sharey=True
    )
    for at, (axes, level) in enumerate(zip(panels, levels, strict=False)):
        first = at % columns == 0
        title = f"{wording.percent(level)} noise"
        style.label_axes(axes, title=title, x="Epoch", y="Training accuracy (%)" if first else "")
        for which, (metric, label) in enumerate(zip(_MEMORY, _labels(readout), strict=True)):
            _mean_curve(axes, curves, level, metric, style.line_style(3 * which), label)
        axes.set_ylim(-3, 103)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in panels[len(levels) :]:
        axes.set_axis_off()
    seeds = len({seed for _, seed, _ in curves})
    style.legend(figure, panels)
    style.footnote(
        figure,
        "One pre-training seed."
        if seeds == 1
        else f"Thick: mean of {wording.count(seeds, 'pre-training seed')}; thin: each of them.",
    )
    return figure


def has_memorisation(readout: Readout) -> bool:
    """Whether any run has the curves that `memorisation` draws."""
    return bool(_curves(readout))


def _labels(readout: Readout) -> tuple[str, str]:
    return (
        "Samples left clean",
        f"Flipped samples, on their wrong {wording.label_word(readout.question.noise_kind)}s",
    )


Curves = dict[tuple[float, int, str], list[tuple[int, float]]]


def _curves(readout: Readout) -> Curves:
    """(level, seed, metric) -> (epoch, value) in order, for clean and flipped samples."""
    found: Curves = {}
    row: dict[str, Any]
    for row in readout.pretraining_curves.to_pylist():
        metric = row["metric"].rsplit("/", 1)[-1]
        if metric in _MEMORY:
            key = (row["noise"], row["seed"], metric)
            found.setdefault(key, []).append((row["step"], row["value"]))
    return {key: sorted(points) for key, points in found.items()}


def _mean_curve(
    axes: Axes, curves: Curves, level: float, metric: str, look: style.LineStyle, label: str
) -> None:
    """The mean over seeds at the epochs that all have reached, and each seed as a thin line."""
    of_level = [points for (at, _, name), points in curves.items() if (at, name) == (level, metric)]
    if not of_level:
        return
    if len(of_level) > 1:
        for points in of_level:
            epochs, values = zip(*points, strict=True)
            axes.plot(epochs, values, color=look.colour, linewidth=0.7, alpha=0.45)
    by_epoch = [dict(points) for points in of_level]
    shared = sorted(set.intersection(*(set(points) for points in by_epoch)))
    axes.plot(
        shared,
        [math.fsum(points[epoch] for points in by_epoch) / len(by_epoch) for epoch in shared],
        color=look.colour,
        linestyle=look.dash,
        linewidth=1.9,
        marker=look.marker,
        markersize=4.5,
        markevery=max(len(shared) // 6, 1),
        label=style.plain(label),
    )

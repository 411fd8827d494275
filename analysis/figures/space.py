"""Figures of the feature space: singular values, space against scores, rotation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from analysis import wording
from analysis.figures import style
from analysis.figures.accuracy import NOISE
from analysis.readout import Readout
from analysis.schemas import PREPROCESSING
from analysis.statistics import pearson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_MOST_SETS = 9  # data sets whose spectra are drawn; the store has all
_PAIRS = (
    ("sve", "id", "SVE of ID test features (nats)"),
    ("lsvr", "ood", "LSVR of OOD test features (nats)"),
)


def spectra(readout: Readout) -> Figure:
    """Each singular value's share of their sum: a panel for each data set, a line by level."""
    shares = _shares(readout)
    pairs = sorted({key[:2] for key in shares}, reverse=True)
    domain_of = {images: domain for domain, images in pairs}  # "id" where it is both
    sets = sorted((domain, images) for images, domain in domain_of.items())[:_MOST_SETS]
    columns = min(_COLUMNS, max(len(sets), 1))
    rows = math.ceil(max(len(sets), 1) / columns)
    size = {"width": 3.5 * columns, "height": 0.9 + 2.9 * rows}
    figure, panels = style.new_figure(rows, columns, **size)
    levels = sorted({level for _, _, level in shares})
    for axes, (domain, images) in zip(panels, sets, strict=False):
        style.label_axes(
            axes, title=f"{images} ({domain.upper()})", x="Rank", y="Share of the sum (%)"
        )
        for level, look in zip(levels, style.ordered_styles(len(levels)), strict=True):
            values = shares.get((domain, images, level))
            if values is not None:
                axes.plot(
                    range(1, len(values) + 1),
                    100 * values,
                    color=look.colour,
                    linestyle=look.dash,
                    linewidth=1.6,
                    label=f"{wording.percent(level)} noise",
                )
        axes.set_xscale("log")
        axes.set_yscale("log")
        _plain_ticks(axes)
    for axes in panels[len(sets) :]:
        axes.set_axis_off()
    style.legend(figure, panels)
    count = wording.count(
        len(set(readout.spectra["pretrain_seed"].to_pylist())), "pre-training seed"
    )
    style.footnote(figure, f"Mean over {count}. Preprocessing: {PREPROCESSING}; test parts.")
    return figure


Shares = dict[tuple[str, str, float], Any]


def _shares(readout: Readout) -> Shares:
    """(domain, images, level) -> mean over seeds of sigma_i / sum sigma, while all are above 0."""
    where = (pc.field("part") == "test") & (pc.field("preprocessing") == PREPROCESSING)
    found: dict[tuple[str, str, float], list[Any]] = {}
    for row in readout.spectra.filter(where).to_pylist():
        values = np.array(row["singular_values"] or [], np.float64)
        values = values[values > 0]
        if len(values):
            key = (row["domain"], row["images"], row["noise"])
            found.setdefault(key, []).append(values / values.sum())
    return {
        key: np.mean([one[: min(map(len, several))] for one in several], axis=0)
        for key, several in found.items()
    }


def _plain_ticks(axes: Axes) -> None:
    """Write ticks as 1, 10, 100 and 0.1 instead of powers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def against_scores(readout: Readout) -> Figure:
    """SVE against ID scores and LSVR against OOD scores: a point for each encoder."""
    method = readout.probe()
    figure, panels = style.new_figure(1, 2, height=4.4)
    looks = dict(zip(readout.levels, style.ordered_styles(len(readout.levels)), strict=True))
    for axes, (measure, domain, label) in zip(panels, _PAIRS, strict=True):
        metrics = readout.metrics(domain)
        title = f"{measure.upper()} against {domain.upper()} {wording.score_name(metrics)}"
        style.label_axes(
            axes,
            title=title,
            x=label,
            y=f"{domain.upper()} test {wording.score_in_short(metrics)}",
        )
        space = readout.feature_space(measure, domain=domain)
        scores = readout.scores(domain, method)
        points = {
            (level, seed): (x, scores.seed_means(level)[seed])
            for level in sorted(space.levels)
            for seed, x in space.seed_means(level).items()
            if seed in scores.seed_means(level)
        }
        if not points:
            style.say_empty(axes, "not measured")
            continue
        _scatter(axes, points, looks)
        r = pearson([x for x, _ in points.values()], [y for _, y in points.values()])
        style.subtitle(axes, f"{wording.correlation(r)}, {wording.count(len(points), 'encoder')}")
    style.legend(figure, panels)
    style.footnote(
        figure,
        f"A point is one encoder ({wording.method(method)}; {PREPROCESSING} preprocessing); thin "
        "lines join the noise levels of a seed. Points that differ in noise are not independent.",
    )
    return figure


def _scatter(
    axes: Axes,
    points: dict[tuple[float, int], tuple[float, float]],
    looks: dict[float, style.LineStyle],
) -> None:
    for seed in sorted({seed for _, seed in points}):
        line = [points[key] for key in sorted(points) if key[1] == seed]
        axes.plot(*zip(*line, strict=True), color=style.GRID, linewidth=1.0, zorder=1)
    for level in sorted({level for level, _ in points}):
        of_level = [point for (at, _), point in sorted(points.items()) if at == level]
        axes.plot(
            *zip(*of_level, strict=True),
            color=looks[level].colour,
            marker=looks[level].marker,
            markeredgecolor=style.INK,
            markeredgewidth=0.6,
            markersize=7,
            linestyle="none",
            label=f"{wording.percent(level)} noise",
            zorder=3,
        )
    axes.margins(0.08)


def rotation(readout: Readout) -> Figure:
    """How similar the feature space is to the clean encoder's, by noise level."""
    figure, panels = style.new_figure(1, 2, height=4.0)
    measures = (
        ("overlap", "Top subspaces", "Mean cos² of the principal angles"),
        ("cka", "Whole space", "Linear CKA"),
    )
    everything = []
    for axes, (measure, title, label) in zip(panels, measures, strict=True):
        style.label_axes(axes, title=title, x=NOISE, y=label)
        for at, domain in enumerate(("id", "ood")):
            found = readout.feature_rotation(measure, domain)
            if found.levels:
                text = f"{domain.upper()} ({wording.mean_of(found.members, 'data set')})"
                style.line(axes, found, style.line_style(3 * at), text, digits=2)
                everything.append(found)
        style.noise_axis(axes, [level for level in readout.levels if level > 0] or [0.0])
        axes.set_ylim(-0.02, 1.02)
    style.legend(figure, panels)
    ks: Sequence[int] = sorted(set(readout.rotation["k"].to_pylist()))
    rows: Sequence[int] = sorted(set(readout.rotation["rows"].to_pylist()))
    style.footnote(
        figure,
        f"{style.interval_note(everything)} Against the clean encoder of the same seed; 1 means "
        "the same. "
        f"Top {wording.join([str(k) for k in ks])} directions over "
        f"{wording.join([f'{n:,}' for n in rows])} test samples.",
    )
    return figure

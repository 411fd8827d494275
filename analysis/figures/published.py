"""The figure of the published curves beside the experiment's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis import wording
from analysis.averages import Average
from analysis.claims import published
from analysis.figures import style
from analysis.figures.accuracy import NOISE
from analysis.readout import Readout

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKS = {"lp": "o", "nmtune": "^"}
_DASHES = {"ImageNet-1K": (0, (1, 1)), "YFCC15M": (0, (4, 2))}
_GREY = "#6e6e6e"


def against_published(readout: Readout) -> Figure:
    """Change from clean against noise: own methods with intervals, the papers' in grey.

    Accuracies themselves would not be comparable: corpora, encoders and tasks differ in difficulty.
    """
    domains = readout.domains()
    figure, panels = style.new_figure(1, max(len(domains), 1), width=5.2 * len(domains))
    methods = [m for m in (readout.probe(), *readout.nmtune_variants()) if m in readout.methods()]
    looks = style.method_styles(methods)
    levels = sorted({*readout.levels, 0.0, 5.0, 10.0, 20.0, 30.0})
    for axes, domain in zip(panels, domains, strict=False):
        style.label_axes(
            axes, title=wording.domain(domain), x=NOISE, y="Change from clean (points)"
        )
        for method, shift in zip(methods, style.offsets(levels, len(methods)), strict=True):
            _own(axes, readout.scores(domain, method), looks[method], wording.method(method), shift)
        for one in published.curves(domain):
            _theirs(axes, one.levels, one)
        axes.axhline(0, color=style.INK, linewidth=0.8)
        style.noise_axis(axes, levels)
        style.fit([axes])
    style.legend(figure, panels)
    style.footnote(
        figure,
        "Grey and hollow: published, one run each, other corpora, encoders and tasks "
        f"(arXiv:2309.17002v2, Figure 1). {style.replicates_note(len(readout.seeds()))}",
    )
    return figure


def _own(axes: Axes, found: Average, look: style.LineStyle, label: str, shift: float) -> None:
    changes = {level: found.change(level) for level in sorted(found.levels) if level > 0}
    drawn = {level: one.interval for level, one in changes.items() if one is not None}
    if not drawn:
        return
    x = [0.0, *(level + shift for level in drawn)]
    values = [
        f"{label} at {level:g} %: {wording.interval(of, sign=True)}" for level, of in drawn.items()
    ]
    values.insert(0, f"{label}, clean: 0.0")
    axes.plot(
        x,
        [0.0, *(of.mean for of in drawn.values())],
        color=look.colour,
        marker=look.marker,
        linestyle=look.dash,
        linewidth=1.8,
        markersize=6,
        label=f"{label}, here",
        zorder=3,
        gid=style.series(label, values),
    )
    for at, of in zip(x[1:], drawn.values(), strict=True):
        style.bar(axes, at, of, look, label)


def _theirs(axes: Axes, levels: Mapping[float, float], one: published.Series) -> None:
    x = sorted(levels)
    axes.plot(
        x,
        [levels[level] - levels[0.0] for level in x],
        color=_GREY,
        marker=_MARKS.get(one.method, "s"),
        markerfacecolor="white",
        linestyle=_DASHES.get(one.corpus, "-"),
        linewidth=1.2,
        markersize=5,
        label=f"{wording.method(one.method)}, {one.corpus}",
        zorder=2,
    )

"""The figure of NMTune's ablation: scores with fewer regularisers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis import wording
from analysis.averages import Term, contrast
from analysis.figures import style
from analysis.readout import Readout
from analysis.schemas import REGULARISERS
from analysis.statistics import Interval, mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def families(readout: Readout) -> dict[str, list[str]]:
    """Full NMTune -> the methods with its head and fewer regularisers, those with most first."""
    found: dict[str, list[str]] = {}
    for variant in readout.nmtune_variants():
        if not readout.regularisers(variant):
            continue
        head = readout.head(variant)
        less = [
            method
            for method in readout.methods()
            if method != variant
            and readout.head(method) == head
            and len(readout.regularisers(method)) < len(REGULARISERS)
        ]
        if any(readout.regularisers(method) for method in less):
            found[variant] = sorted(
                less, key=lambda m: (-len(readout.regularisers(m)), _order(readout, m))
            )
    return found


def _order(readout: Readout, method: str) -> list[int]:
    return [
        REGULARISERS.index(term) for term in REGULARISERS if term in readout.regularisers(method)
    ]


def ablation(readout: Readout) -> Figure:
    """Scores with fewer regularisers minus those of full NMTune, over tasks and levels."""
    found = families(readout)
    domains = readout.domains()
    rows = max(map(len, found.values()), default=1)
    figure, panels = style.new_figure(
        len(found),
        len(domains),
        width=5.4 * len(domains),
        height=1.6 + 0.42 * rows * len(found),
    )
    at = iter(panels)
    for variant, less in found.items():
        for domain in domains:
            axes = next(at)
            style.label_axes(
                axes,
                title=f"{wording.method(variant)}, {domain.upper()}",
                x=f"{_score(readout, domain)} minus that of full NMTune (points)",
                y="",
            )
            drawn = {m: _difference(readout, domain, m, variant) for m in less}
            _rows(axes, readout, drawn)
    style.footnote(
        figure,
        "Mean over tasks and noise levels, paired; left of the line: worse than with all three. "
        + style.replicates_note(len(readout.seeds())),
    )
    return figure


def _score(readout: Readout, domain: str) -> str:
    return wording.capitalised(wording.score_name(readout.metrics(domain)))


def _rows(axes: Axes, readout: Readout, drawn: dict[str, Interval | None]) -> None:
    for row, of in enumerate(drawn.values()):
        if of is None:
            axes.text(0, row, " not finished", va="center", fontsize=8.5, color=style.FAINT)
            continue
        look = style.line_style(0)
        if of.low is not None and of.high is not None:
            axes.plot([of.low, of.high], [row, row], color=look.colour, linewidth=1.6)
        axes.plot([of.mean], [row], color=look.colour, marker=look.marker, markersize=7)
    axes.axvline(0, color=style.INK, linewidth=1.0)
    labels = [_terms(readout, method) for method in drawn]
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(True, axis="x", color=style.GRID, linewidth=0.8)
    axes.grid(False, axis="y")


def _terms(readout: Readout, method: str) -> str:
    terms = [term.upper() for term in REGULARISERS if term in readout.regularisers(method)]
    return " + ".join(terms) or f"none ({wording.method(method)})"


def _difference(readout: Readout, domain: str, method: str, full: str) -> Interval | None:
    ours, theirs = readout.scores(domain, method), readout.scores(domain, full)
    levels = sorted(ours.levels.keys() & theirs.levels.keys())
    found = contrast(
        Term(sign / len(levels), average, level)
        for sign, average in ((1, ours), (-1, theirs))
        for level in levels
    )
    return None if found is None else mean_interval(list(found.values.values()))

"""The published curves over the experiment's own, where corpus, encoder and method are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis import wording
from analysis.claims import published as papers
from analysis.figures import style
from analysis.readout import Readout

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def published(
    axes: Axes, readout: Readout, domain: str, measure: str, looks: Mapping[str, style.LineStyle]
) -> None:
    """Draw the published curves of the same corpus, encoder and methods into a panel."""
    for method, look in looks.items():
        for one in papers.curves(domain, measure):
            if papers.matches(one, readout.question, method):
                x = sorted(one.levels)
                axes.plot(
                    x,
                    [one.levels[level] for level in x],
                    color=look.colour,
                    marker=look.marker,
                    markerfacecolor="white",
                    linestyle=(0, (1, 2)),
                    linewidth=1.2,
                    markersize=6,
                    label=f"{wording.method(method)}, published",
                    zorder=2,
                )

"""The figure of accuracy against downstream label noise: a panel for each kind of encoder."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from analysis import downstream_noise, wording
from analysis.averages import Average
from analysis.figures import style
from analysis.readout import Readout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 5  # panels in a row


def against_label_noise(readout: Readout) -> Figure:
    """Mean test accuracy against the share of wrong training labels, one line a method.

    Each domain begins a row of its own.
    """
    domains, sources = downstream_noise.domains(readout), downstream_noise.sources(readout)
    columns = min(_COLUMNS, len(sources))
    each = math.ceil(len(sources) / columns)  # rows a domain
    rows = each * len(domains)
    figure, panels = style.sheet(rows, columns, width=3.3 * columns, height=0.9 + 2.8 * rows)
    places = {
        panels[at * each * columns + column]: (domain, source)
        for at, domain in enumerate(domains)
        for column, source in enumerate(sources)
    }
    looks = style.looks(readout.methods())
    levels = downstream_noise.levels(readout)
    moves = dict(zip(looks, style.shifts(levels, len(looks)), strict=True))
    everything: list[Average] = []
    for axes, (domain, source) in places.items():
        style.dress(
            axes,
            title=f"{domain.upper()}, {source.title}",
            x="Wrong training labels (%)",
            y="Test accuracy (%)",
        )
        for method, found in downstream_noise.averages(readout, source, domain):
            style.line(axes, found, looks[method], wording.method(method), shift=moves[method])
            everything.append(found)
        style.noise_axis(axes, levels)
        style.widen(axes, top=100.0)
    for axes in panels:
        if axes not in places:
            axes.set_axis_off()
    style.legend(figure, panels)
    share = f"Heads trained on {wording.rows_used(readout.fraction)}."
    style.note(figure, f"{style.certainty(everything)} {share} Each panel has its scale.")
    return figure

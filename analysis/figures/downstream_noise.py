"""The figure of scores against downstream label noise: a panel for each source of encoders."""

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
    """Mean test scores against downstream label noise, one line for each method.

    Each task has its own metric. Each domain begins a row of panels.
    """
    domains, sources = downstream_noise.domains(readout), downstream_noise.sources(readout)
    columns = min(_COLUMNS, len(sources))
    rows_each = math.ceil(len(sources) / columns)  # rows for each domain
    rows = rows_each * len(domains)
    figure, panels = style.new_figure(rows, columns, width=3.3 * columns, height=0.9 + 2.8 * rows)
    used = {
        panels[at * rows_each * columns + column]: (domain, source)
        for at, domain in enumerate(domains)
        for column, source in enumerate(sources)
    }
    looks = style.method_styles(readout.methods())
    levels = downstream_noise.levels(readout)
    moves = dict(zip(looks, style.offsets(levels, len(looks)), strict=True))
    everything: list[Average] = []
    for axes, (domain, source) in used.items():
        style.label_axes(
            axes,
            title=f"{domain.upper()}, {source.title}",
            x="Downstream label noise (%)",
            y=f"Test {wording.score_in_short(downstream_noise.metrics(readout, domain))}",
        )
        for method, found in downstream_noise.averages(readout, source, domain):
            style.line(axes, found, looks[method], wording.method(method), shift=moves[method])
            everything.append(found)
        style.noise_axis(axes, levels)
        style.fit([axes], top=100.0)
    for axes in panels:
        if axes not in used:
            axes.set_axis_off()
    style.legend(figure, panels)
    share = f"Heads trained on {wording.rows_used(readout.fraction)}."
    style.footnote(
        figure, f"{style.interval_note(everything)} {share} Scales differ between panels."
    )
    return figure

"""The report's tables of downstream label noise: scores by the share of changed labels.

Takes a `Readout`, gives tables for the page and for the texts; the numbers are
`analysis.downstream_noise`'s.
"""

from __future__ import annotations

from analysis import wording
from analysis.averages import Average
from analysis.downstream_noise import averages, domains, levels, metrics, sources
from analysis.readout import Readout
from analysis.report.html import Cell, Table


def scores(readout: Readout) -> dict[str, Table]:
    """Domain -> test scores by downstream label noise; empty without such cells."""
    asked = levels(readout)
    found = {domain: _table(readout, domain, asked) for domain in domains(readout)}
    return {domain: table for domain, table in found.items() if table is not None}


def _table(readout: Readout, domain: str, asked: tuple[float, ...]) -> Table | None:
    lines: list[list[Cell | str]] = []
    members: set[tuple[str, ...]] = set()
    for source in sources(readout):
        for method, found in averages(readout, source, domain):
            members.add(found.members)
            cells = [_cell(found, level) for level in asked]
            lines.append([source.title, wording.method(method), *cells])
    if not lines:
        return None
    over = wording.mean_of(next(iter(members))) if len(members) == 1 else "each over its own tasks"
    return Table(
        ["Encoder", "Method", *(f"{wording.percent(level)} label noise" for level in asked)],
        lines,
        caption=f"{wording.domain(domain)}: test {wording.score(metrics(readout, domain))} in "
        f"percent by downstream label noise, the share of the task's training labels that were "
        f"changed ({over}); below it the change from no label noise in points; no other average "
        f"has these cells",
        numbers=len(asked),
    )


def _cell(found: Average, level: float) -> Cell:
    of = found.interval(level)
    if of is None:
        return Cell("–", mark="gap")
    under = []
    if of.low is not None and of.high is not None:
        under.append(f"[{wording.number(of.low)}, {wording.number(of.high)}]")
    change = found.change(level) if level else None
    if change is not None:
        under.append(f"Δ {wording.interval(change.interval, sign=True)}")
    return Cell(wording.number(of.mean), tuple(under), of.mean)

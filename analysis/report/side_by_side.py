"""The page of two sweeps side by side, and its numbers as CSV.

Takes two sides, what differs in their settings and how their finished steps differ; gives one
document in the style of the report, which loads nothing from outside itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from analysis import wording
from analysis.claims.claims import verdicts
from analysis.claims.verdicts import Verdict
from analysis.figures import style
from analysis.figures.draw import draw
from analysis.readout import Readout
from analysis.report import svg
from analysis.report.answer import answer
from analysis.report.facts import assurance, facts
from analysis.report.html import NOTHING, Cell, read, render, table
from analysis.report.verdicts import MARKS, shown
from analysis.side_by_side import Row, SideBySide
from analysis.statistics import LEAST_SEEDS, Interval

COLUMNS = (
    *("domain", "method", "noise"),
    *(f"{name}_{side}" for side in "ab" for name in ("mean", "low", "high", "seeds")),
    *("difference", "difference_low", "difference_high", "paired_seeds"),
)
"""The columns of comparison.csv: a line for each domain, method and noise level.

`_a` and `_b` are means over the shared tasks, with 95 % t intervals over pre-training seeds; the
difference is B minus A, over the seeds that both have.
"""


@dataclass(frozen=True)
class Side:
    """One of the two sweeps, whole: its own answer and claims are of all its tasks."""

    letter: str  # A or B
    name: str  # as the command line named it
    readout: Readout
    where: str  # its store


@dataclass(frozen=True)
class Setting:
    """A field that differs, with its values in words."""

    path: str
    first: str
    second: str
    steps: int | None = None  # in how many finished steps; None: of the experiment file


def page(sides: tuple[Side, Side], found: SideBySide, settings: Sequence[Setting]) -> str:
    """The HTML document."""
    first, second = sides
    title = f"{first.name} and {second.name}, side by side"
    judged = [verdicts(side.readout) for side in sides]
    document = render(
        "side_by_side.html",
        style=Markup(read("style.css")),
        script=Markup(read("page.js")),
        title=title,
        sides=[
            {
                "letter": side.letter,
                "title": side.readout.question.title or side.readout.experiment,
                "answer": answer(side.readout).replace(" %", "\u00a0%"),
                "certainty": assurance(side.readout),
                "facts": [*facts(side.readout), side.where],
                "figure": figure,
            }
            for side, figure in zip(sides, _figures(sides), strict=True)
        ],
        averages=_averages(found),
        claims=_claims(judged) if any(shown(side.readout) for side in sides) else NOTHING,
        settings=_settings(settings),
    )
    return str(document)


def _figures(sides: Sequence[Side]) -> list[Markup]:
    """The curve of each side's answer, in the form for a narrow column."""
    with style.narrow():
        drawn = [next(draw(side.readout)) for side in sides]
        files = [(style.save(one.figure, "svg"), one.title) for one in drawn]
    return [Markup(one) for one in svg.elements(files)]


def _averages(found: SideBySide) -> Markup:
    """A row for each domain, method and level: A, B and the difference."""
    rows: list[list[Cell | str]] = [
        [
            row.domain.upper(),
            wording.method(row.method),
            Cell(wording.percent(row.noise), key=row.noise),
            _mean(row.first),
            _mean(row.second),
            _difference(row),
        ]
        for row in found.rows()
    ]
    metric = wording.score({**found.first.metrics(), **found.second.metrics()})
    left_out = f"; left out: {wording.join(found.left_out)}" if found.left_out else ""
    caption = (
        f"Test {metric} in percent, mean over the tasks that both have ({wording.join(found.tasks)}"
        f"{left_out}), then over replicates, with 95 % intervals from {LEAST_SEEDS} replicates on. "
        f"B − A is in points, paired by pre-training seed and not corrected for their number"
    )
    heads = ["Domain", "Method", "Noise", "A", "B", "B − A"]
    return table(heads, rows, caption=caption, numbers=4, filtered=True)


def _mean(of: Interval | None) -> Cell:
    if of is None:
        return Cell("–", mark="gap")
    bracket = wording.interval(of).partition(" ")[2]
    return Cell(wording.number(of.mean), (bracket,) if bracket else (), of.mean)


def _difference(row: Row) -> Cell:
    if row.difference is None:
        shared = row.first is not None and row.second is not None
        return Cell("–", ("no seed in common",) if shared else (), mark="gap")
    of = row.difference.interval
    bracket = wording.interval(of, sign=True).partition(" ")[2]
    under = bracket or wording.count(of.n, "paired seed")
    return Cell(wording.signed(of.mean), (under,), of.mean, "apart" if of.excludes_zero else "")


def _claims(judged: Sequence[Sequence[Verdict]]) -> Markup:
    """Each claim with both verdicts; those that differ first."""
    by_id = [{one.claim.id: one for one in found} for found in judged]
    sentences = {one.claim.id: one.claim.sentence for found in judged for one in found}
    order = sorted(sentences, key=lambda name: len({_word(found.get(name)) for found in by_id}) < 2)
    rows: list[list[Cell | str]] = [
        [sentences[name], *(_verdict(found.get(name)) for found in by_id)] for name in order
    ]
    caption = "The published claims in each sweep, over all its tasks; those that differ first"
    return table(["Claim", "A", "B"], rows, caption=caption) if rows else NOTHING


def _word(one: Verdict | None) -> str:
    if one is None:
        return "not asked"
    return one.words if one.comparisons else "not measured"


def _verdict(one: Verdict | None) -> Cell:
    measured = one is not None and bool(one.comparisons)
    return Cell(_word(one), mark=MARKS[one.decision] if one and measured else "")


def _settings(settings: Sequence[Setting]) -> Markup:
    """What differs in the files, then in how finished steps of one address were made."""
    rows: list[list[Cell | str]] = [
        [
            one.path,
            one.first,
            one.second,
            "the experiment" if one.steps is None else wording.count(one.steps, "finished step"),
        ]
        for one in settings
    ]
    if not rows:
        return NOTHING
    caption = (
        "Fields with two values. Steps are compared where both sweeps have one of the same address"
    )
    return table(["Field", "A", "B", "In"], rows, caption=caption)


def csv_rows(found: SideBySide) -> Iterator[dict[str, Any]]:
    """The rows of comparison.csv."""
    for row in found.rows():
        line: dict[str, Any] = dict.fromkeys(COLUMNS)
        line |= {"domain": row.domain, "method": row.method, "noise": row.noise}
        for side, of in (("a", row.first), ("b", row.second)):
            if of is not None:
                numbers = {"mean": of.mean, "low": of.low, "high": of.high, "seeds": of.n}
                line |= {f"{name}_{side}": value for name, value in numbers.items()}
        if row.difference is not None:
            over = row.difference.interval
            line |= {"difference": over.mean, "difference_low": over.low}
            line |= {"difference_high": over.high, "paired_seeds": over.n}
        yield line

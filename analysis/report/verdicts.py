"""The verdicts as a reader meets them: counted in a sentence, listed, and with their evidence.

Takes verdicts, gives plain sentences, HTML, Markdown and CSV rows of the same words and numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup

from analysis import wording
from analysis.claims.published import CITATION
from analysis.claims.verdicts import ALPHA, NEGLIGIBLE, Measured, Verdict, Word
from analysis.readout import Readout
from analysis.report.html import NOTHING, Cell, render, table
from analysis.statistics import Interval

WORDS: tuple[Word, ...] = ("supported", "not supported", "undecided")
MARKS: dict[Word, str] = {"supported": "yes", "not supported": "no", "undecided": "open"}
COLUMNS = (
    "claim",
    "sentence",
    "verdict",
    "reason",
    "comparison",
    "unit",
    "mean",
    "low",
    "high",
    "seeds",
    "sample_low",
    "sample_high",
    "p_for",
    "p_against",
    "seeds_needed",
    "seeds_needed_half_point",
    "source",
)
"""Of claims.csv: one line a claim and comparison. `low` and `high` are the 95 % t interval over
seeds, `sample_*` the bootstrap by test sample and seed; p values are adjusted (Holm)."""


def in_short(found: Sequence[Verdict]) -> str:
    """Such as "Of 12 published claims, 2 are supported here, 1 is not and 9 are undecided"."""
    yes, no, undecided = (sum(one.word == word for one in found) for word in WORDS)
    unmeasured = sum(not one.parts for one in found)
    aside = f" ({unmeasured} of them not measured)" if unmeasured else ""
    return (
        f"Of {wording.count(len(found), 'published claim')}, {yes} {_be(yes)} supported here, "
        f"{no} {_be(no)} not and {undecided} {_be(undecided)} undecided{aside}."
    )


def _be(number: int) -> str:
    return "is" if number == 1 else "are"


def rule() -> str:
    """How a verdict is come by, in two sentences."""
    return (
        "A verdict rests on paired t tests over pre-training seeds, Holm-corrected over all claims "
        f"at {ALPHA:g}, and, where every answer is kept, on a bootstrap by test sample and seed as "
        f"well; an effect below {NEGLIGIBLE['points']:g} points of accuracy counts as none. One "
        "seed never gives a verdict."
    )


def numbers(one: Measured) -> str:
    """A comparison's mean with its interval, and the bootstrap's where there is one."""
    digits = 3 if one.part.unit == "nats" else 2
    if one.part.unit == "z":
        text = f"r = {wording.interval(_as_r(one.seeds), digits, sign=True)}"
    else:
        text = f"{wording.interval(one.seeds, digits, sign=True)} {one.part.unit}"
    if one.samples is not None and one.samples.low is not None and one.samples.high is not None:
        low, high = (
            wording.signed(one.samples.low, digits),
            wording.signed(one.samples.high, digits),
        )
        text += f"; by test sample [{low}, {high}]"
    if one.part.shown:
        text += (
            f"; in each seed {wording.listed([wording.signed(r, 2) for r in one.part.shown], 6)}"
        )
    return text


def _as_r(z: Interval) -> Interval:
    """A mean of Fisher's z and its interval as correlations."""
    low, high = (None if end is None else math.tanh(end) for end in (z.low, z.high))
    return Interval(math.tanh(z.mean), low, high, z.n)


def overview(found: Sequence[Verdict]) -> Markup:
    """The first screen's list: each claim that was measured, with its verdict and main number."""
    rows: list[list[Cell | str]] = [
        [
            Cell(one.word, mark=MARKS[one.word]),
            one.claim.sentence,
            Cell(numbers(_main(one)).split(";")[0], key=_main(one).seeds.mean),
        ]
        for one in sorted(found, key=lambda one: WORDS.index(one.word))
        if one.parts
    ]
    if not rows:
        return NOTHING
    return table(
        ["Verdict", "Published claim", "Here"],
        rows,
        caption="Here: the comparison that weighs most against the claim, with its 95 % t interval "
        "over seeds; the rest of the evidence is under Claims",
        numbers=1,
    )


def _main(one: Verdict) -> Measured:
    """The comparison that weighs most against the claim: the least on its side."""
    return min(one.parts, key=lambda part: part.part.direction * part.seeds.mean)


def evidence(found: Sequence[Verdict]) -> Markup:
    """Every claim with its test, its numbers, and the papers' own."""
    claims = [
        {
            "claim": one.claim,
            "mark": MARKS[one.word],
            "word": one.word.capitalize(),
            "reason": one.reason,
            "comparisons": [
                {"label": part.part.label, "numbers": numbers(part), "needs": _needs(part)}
                for part in one.parts
            ],
        }
        for one in found
    ]
    return render("claims.html", rule=rule(), claims=claims)


def _needs(one: Measured) -> str:
    """How many seeds would see it; nothing for one seed."""
    if one.seeds.n < 2:
        return "one seed: no interval"
    text = f"{one.seeds.n} seeds; "
    text += f"{one.needed:,} would see this mean" if one.needed else "out of reach of more seeds"
    if one.part.unit == "points" and one.needed_visible:
        text += f", {one.needed_visible:,} would see 0.5 points"
    return f"{text} (80 % power)"


def rows(found: Sequence[Verdict]) -> Iterator[dict[str, Any]]:
    """The rows of claims.csv; a claim that was not measured has one, without a comparison."""
    for one in found:
        base = {
            **dict.fromkeys(COLUMNS),
            "claim": one.claim.id,
            "sentence": one.claim.sentence,
            "verdict": one.word,
            "reason": one.reason,
            "p_for": one.p_for,
            "p_against": one.p_against,
            "source": one.claim.source,
        }
        if not one.parts:
            yield base
        for part in one.parts:
            yield {
                **base,
                "comparison": part.part.label,
                "unit": part.part.unit,
                "mean": part.seeds.mean,
                "low": part.seeds.low,
                "high": part.seeds.high,
                "seeds": part.seeds.n,
                "sample_low": part.samples.low if part.samples else None,
                "sample_high": part.samples.high if part.samples else None,
                "seeds_needed": part.needed,
                "seeds_needed_half_point": part.needed_visible,
            }


def markdown(readout: Readout, found: Sequence[Verdict], certainty: str) -> str:
    """The verdicts as a short Markdown page: MLflow's description of the sweep."""
    title = readout.question.title or f"Experiment {readout.experiment}"
    lines = [f"# {_plain(title)}", "", _plain(certainty), "", _plain(in_short(found)), ""]
    for word in WORDS:
        of_word = [one for one in found if one.word == word and one.parts]
        if of_word:
            lines += [f"**{word.capitalize()}**", ""]
            lines += [
                f"- {_plain(one.claim.sentence)}: {_plain(numbers(_main(one)))}" for one in of_word
            ]
            lines.append("")
    missing = [one.claim.sentence for one in found if not one.parts]
    if missing:
        lines += [f"Not measured here: {_plain('; '.join(missing))}.", ""]
    lines += [_plain(rule()), "", f"Claims: {_plain(CITATION)}.", ""]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text in which Markdown sees no html."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>#|" else letter for letter in text)

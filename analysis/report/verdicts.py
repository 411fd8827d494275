"""The text of the verdicts: one sentence that counts them, their list, their evidence.

Takes verdicts, gives sentences, HTML, Markdown and CSV rows with the same words and numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup

from analysis import wording
from analysis.claims.published import CITATION
from analysis.claims.verdicts import (
    ALPHA,
    NEGLIGIBLE,
    Decision,
    Measured,
    Verdict,
    seeds_in_words,
)
from analysis.readout import Readout
from analysis.registration import in_words
from analysis.report.answer import answer, beyond
from analysis.report.html import render
from analysis.statistics import LEAST_SEEDS, Interval

DECISIONS: tuple[Decision, ...] = ("supported", "not supported", "undecided")
MARKS: dict[Decision, str] = {
    "supported": "yes",
    "not supported": "no",
    "undecided": "open",
    "exploratory": "open",
}
EXPLORATORY = "Exploratory, not registered: no verdict"
COLUMNS = (
    "claim",
    "sentence",
    "verdict",
    "scope",
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
    "correction",
    "seeds_needed",
    "seeds_needed_least",
    "seeds_needed_most",
    "source",
)
"""The columns of claims.csv, which has one line for each claim and comparison.

`low` and `high` are the 95 % t interval over seeds, `sample_*` the one over seeds and test samples;
p values are adjusted as `correction` says (Holm over so many claims, or none: exploratory, no
verdict). `seeds_needed` shows an effect of a size declared in
`analysis/claims/verdicts.py`, between `_least` and `_most`; empty: more than a thousand.
"""


def count_sentence(found: Sequence[Verdict]) -> str:
    """Such as "Of 12 claims, 2 are supported here, 1 is not and 9 are undecided".

    If some claims are registered, these alone are counted by verdict.
    """
    judged, aside = split(found)
    yes, no, undecided = (sum(one.decision == each for one in judged) for each in DECISIONS)
    unmeasured = sum(not one.comparisons for one in judged)
    scope = next((f" {one.scope}" for one in judged if one.scope), "")
    of_them = f" ({unmeasured} of them not measured)" if unmeasured else ""
    kind = "registered claim" if aside else "claim"
    rest = f" {wording.count(len(aside), 'other claim')} {_be(len(aside))} exploratory: no verdict."
    return (
        f"Of {wording.count(len(judged), kind)}, {yes} {_be(yes)} supported here{scope}, "
        f"{no} {_be(no)} not and {undecided} {_be(undecided)} undecided{of_them}."
        + (rest if aside else "")
    )


def tally(readout: Readout, found: Sequence[Verdict]) -> str:
    """The counting sentence, and which claims were registered when."""
    return f"{count_sentence(found)} {in_words(readout.question.registrations)}".rstrip()


def split(found: Sequence[Verdict]) -> tuple[list[Verdict], list[Verdict]]:
    """The claims that get a verdict, and the exploratory ones."""
    aside = [one for one in found if one.decision == "exploratory"]
    return [one for one in found if one.decision != "exploratory"], aside


def _be(number: int) -> str:
    return "is" if number == 1 else "are"


def rule(found: Sequence[Verdict]) -> str:
    """How a verdict follows, in three sentences."""
    judged, aside = split(found)
    over = f"the {len(judged)} registered" if aside else "all"
    return (
        f"A verdict rests on paired t tests over pre-training seeds, Holm-corrected over {over} "
        f"claims at {ALPHA:g}, and, where all predictions are kept, also on an interval over seeds "
        f"and test samples. An effect below {NEGLIGIBLE['points']:g} points of score counts as "
        f"none. Fewer than {LEAST_SEEDS} seeds never give a verdict."
    )


def numbers(one: Measured) -> str:
    """A comparison's mean with its interval, and the one over test samples where there is one."""
    digits = 3 if one.comparison.unit == "nats" else 2
    if one.comparison.unit == "z":
        text = f"r = {wording.interval(_as_r(one.seeds), digits, sign=True)}"
    else:
        text = f"{wording.interval(one.seeds, digits, sign=True)} {one.comparison.unit}"
    if one.samples is not None and one.samples.low is not None and one.samples.high is not None:
        low, high = (
            wording.signed(one.samples.low, digits),
            wording.signed(one.samples.high, digits),
        )
        text += f"; over test samples too [{low}, {high}]"
    if one.comparison.correlations:
        each = [wording.signed(r, 2) for r in one.comparison.correlations]
        text += f"; in each seed {wording.join(each, 6)}"
    return text


def _as_r(z: Interval) -> Interval:
    """A mean of Fisher's z and its interval, turned into correlations."""
    low, high = (None if end is None else math.tanh(end) for end in (z.low, z.high))
    return Interval(math.tanh(z.mean), low, high, z.n)


def _main(one: Verdict) -> Measured:
    """The comparison that speaks most against the claim: the one least on its side."""
    return min(
        one.comparisons,
        key=lambda comparison: comparison.comparison.direction * comparison.seeds.mean,
    )


def _named(one: Measured) -> str:
    return f"{numbers(one)} ({one.comparison.label})"


def evidence(readout: Readout, found: Sequence[Verdict]) -> Markup:
    """Every claim with its test, its numbers and the papers' numbers, folded by kind.

    What is measured stands before what is not; exploratory claims have groups of their own.
    """
    judged, aside = split(found)
    return render(
        "claims.html",
        tally=tally(readout, found),
        rule=rule(found),
        groups=_groups(judged),
        title=EXPLORATORY,
        exploratory=_groups(aside),
    )


def shown(readout: Readout) -> bool:
    """Whether verdicts are worth a place: too few replicates give none, unless some were asked."""
    return readout.several() or readout.question.registered() is not None


def _groups(found: Sequence[Verdict]) -> list[dict[str, Any]]:
    """The claims of each kind as the template shows them."""
    return [
        {
            "kind": kind or "Other claims",
            "count": _counts([one for one in found if one.claim.kind == kind]),
            "claims": _evidence(
                sorted(
                    (one for one in found if one.claim.kind == kind),
                    key=lambda one: not one.comparisons,
                )
            ),
        }
        for kind in dict.fromkeys(one.claim.kind for one in found)
    ]


def _counts(found: Sequence[Verdict]) -> str:
    """Such as "2 supported, 1 undecided, 1 not measured"."""
    counted = Counter(one.decision if one.comparisons else "not measured" for one in found)
    order = (*DECISIONS, "exploratory", "not measured")
    return ", ".join(f"{counted[each]} {each}" for each in order if counted[each])


def _evidence(found: Sequence[Verdict]) -> list[dict[str, Any]]:
    """The claims as the template shows them."""
    return [
        {
            "claim": one.claim,
            "mark": MARKS[one.decision],
            "word": one.words.capitalize(),
            "reason": one.reason,
            "comparisons": [
                {
                    "label": comparison.comparison.label,
                    "numbers": numbers(comparison),
                    "needs": _needs(comparison, alone=len(one.comparisons) == 1),
                }
                for comparison in one.comparisons
            ],
        }
        for one in found
    ]


def _needs(one: Measured, *, alone: bool) -> str:
    """How many seeds there are, and how many would show an effect.

    The latter is in the reason of the verdict already where a claim has one comparison.
    """
    seeds = wording.count(one.seeds.n, "seed")
    if one.needed is None or alone:
        return f"{seeds}: no interval" if one.seeds.low is None else seeds
    return f"{seeds}; {seeds_in_words([one])}"


def rows(found: Sequence[Verdict]) -> Iterator[dict[str, Any]]:
    """The rows of claims.csv; a claim that was not measured has one row without a comparison."""
    for one in found:
        base = {
            **dict.fromkeys(COLUMNS),
            "claim": one.claim.id,
            "sentence": one.claim.sentence,
            "verdict": one.decision,
            "scope": one.scope or None,
            "reason": one.reason,
            "p_for": one.p_for,
            "p_against": one.p_against,
            "correction": _correction(one),
            "source": one.claim.source,
        }
        if not one.comparisons:
            yield base
        for comparison in one.comparisons:
            yield {
                **base,
                "comparison": comparison.comparison.label,
                "unit": comparison.comparison.unit,
                "mean": comparison.seeds.mean,
                "low": comparison.seeds.low,
                "high": comparison.seeds.high,
                "seeds": comparison.seeds.n,
                "sample_low": comparison.samples.low if comparison.samples else None,
                "sample_high": comparison.samples.high if comparison.samples else None,
                **_needed_columns(comparison),
            }


def _correction(one: Verdict) -> str | None:
    if one.p_for is None:
        return None
    return f"Holm over {wording.count(one.family, 'claim')}" if one.family else "none"


def _needed_columns(one: Measured) -> dict[str, int | None]:
    if one.needed is None:
        return {}
    return {
        "seeds_needed": one.needed.seeds,
        "seeds_needed_least": one.needed.least,
        "seeds_needed_most": one.needed.most,
    }


def markdown(readout: Readout, found: Sequence[Verdict], certainty: str) -> str:
    """The verdicts as a short Markdown page, which MLflow shows as the description of the sweep.

    Where nothing was pre-trained, and of too few replicates, there are none: the page has its
    title, the answer and `certainty` alone.
    """
    title = readout.question.title or f"Experiment {readout.experiment}"
    lines = [f"# {escape(title)}", "", f"**{escape(answer(readout))}**", "", escape(certainty), ""]
    if not readout.question.levels:
        return "\n".join(lines)
    if more := beyond(readout, found):
        lines += [escape(more), ""]
    if not shown(readout):
        return "\n".join(lines)
    lines += [escape(tally(readout, found)), ""]
    scope = next((f" {one.scope}" for one in found if one.scope), "")
    titles: list[tuple[Decision, str]] = [(each, each.capitalize()) for each in DECISIONS]
    for decision, heading in (*titles, ("exploratory", EXPLORATORY)):
        chosen = [one for one in found if one.decision == decision and one.comparisons]
        if chosen:
            lines += [f"**{heading}{scope if decision in DECISIONS else ''}**", ""]
            lines += [
                f"- {escape(one.claim.sentence)}: {escape(_named(_main(one)))}" for one in chosen
            ]
            lines.append("")
    missing = [one.claim.sentence for one in found if not one.comparisons]
    if missing:
        lines += [f"Not measured here: {escape('; '.join(missing))}.", ""]
    lines += [escape(rule(found)), "", f"Claims: {escape(CITATION)}.", ""]
    return "\n".join(lines)


def escape(text: str) -> str:
    """Text in which Markdown sees no html."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>#|" else letter for letter in text)

"""The verdict on a claim: supported, not supported or undecided, and how many seeds would decide.

Takes the comparisons of every claim of a report, gives each claim's verdict with its numbers. All
rules are declared here:

- A claim holds when *all* its comparisons do. Each is a paired t test over pre-training seeds: does
  the mean lie on the claimed side of zero? The claim's p is the largest of theirs (an
  intersection-union test, which needs no correction).
- A claim fails when *any* comparison rules it out: a t test that the mean lies short of even a
  negligible effect on the claimed side. The claim's p is the smallest of theirs, times their number
  (Bonferroni).
- Both p values are adjusted over all claims of the report (Holm), at the level ALPHA.
- Where predictions are known, the bootstrap by test sample and seed must agree.
- With fewer than LEAST_SEEDS seeds every claim is undecided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from analysis import wording
from analysis.claims.contrasts import Comparison, Unit, bootstrap_intervals
from analysis.statistics import MOST_SEEDS, Interval, directed_p, holm, mean_interval, seeds_needed

ALPHA = 0.05
LEAST_SEEDS = 2
NEGLIGIBLE: dict[Unit, float] = {"points": 0.1, "nats": 0.01, "z": 0.1}
"""An effect no larger than this counts as none."""
VISIBLE = 0.5  # points; the report always says how many seeds would show this effect
POWER = 0.8

Decision = Literal["supported", "not supported", "undecided"]


@dataclass(frozen=True)
class Claim:
    """One published claim."""

    id: str
    sentence: str
    source: str  # where it was published
    test: str  # what is compared here
    needs: str  # the levels, tasks and methods that the test needs
    papers: str = ""  # the same comparison on the papers' own numbers, one run each


@dataclass(frozen=True)
class Measured:
    """One comparison with its intervals."""

    comparison: Comparison
    seeds: Interval  # t interval over seeds
    samples: Interval | None  # bootstrap by test sample and seed; None: predictions not known
    needed: int | None  # seeds that would show the observed mean; None: too many, or one seed
    needed_visible: int | None  # seeds that would show VISIBLE points; None also in other units


@dataclass(frozen=True)
class Verdict:
    """A claim, the decision on it, and the numbers behind it."""

    claim: Claim
    decision: Decision
    reason: str
    comparisons: tuple[Measured, ...]
    p_for: float | None  # that it holds, adjusted; None when it was not tested
    p_against: float | None


def judge(claims: Sequence[tuple[Claim, Sequence[Comparison]]]) -> list[Verdict]:
    """The verdicts, in the order of the claims."""
    flat = [comparison for _, comparisons in claims for comparison in comparisons]
    intervals = iter(zip(flat, bootstrap_intervals(flat), strict=True))
    measured = [[_measure(*next(intervals)) for _ in comparisons] for _, comparisons in claims]
    testable = [
        at
        for at, comparisons in enumerate(measured)
        if comparisons and _fewest_seeds(comparisons) >= LEAST_SEEDS
    ]
    p_for = dict(zip(testable, holm([_for(measured[at]) for at in testable]), strict=True))
    against = dict(zip(testable, holm([_against(measured[at]) for at in testable]), strict=True))
    return [
        _verdict(claim, comparisons, p_for.get(at), against.get(at))
        for at, ((claim, _), comparisons) in enumerate(zip(claims, measured, strict=True))
    ]


def _measure(comparison: Comparison, samples: Interval | None) -> Measured:
    values = list(comparison.values.values())
    over = mean_interval(values)
    if len(values) < 2:
        return Measured(comparison, over, samples, None, None)
    mean = over.mean
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    visible = seeds_needed(spread, VISIBLE, power=POWER) if comparison.unit == "points" else None
    return Measured(comparison, over, samples, seeds_needed(spread, mean, power=POWER), visible)


def _fewest_seeds(comparisons: Sequence[Measured]) -> int:
    return min(one.seeds.n for one in comparisons)


def _for(comparisons: Sequence[Measured]) -> float:
    return max(
        directed_p(list(one.comparison.values.values()), one.comparison.direction)
        for one in comparisons
    )


def _against(comparisons: Sequence[Measured]) -> float:
    return min(1.0, len(comparisons) * min(_short(one) for one in comparisons))


def _short(one: Measured) -> float:
    """p that the mean lies short of a negligible effect on the claimed side."""
    comparison = one.comparison
    null = comparison.direction * NEGLIGIBLE[comparison.unit]
    return directed_p(list(comparison.values.values()), -comparison.direction, null)


def _verdict(
    claim: Claim, comparisons: Sequence[Measured], p_for: float | None, p_against: float | None
) -> Verdict:
    def decided(decision: Decision, reason: str) -> Verdict:
        return Verdict(claim, decision, reason, tuple(comparisons), p_for, p_against)

    if not comparisons:
        return decided("undecided", f"Not measured here: it needs {claim.needs}.")
    if p_for is None or p_against is None:
        return decided(
            "undecided",
            f"{wording.count(_fewest_seeds(comparisons), 'pre-training seed')}: a verdict needs at "
            f"least {LEAST_SEEDS}. {_seeds_wanted(comparisons)}.",
        )
    if p_against < ALPHA:
        worst = min(comparisons, key=_short)
        if worst.samples is None or _rules_out(worst):
            return decided(
                "not supported",
                f"{worst.comparison.label}: {_value(worst)} rules the claim out "
                f"(p {_p(p_against)} after Holm's correction).",
            )
        return decided(
            "undecided",
            f"Over seeds the claim fails (p {_p(p_against)}), but the choice of test samples could "
            f"explain that; more test images or tasks would decide.",
        )
    if p_for < ALPHA:
        if all(_agrees(one) for one in comparisons):
            return decided("supported", f"p {_p(p_for)} after Holm's correction.")
        return decided(
            "undecided",
            f"Over seeds the claim holds (p {_p(p_for)}), but the choice of test samples could "
            f"explain that; more test images or tasks would decide.",
        )
    wanted = _seeds_wanted(comparisons)
    return decided(
        "undecided",
        f"p {_p(p_for)} for it and p {_p(p_against)} against it; {wanted}.",
    )


def _agrees(one: Measured) -> bool:
    """Whether the bootstrap interval lies on the claimed side of zero; True without one."""
    if one.samples is None or one.samples.low is None or one.samples.high is None:
        return True
    return one.samples.low > 0 if one.comparison.direction > 0 else one.samples.high < 0


def _rules_out(one: Measured) -> bool:
    """Whether the bootstrap interval lies short of a negligible effect on the claimed side."""
    assert one.samples is not None, "called for comparisons with known predictions alone"
    least = NEGLIGIBLE[one.comparison.unit]
    if one.samples.low is None or one.samples.high is None:
        return False
    return one.samples.high < least if one.comparison.direction > 0 else one.samples.low > -least


def _seeds_wanted(comparisons: Sequence[Measured]) -> str:
    """How many seeds would show the observed effect, and how many a visible one."""
    if _fewest_seeds(comparisons) < 2:
        return "Two seeds or more also show how many would decide"
    wanted = [one.needed for one in comparisons]
    text = (
        f"more than {MOST_SEEDS:,} seeds would be needed to see"
        if None in wanted
        else f"about {max(w for w in wanted if w is not None):,} seeds would be needed to see"
    )
    text += " effects as small as those observed"
    if all(one.comparison.unit == "points" for one in comparisons):
        visible = [one.needed_visible for one in comparisons]
        most = None if None in visible else max(v for v in visible if v is not None)
        text += (
            f", {f'{most:,}' if most else f'more than {MOST_SEEDS:,}'} to see {VISIBLE:g} points"
        )
    return f"{text} (power {POWER:.0%}, before correction)"


def _value(one: Measured) -> str:
    digits = {"points": 2, "nats": 3, "z": 2}[one.comparison.unit]
    return f"{wording.interval(one.seeds, digits, sign=True)} {one.comparison.unit}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"

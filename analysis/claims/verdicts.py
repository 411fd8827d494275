"""The verdict on a claim: supported, not supported or undecided, and how many seeds would decide.

Takes the comparisons of every claim of a report, gives each claim's verdict with its numbers. All
rules are declared here:

- A claim holds when *all* its comparisons do. Each is a paired t test over pre-training seeds: does
  the mean lie on the claimed side of zero? Values without a spread give no test. The claim's p is
  the largest of theirs (an intersection-union test, which needs no correction).
- A claim fails when *any* comparison rules it out: a t test that the mean lies short of even a
  negligible effect on the claimed side. The claim's p is the smallest of theirs, times their number
  (Bonferroni).
- Both p values are adjusted over the *family* (Holm), at the level ALPHA. The family is the
  registered claims, if any are registered: all of them, for one that was not measured still counts
  (its p is 1). Else it is all claims that can be tested.
- A claim outside the family is exploratory: its p values are not adjusted, and it gets no verdict.
- Where predictions are known, the interval over seeds and test samples must agree.
- With fewer than LEAST_SEEDS seeds every claim is undecided.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from analysis import wording
from analysis.claims.contrasts import Comparison, Unit, sample_interval
from analysis.statistics import (
    LEAST_SEEDS,
    MOST_SEEDS,
    Interval,
    directed_p,
    holm,
    mean_interval,
    seeds_needed,
    spread_range,
    standard_deviation,
)

ALPHA = 0.05
NEGLIGIBLE: dict[Unit, float] = {"points": 0.1, "nats": 0.01, "z": 0.1}
"""An effect no larger than this counts as none."""
VISIBLE: dict[Unit, float] = {"points": 0.5, "nats": 0.05, "z": 0.5}
"""The report says how many seeds would show an effect of this size."""

Decision = Literal["supported", "not supported", "undecided", "exploratory"]
"""The last is none: the claim was not registered, so it gets no verdict."""


@dataclass(frozen=True)
class Claim:
    """One published claim."""

    id: str
    sentence: str
    source: str  # where it was published
    test: str  # what is compared here
    needs: str  # the levels, tasks and methods that the test needs
    papers: str = ""  # the same comparison on the papers' own numbers, one run each
    kind: str = ""  # what it is about; the report shows claims of a kind together


@dataclass(frozen=True)
class Needed:
    """Seeds that would show an effect of VISIBLE size in a comparison, with 80 % power.

    Counted for the test that is made: the family shares Holm's correction, and all comparisons of
    the claim must hold. The spread over the seeds that were run is uncertain, so there is a range
    (80 %). None stands for more than MOST_SEEDS.
    """

    seeds: int | None
    least: int | None
    most: int | None


@dataclass(frozen=True)
class Measured:
    """One comparison with its intervals."""

    comparison: Comparison
    seeds: Interval  # t interval over seeds
    samples: Interval | None  # over seeds and test samples; None: predictions not known
    needed: Needed | None = None  # None: the spread over seeds is not known


@dataclass(frozen=True)
class Verdict:
    """A claim, the decision on it, and the numbers behind it."""

    claim: Claim
    decision: Decision
    reason: str
    comparisons: tuple[Measured, ...]
    p_for: float | None  # that it holds, adjusted over the family; None when it was not tested
    p_against: float | None
    family: int = 0  # claims that share the correction of its p values; 0: they have none
    scope: str = ""  # what it speaks for alone, such as "for this draw of noise"; empty: no limit

    @property
    def words(self) -> str:
        """The decision with its scope."""
        scope = "" if self.decision == "exploratory" else self.scope
        return f"{self.decision} {scope}".rstrip()


def judge(
    claims: Sequence[tuple[Claim, Sequence[Comparison]]],
    *,
    family: Collection[str] | None = None,
    scope: str = "",
) -> list[Verdict]:
    """The verdicts, in the order of the claims.

    `family` has the ids of the registered claims, which share Holm's correction; the others are
    exploratory. None: all claims that can be tested share it. `scope` says what all replicates
    share.
    """
    measured = [
        [
            Measured(one, mean_interval(list(one.values.values())), sample_interval(one))
            for one in comparisons
        ]
        for _, comparisons in claims
    ]
    testable = [
        at
        for at, comparisons in enumerate(measured)
        if comparisons and _fewest_seeds(comparisons) >= LEAST_SEEDS
    ]
    members = [at for at in testable if family is None or claims[at][0].id in family]
    size = len(members) if family is None else len(set(family))
    p_for = {at: _for(measured[at]) for at in testable}
    p_against = {at: _against(measured[at]) for at in testable}
    for ps in (p_for, p_against):
        untested = [1.0] * (size - len(members))
        adjusted = holm([*(ps[at] for at in members), *untested])
        ps |= dict(zip(members, adjusted, strict=False))
    for at in members:
        measured[at] = _with_needed(measured[at], size)
    found: list[Verdict] = []
    for at, ((claim, _), comparisons) in enumerate(zip(claims, measured, strict=True)):
        both = p_for.get(at), p_against.get(at)
        if family is None or claim.id in family:
            found.append(replace(_verdict(claim, comparisons, *both, size), scope=scope))
        else:
            found.append(_exploratory(claim, comparisons, *both))
    return found


def _exploratory(
    claim: Claim, comparisons: Sequence[Measured], p_for: float | None, p_against: float | None
) -> Verdict:
    reason = "Not registered: no verdict."
    if not comparisons:
        reason += f" Not measured here: it needs {claim.needs}."
    elif p_for is not None and p_against is not None:
        reason += f" p {_p(p_for)} for it and p {_p(p_against)} against it, not corrected."
    return Verdict(claim, "exploratory", reason, tuple(comparisons), p_for, p_against)


def _with_needed(comparisons: Sequence[Measured], claims: int) -> list[Measured]:
    """The comparisons of a claim, each with the seeds that it needs."""

    def needed(one: Measured) -> Needed | None:
        values, effect = list(one.comparison.values.values()), VISIBLE[one.comparison.unit]
        if one.seeds.low is None:  # equal values: no test is made of them
            return None
        spread = standard_deviation(values)
        low, high = spread_range(spread, len(values))
        numbers = (
            seeds_needed(each, effect, claims=claims, parts=len(comparisons))
            for each in (spread, low, high)
        )
        return Needed(*numbers)

    return [replace(one, needed=needed(one)) for one in comparisons]


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
    claim: Claim,
    comparisons: Sequence[Measured],
    p_for: float | None,
    p_against: float | None,
    family: int,
) -> Verdict:
    def decided(decision: Decision, reason: str) -> Verdict:
        return Verdict(claim, decision, reason, tuple(comparisons), p_for, p_against, family)

    if not comparisons:
        return decided("undecided", f"Not measured here: it needs {claim.needs}.")
    if p_for is None or p_against is None:
        return decided(
            "undecided",
            f"{wording.count(_fewest_seeds(comparisons), 'pre-training seed')}: a verdict needs at "
            f"least {LEAST_SEEDS}, which also show how many would decide.",
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
            f"explain that; more test samples or tasks would decide.",
        )
    if p_for < ALPHA:
        if all(_agrees(one) for one in comparisons):
            return decided("supported", f"p {_p(p_for)} after Holm's correction.")
        return decided(
            "undecided",
            f"Over seeds the claim holds (p {_p(p_for)}), but the choice of test samples could "
            f"explain that; more test samples or tasks would decide.",
        )
    wanted = seeds_in_words(comparisons)
    return decided(
        "undecided",
        f"p {_p(p_for)} for it and p {_p(p_against)} against it; {wanted}.",
    )


def _agrees(one: Measured) -> bool:
    """Whether the interval over samples too lies on the claimed side; True without one."""
    if one.samples is None or one.samples.low is None or one.samples.high is None:
        return True
    return one.samples.low > 0 if one.comparison.direction > 0 else one.samples.high < 0


def _rules_out(one: Measured) -> bool:
    """Whether the interval over samples too lies short of a negligible effect."""
    assert one.samples is not None, "called for comparisons with known predictions alone"
    least = NEGLIGIBLE[one.comparison.unit]
    if one.samples.low is None or one.samples.high is None:
        return False
    return one.samples.high < least if one.comparison.direction > 0 else one.samples.low > -least


def seeds_in_words(comparisons: Sequence[Measured]) -> str:
    """How many seeds would show a visible effect in all comparisons of a claim."""
    known = [one.needed for one in comparisons if one.needed is not None]
    if not known:
        return "equal values in all seeds show no spread, so nothing can be tested"
    middle, least, most = (
        None if None in each else max(n for n in each if n is not None)
        for each in zip(*((one.seeds, one.least, one.most) for one in known), strict=True)
    )
    unit = comparisons[0].comparison.unit
    size = f"{VISIBLE[unit]:g} {'in Fisher z' if unit == 'z' else unit}"
    if middle is None:
        return f"more than {MOST_SEEDS:,} seeds would be needed to show {size} (80 % power)"
    end = f"more than {MOST_SEEDS:,}" if most is None else f"{most:,}"
    seeds = _fewest_seeds(comparisons)
    return (
        f"about {middle:,} seeds would be needed to show {size} ({least:,} to {end}, since the "
        f"spread over {seeds} seeds is uncertain; 80 % power, after correction)"
    )


def _value(one: Measured) -> str:
    digits = {"points": 2, "nats": 3, "z": 2}[one.comparison.unit]
    return f"{wording.interval(one.seeds, digits, sign=True)} {one.comparison.unit}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"

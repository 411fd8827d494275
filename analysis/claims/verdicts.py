"""The verdict on a claim: supported, not supported or undecided, and what would decide it.

Takes the parts of every claim of a report, gives each claim's verdict with its numbers. The rules,
all declared here:

- A claim holds when *all* its parts do. For each part a paired t test over pre-training seeds asks
  whether its mean lies on the side that the claim says; the claim's p is the largest of them (an
  intersection-union test, which needs no correction).
- Before that, a claim fails when *any* part rules it out: a t test that its mean lies short of even
  a negligible effect on the claimed side; the claim's p is the smallest, times their number.
- Both p values are adjusted over all claims of the report (Holm), at ALPHA.
- Where the test samples' answers are known, the interval that resamples them, too, must agree.
- Fewer than LEAST_SEEDS seeds: undecided, whatever the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from analysis import wording
from analysis.claims.contrasts import Part, Unit, resampled
from analysis.statistics import MOST_SEEDS, Interval, directed_p, holm, mean_interval, seeds_needed

ALPHA = 0.05
LEAST_SEEDS = 2
NEGLIGIBLE: dict[Unit, float] = {"points": 0.1, "nats": 0.01, "z": 0.1}
"""An effect no larger than this is as good as none."""
VISIBLE = 0.5  # points: the effect whose need of seeds is always told
POWER = 0.8

Word = Literal["supported", "not supported", "undecided"]


@dataclass(frozen=True)
class Claim:
    """One published claim."""

    id: str
    sentence: str
    source: str  # where it was published
    test: str  # what is compared here
    needs: str  # levels and methods without which it cannot be tested
    papers: str = ""  # the same comparison on the papers' own numbers, one run each


@dataclass(frozen=True)
class Measured:
    """One part with its intervals."""

    part: Part
    seeds: Interval  # t interval over seeds
    samples: Interval | None  # resampled by test sample, then by seed
    needed: int | None  # seeds to see the mean as it stands; None: out of reach, or one seed
    needed_visible: int | None  # seeds to see VISIBLE points; None too where the unit is another


@dataclass(frozen=True)
class Verdict:
    """A claim, what was found, and what it amounts to."""

    claim: Claim
    word: Word
    reason: str
    parts: tuple[Measured, ...]
    p_for: float | None  # adjusted; None when it was not tested
    p_against: float | None


def judge(claims: Sequence[tuple[Claim, Sequence[Part]]]) -> list[Verdict]:
    """The verdicts, in the order of the claims."""
    flat = [part for _, parts in claims for part in parts]
    intervals = iter(zip(flat, resampled(flat), strict=True))
    measured = [[_measure(*next(intervals)) for _ in parts] for _, parts in claims]
    testable = [at for at, parts in enumerate(measured) if parts and _seeds(parts) >= LEAST_SEEDS]
    p_for = dict(zip(testable, holm([_for(measured[at]) for at in testable]), strict=True))
    against = dict(zip(testable, holm([_against(measured[at]) for at in testable]), strict=True))
    return [
        _verdict(claim, parts, p_for.get(at), against.get(at))
        for at, ((claim, _), parts) in enumerate(zip(claims, measured, strict=True))
    ]


def _measure(part: Part, samples: Interval | None) -> Measured:
    values = list(part.values.values())
    over = mean_interval(values)
    if len(values) < 2:
        return Measured(part, over, samples, None, None)
    mean = over.mean
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    visible = seeds_needed(spread, VISIBLE, power=POWER) if part.unit == "points" else None
    return Measured(part, over, samples, seeds_needed(spread, mean, power=POWER), visible)


def _seeds(parts: Sequence[Measured]) -> int:
    return min(one.seeds.n for one in parts)


def _for(parts: Sequence[Measured]) -> float:
    return max(directed_p(list(one.part.values.values()), one.part.direction) for one in parts)


def _against(parts: Sequence[Measured]) -> float:
    return min(1.0, len(parts) * min(_short(one) for one in parts))


def _short(one: Measured) -> float:
    """p that the part's mean lies short of a negligible effect on the claimed side."""
    part = one.part
    null = part.direction * NEGLIGIBLE[part.unit]
    return directed_p(list(part.values.values()), -part.direction, null)


def _verdict(
    claim: Claim, parts: Sequence[Measured], p_for: float | None, p_against: float | None
) -> Verdict:
    def say(word: Word, reason: str) -> Verdict:
        return Verdict(claim, word, reason, tuple(parts), p_for, p_against)

    if not parts:
        return say("undecided", f"Not measured here: it needs {claim.needs}.")
    if p_for is None or p_against is None:
        return say(
            "undecided",
            f"{wording.count(_seeds(parts), 'pre-training seed')}: a verdict needs at least "
            f"{LEAST_SEEDS}, and {_wish(parts)}.",
        )
    if p_against < ALPHA:
        worst = min(parts, key=_short)
        if worst.samples is None or _rules_out(worst):
            return say(
                "not supported",
                f"{worst.part.label}: {_value(worst)} rules the claim out "
                f"(p {_p(p_against)} after Holm's correction).",
            )
        return say(
            "undecided",
            f"The seeds speak against it (p {_p(p_against)}), but chance in drawing the test "
            f"samples could explain that; more test images or tasks would decide.",
        )
    if p_for < ALPHA:
        if all(_agrees(one) for one in parts):
            return say("supported", f"p {_p(p_for)} after Holm's correction.")
        return say(
            "undecided",
            f"The seeds agree (p {_p(p_for)}), but chance in drawing the test samples could "
            f"explain it; more test images or tasks would decide.",
        )
    return say(
        "undecided", f"p {_p(p_for)} for it and p {_p(p_against)} against it; {_wish(parts)}."
    )


def _agrees(one: Measured) -> bool:
    """Whether the resampled interval, where there is one, lies on the claimed side of zero."""
    if one.samples is None or one.samples.low is None or one.samples.high is None:
        return True
    return one.samples.low > 0 if one.part.direction > 0 else one.samples.high < 0


def _rules_out(one: Measured) -> bool:
    """Whether the resampled interval lies short of a negligible effect on the claimed side."""
    assert one.samples is not None, "asked only of parts with answers"
    least = NEGLIGIBLE[one.part.unit]
    if one.samples.low is None or one.samples.high is None:
        return False
    return one.samples.high < least if one.part.direction > 0 else one.samples.low > -least


def _wish(parts: Sequence[Measured]) -> str:
    """What would decide it: seeds for the effect as it stands, and for a visible one."""
    if _seeds(parts) < 2:
        return "how many would decide can only be told from two or more"
    wanted = [one.needed for one in parts]
    text = (
        f"beyond {MOST_SEEDS:,} seeds would be needed to see"
        if None in wanted
        else f"about {max(w for w in wanted if w is not None):,} seeds would be needed to see"
    )
    text += " effects as small as those observed"
    if all(one.part.unit == "points" for one in parts):
        visible = [one.needed_visible for one in parts]
        most = None if None in visible else max(v for v in visible if v is not None)
        text += f", {f'{most:,}' if most else f'beyond {MOST_SEEDS:,}'} to see {VISIBLE:g} points"
    return f"{text} (power {POWER:.0%}, before correction)"


def _value(one: Measured) -> str:
    digits = {"points": 2, "nats": 3, "z": 2}[one.part.unit]
    return f"{wording.interval(one.seeds, digits, sign=True)} {one.part.unit}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"

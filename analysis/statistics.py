"""How sure a number is: intervals over seeds and samples, paired differences, power, correlation.

Takes plain numbers and arrays, gives means with intervals. The unit of replication is the
pre-training seed; a single measurement has no interval.

scipy.stats gives quantiles, p values and correlations. The functions that need it import it: that
takes most of a second, which a verb without statistics should not pay. Holm's correction and the
interval over seeds and test samples are written here, because scipy has neither.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95

LEAST_SEEDS = 3  # fewer give no interval: that of two is some thirteen times the difference
LEAST_POINTS = 4  # of a correlation: two always give r = 1, and Fisher's z of three has no variance
MOST_SEEDS = 1000  # more are not counted: nobody trains so many
_NOTHING = 1e-24  # a variance, relative to the squared mean, that is rounding


@dataclass(frozen=True)
class Interval:
    """A mean and the interval around it.

    Low and high are None for fewer than LEAST_SEEDS values, and for equal ones: these do not show
    how far others would lie.
    """

    mean: float
    low: float | None
    high: float | None
    n: int  # independent values behind the mean

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and zero lies outside it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def half(self) -> float | None:
        """Half of the width, also where one side was cut at what can be measured; None without."""
        if self.low is None or self.high is None:
            return None
        return max(self.high - self.mean, self.mean - self.low)


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences, and the pairs behind it."""

    interval: Interval  # over seeds, each the mean over `tasks`
    tasks: tuple[str, ...]  # paired in every seed
    seeds: tuple[int, ...]
    unpaired: int  # values of either side that have no counterpart and are left out


@dataclass(frozen=True)
class Correlation:
    """Pearson's r with its interval; None where it is not defined."""

    r: float | None
    low: float | None
    high: float | None
    n: int


def student_quantile(probability: float, df: float) -> float:
    """t such that P(|T| <= t) = probability, for Student's T with df degrees of freedom.

    Raises ValueError unless 0 <= probability < 1 and df >= 1.
    """
    from scipy import stats

    if not 0 <= probability < 1 or df < 1:
        raise ValueError(f"no t quantile for probability={probability}, df={df}")
    return float(stats.t.isf((1 - probability) / 2, df))


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean of independent values with Student's t interval, where there is one (see `Interval`).

    Raises ValueError when there is no value.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    n = len(values)
    mean = math.fsum(values) / n
    if n < LEAST_SEEDS or _equal(values):
        return Interval(mean, None, None, n)
    spread = standard_deviation(values)
    half = student_quantile(confidence, n - 1) * spread / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def standard_deviation(values: Sequence[float]) -> float:
    """Of a sample: the squares' sum is divided by n - 1. ValueError for fewer than two values."""
    if len(values) < 2:
        raise ValueError("a standard deviation needs two values")
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def _equal(values: Sequence[float]) -> bool:
    """Whether the values are the same but for rounding."""
    return max(values) - min(values) <= math.sqrt(_NOTHING) * max(map(abs, values))


def student_p(values: Sequence[float], null: float = 0.0) -> float:
    """Two-sided p of Student's t test that the mean is `null`.

    1 for fewer than two values and for equal ones: no test is made without a variance.
    """
    from scipy import stats

    n = len(values)
    if n < 2 or _equal(values):
        return 1.0
    mean = math.fsum(values) / n
    error = standard_deviation(values) / math.sqrt(n)
    return float(2 * stats.t.sf(abs(mean - null) / error, n - 1))


def directed_p(values: Sequence[float], direction: int, null: float = 0.0) -> float:
    """p that the mean lies beyond `null` in a direction (+1, -1); 1 when it is on the other side.

    This is the two-sided p and not half of it: the test is strict on purpose.
    """
    if not values:
        return 1.0
    beyond = direction * (math.fsum(values) / len(values) - null) > 0
    return student_p(values, null) if beyond else 1.0


def holm(ps: Sequence[float]) -> list[float]:
    """The p values adjusted so that the chance of any false rejection is bounded (Holm 1979)."""
    order = sorted(range(len(ps)), key=lambda at: ps[at])
    adjusted = [0.0] * len(ps)
    least = 0.0
    for rank, at in enumerate(order):
        least = max(least, min((len(ps) - rank) * ps[at], 1.0))
        adjusted[at] = least
    return adjusted


def power(seeds: int, effect: float, spread: float, alpha: float = 1 - CONFIDENCE) -> float:
    """How often the t test over seeds shows an effect, on the side on which it lies.

    Args:
        seeds: how many, at least 2.
        effect: the true mean of the paired differences; its sign does not matter.
        spread: their true standard deviation over seeds, in the same unit.
        alpha: level of the two-sided test, after any correction.
    """
    from scipy import stats

    if spread == 0.0:
        return float(effect != 0.0)
    least = stats.t.isf(alpha / 2, seeds - 1)
    return float(stats.nct.sf(least, seeds - 1, abs(effect) / spread * math.sqrt(seeds)))


def seeds_needed(
    spread: float, effect: float, *, claims: int = 1, parts: int = 1, wanted: float = 0.8
) -> int | None:
    """How many pre-training seeds show an effect with the wanted power, as verdicts are made.

    Args:
        spread: standard deviation over seeds of the paired differences.
        effect: the true mean difference, in the same unit; its sign does not matter.
        claims: how many claims share Holm's correction. Its first step is counted, the strictest.
        parts: comparisons of the claim that must all be shown; what may fail is shared by them.
        wanted: probability that the whole claim is shown.

    Returns:
        The smallest number, at least LEAST_SEEDS; None when it exceeds MOST_SEEDS.
    """
    alpha, least = (1 - CONFIDENCE) / claims, 1 - (1 - wanted) / parts

    def shows(seeds: int) -> bool:
        return power(seeds, effect, spread, alpha) >= least

    if effect == 0.0 or not shows(MOST_SEEDS):
        return None
    low, high = LEAST_SEEDS - 1, MOST_SEEDS  # `high` shows it, `low` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high


def spread_range(spread: float, seeds: int, confidence: float = 0.8) -> tuple[float, float]:
    """Between which standard deviations the true one lies, given that of so many seeds.

    The interval by chi-square of normal differences; `seeds` is at least 2.
    """
    from scipy import stats

    tail, df = (1 - confidence) / 2, seeds - 1
    return (
        spread * math.sqrt(df / float(stats.chi2.isf(tail, df))),
        spread * math.sqrt(df / float(stats.chi2.ppf(tail, df))),
    )


def paired_difference(
    first: Mapping[tuple[int, str], float],
    second: Mapping[tuple[int, str], float],
    confidence: float = CONFIDENCE,
) -> Difference:
    """Mean of first - second, paired by (seed, task): over tasks inside a seed, then over seeds.

    Only tasks paired in every shared seed count, so that each seed's mean is over the same tasks.
    Raises ValueError when no pair is left.
    """
    pairs = first.keys() & second.keys()
    seeds = sorted({seed for seed, _ in pairs})
    tasks = sorted({task for _, task in pairs if all((seed, task) in pairs for seed in seeds)})
    if not tasks:
        raise ValueError("no task was measured on both sides in every shared seed")
    means = [
        math.fsum(first[seed, task] - second[seed, task] for task in tasks) / len(tasks)
        for seed in seeds
    ]
    used = len(seeds) * len(tasks)
    unpaired = len(first) + len(second) - 2 * used
    return Difference(mean_interval(means, confidence), tuple(tasks), tuple(seeds), unpaired)


def crossed_interval(
    test_sets: Mapping[str, NDArray[np.float64]], confidence: float = CONFIDENCE
) -> Interval:
    """A mean over seeds and test samples, with an interval that covers the choice of both.

    The variance of the mean is estimated as in a two-way layout with random rows and columns:
    seeds' own variance, samples' own, and what is left, each once (Searle, Casella and McCulloch,
    Variance Components, 1992, chapter 4). Its degrees of freedom are Satterthwaite's. Its coverage
    of 93 to 97 % is shown by simulation (`tests/analysis/test_statistics.py`).

    Args:
        test_sets: by name, [S, N] each: what one sample of one seed adds, such that the sum over
            test sets of the mean over samples is the seed's value.
        confidence: how often such an interval covers the true mean.

    Returns:
        The mean and its interval; n = S. No interval for fewer than LEAST_SEEDS seeds, or where
        nothing varies.
    """
    seeds = len(next(iter(test_sets.values())))
    mean = math.fsum(float(one.mean()) for one in test_sets.values())
    if seeds < LEAST_SEEDS:
        return Interval(mean, None, None, seeds)
    of_seeds = np.sum([one.mean(axis=1) for one in test_sets.values()], axis=0)
    between_seeds = float(of_seeds.var(ddof=1)) / seeds
    between_samples = rest = fewest = 0.0
    for one in test_sets.values():
        samples = one.shape[1]
        if samples < 2:
            return Interval(mean, None, None, seeds)
        of_samples = one.mean(axis=0)
        between_samples += float(of_samples.var(ddof=1)) / samples
        residual = one - one.mean(axis=1, keepdims=True) - of_samples + one.mean()
        degrees = (seeds - 1) * (samples - 1)
        rest += float((residual**2).sum()) / degrees / (seeds * samples)
        fewest = samples if fewest == 0 else min(fewest, samples)
    of_samples_alone = max(between_samples - rest, 0.0)
    variance = max(between_seeds, rest) + between_samples - rest
    if variance <= _NOTHING * (1 + mean * mean):
        return Interval(mean, None, None, seeds)
    parts = between_seeds**2 / (seeds - 1) + of_samples_alone**2 / (fewest - 1)
    degrees_of_mean = variance**2 / parts if parts > 0 else float(seeds - 1)
    half = student_quantile(confidence, degrees_of_mean) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half, seeds)


def pearson(x: Sequence[float], y: Sequence[float], confidence: float = CONFIDENCE) -> Correlation:
    """Pearson's correlation of two equally long sequences, with the interval by Fisher's z.

    r is None for fewer than LEAST_POINTS points or a constant side; the interval is None for a
    perfect correlation.
    Raises ValueError for unequal lengths.
    """
    if len(x) != len(y):
        raise ValueError(f"correlation of {len(x)} and {len(y)} values; give as many of each")
    n = len(x)
    if n < LEAST_POINTS or min(x) == max(x) or min(y) == max(y):
        return Correlation(None, None, None, n)
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # of a nearly constant side
        found = stats.pearsonr(x, y)
    r = float(found.statistic)
    if not math.isfinite(r):
        return Correlation(None, None, None, n)
    if abs(r) == 1.0:
        return Correlation(r, None, None, n)
    low, high = found.confidence_interval(confidence)
    return Correlation(r, float(low), float(high), n)

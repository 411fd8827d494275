"""How sure a number is: intervals over seeds, paired differences, bootstrap, correlation.

Takes plain numbers and arrays, gives means with intervals. The unit of replication is the
pre-training seed; a single measurement has no interval.

scipy.stats gives quantiles, p values and correlations. The functions that need it import it: that
takes most of a second, which a verb without statistics should not pay. Holm's correction and the
bootstrap by test sample and seed are written here, because scipy has neither.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95

MOST_SEEDS = 1000  # more are not counted: nobody trains so many
_CHUNK = 64  # bootstrap draws held in memory at once


@dataclass(frozen=True)
class Interval:
    """A mean and the interval around it; low and high are None when n is below 2."""

    mean: float
    low: float | None
    high: float | None
    n: int  # independent values behind the mean

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and zero lies outside it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


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


def student_quantile(probability: float, df: int) -> float:
    """t such that P(|T| <= t) = probability, for Student's T with df degrees of freedom.

    Raises ValueError unless 0 <= probability < 1 and df >= 1.
    """
    from scipy import stats

    if not 0 <= probability < 1 or df < 1:
        raise ValueError(f"no t quantile for probability={probability}, df={df}")
    return float(stats.t.isf((1 - probability) / 2, df))


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean of independent values with Student's t interval; a single value has none.

    Raises ValueError when there is no value.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, None, 1)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = student_quantile(confidence, n - 1) * spread / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def student_p(values: Sequence[float], null: float = 0.0) -> float:
    """Two-sided p of Student's t test that the mean is `null`; 1 for fewer than two values."""
    from scipy import stats

    n = len(values)
    if n < 2:
        return 1.0
    mean = math.fsum(values) / n
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    if error == 0.0:
        return 1.0 if mean == null else 0.0
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


def seeds_needed(
    spread: float, effect: float, *, power: float = 0.8, confidence: float = CONFIDENCE
) -> int | None:
    """How many pre-training seeds a paired t test needs to show an effect.

    Args:
        spread: standard deviation over seeds of the paired differences.
        effect: the true mean difference, in the same unit; its sign does not matter.
        power: probability that the test shows it.
        confidence: of the two-sided test.

    Returns:
        The smallest n >= 2 with |effect| sqrt(n) / spread >= t(confidence) + t(power), both of
        n - 1 degrees of freedom (the usual shifted-t approximation); None when that exceeds
        MOST_SEEDS, or when the effect is 0.
    """
    from scipy import stats

    if effect == 0.0:
        return None

    def seen(n: int) -> bool:
        reach = student_quantile(confidence, n - 1) + student_quantile(2 * power - 1, n - 1)
        return abs(effect) * math.sqrt(n) >= spread * reach

    reach = float(stats.norm.ppf((1 + confidence) / 2) + stats.norm.ppf(power))
    least = (reach * spread / effect) ** 2  # a lower bound: t quantiles are larger
    if least > MOST_SEEDS:
        return None
    n = max(2, math.floor(least))
    while not seen(n):
        n += 1
    return n


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


def paired_bootstrap(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    *,
    draws: int = 2000,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Mean of first - second with a percentile interval, resampled by test sample and by seed.

    Args:
        first: a score for each seed and test sample, [S, N]; 1 for right and 0 for wrong.
        second: the same of the other condition: same seeds, same samples, same order.
        draws: resamples; each draws N test samples (shared by all seeds) and S seeds.
        confidence: share of the draws inside the interval.
        seed: of the resampling.

    Returns:
        An `Interval` with n = S; for S = 1 it covers the choice of test samples alone.

    Raises:
        ValueError: the two differ in shape or are empty.
    """
    if first.shape != second.shape or first.ndim != 2 or first.size == 0:
        raise ValueError(
            f"paired scores need one shape [seeds, samples], not {first.shape} and {second.shape}"
        )
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    (found,) = bootstrap([{"": difference}], draws=draws, confidence=confidence, seed=seed)
    return found


def bootstrap(
    contrasts: Sequence[Mapping[str, NDArray[np.float64]]],
    *,
    draws: int = 2000,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> list[Interval]:
    """Percentile intervals of several contrasts, resampled by test sample and by seed.

    Args:
        contrasts: for each, its test sets by name, each [S, N]: what one sample of one seed adds to
            the contrast, such that the sum over test sets of the mean over samples is the seed's
            value. Test sets of one name hold the same samples in the same order in every contrast.
        draws: resamples; each draws N samples of each test set (shared by all seeds and contrasts)
            and S seeds.
        confidence: share of the draws inside the interval.
        seed: of the resampling.

    Returns:
        For each contrast its mean and interval, n = S; for S = 1 the interval covers the choice
        of test samples alone.
    """
    generator = np.random.default_rng(seed)
    drawn = [np.zeros((draws, len(next(iter(one.values()))))) for one in contrasts]
    for name in sorted({name for one in contrasts for name in one}):
        members = [(at, one[name]) for at, one in enumerate(contrasts) if name in one]
        samples = members[0][1].shape[1]
        wide = np.concatenate(
            [difference for _, difference in members]
        ).T  # [N, all seeds of all contrasts]
        for start in range(0, draws, _CHUNK):
            count = min(_CHUNK, draws - start)
            means = _resamples(generator, samples, count) @ wide / samples
            column = 0
            for at, difference in members:
                drawn[at][start : start + count] += means[:, column : column + len(difference)]
                column += len(difference)
    tail = (1 - confidence) / 2
    found: list[Interval] = []
    for one, values in zip(contrasts, drawn, strict=True):
        seeds = values.shape[1]
        by_seed = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws)
        low, high = np.quantile((values * by_seed).sum(axis=1) / seeds, [tail, 1 - tail])
        mean = math.fsum(float(difference.mean()) for difference in one.values())
        found.append(Interval(mean, float(low), float(high), seeds))
    return found


def _resamples(generator: np.random.Generator, samples: int, count: int) -> NDArray[np.float64]:
    """How often each sample is drawn in each of `count` resamples, [count, samples].

    Counts the draws themselves, which is ten times as fast as numpy's multinomial distribution.
    """
    drawn = generator.integers(0, samples, size=(count, samples))
    counts = [np.bincount(row, minlength=samples) for row in drawn]
    return np.array(counts, np.float64)


def pearson(x: Sequence[float], y: Sequence[float], confidence: float = CONFIDENCE) -> Correlation:
    """Pearson's correlation of two equally long sequences, with the interval by Fisher's z.

    r is None for fewer than two points or a constant side; the interval is None for fewer than four
    points or a perfect correlation.
    Raises ValueError for unequal lengths.
    """
    if len(x) != len(y):
        raise ValueError(f"correlation of {len(x)} and {len(y)} values; give as many of each")
    n = len(x)
    if n < 2 or min(x) == max(x) or min(y) == max(y):
        return Correlation(None, None, None, n)
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # of a nearly constant side
        found = stats.pearsonr(x, y)
    r = float(found.statistic)
    if not math.isfinite(r):
        return Correlation(None, None, None, n)
    if n < 4 or abs(r) == 1.0:
        return Correlation(r, None, None, n)
    low, high = found.confidence_interval(confidence)
    return Correlation(r, float(low), float(high), n)

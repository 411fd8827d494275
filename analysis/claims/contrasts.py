"""The comparisons that test a claim: one value for each pre-training seed.

Takes a `Readout`, gives `Comparison`s. The pre-training seed is the unit of replication. Where the
predictions are known, a comparison also holds what each test sample contributes. Knows nothing of
verdicts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from analysis.averages import Average, Term, contrast
from analysis.readout import Readout
from analysis.schemas import CLEAN
from analysis.statistics import Interval, crossed_interval, pearson

Unit = Literal["points", "nats", "z"]  # of score; of SVE and LSVR; Fisher's z of a correlation

_MOST_R = 0.999999  # Fisher's z of a correlation is capped there: that of 1 is infinite

OF_PIXELS = ("miou", "pixel_accuracy")
"""Metrics of masks, whose test samples are images."""

Samples = Mapping[str, NDArray[np.float64]]  # digest of a test set -> [seeds, samples]


@dataclass(frozen=True)
class Comparison:
    """One comparison that tests a claim."""

    label: str
    unit: Unit
    direction: int  # +1 or -1: the side of zero on which the claim puts it
    values: Mapping[int, float]  # pre-training seed -> the comparison's value
    samples: Samples = field(default_factory=dict)  # empty: the predictions are not known
    correlations: tuple[float, ...] = ()  # Pearson's r in each seed, where `values` are its z


@dataclass(frozen=True)
class Side:
    """One method at one noise level in a comparison, with its weight."""

    weight: float
    method: str
    level: float


class Contrasts:
    """Builds the comparisons of one readout; keeps averages that several claims need."""

    def __init__(self, readout: Readout) -> None:
        self.readout = readout
        self.scores = lru_cache(maxsize=None)(readout.scores)
        self._correct = _shares_correct(readout)

    def levels(self, domain: str, method: str) -> list[float]:
        """The noise levels at which a method has an average."""
        return sorted(self.scores(domain, method).levels)

    def of_scores(
        self, label: str, direction: int, domain: str, sides: Iterable[Side]
    ) -> list[Comparison]:
        """A weighted sum of scores, each task's own metric, over shared tasks, in points.

        Empty when the sides share no task or no seed.
        """
        sides = list(sides)
        found = contrast(
            Term(side.weight, self.scores(domain, side.method), side.level) for side in sides
        )
        if found is None:
            return []
        seeds = sorted(found.values)
        samples = self._samples(sides, found.members, seeds)
        return [Comparison(label, "points", direction, found.values, samples)]

    def of_feature_space(
        self, label: str, direction: int, found: Average, level: float
    ) -> list[Comparison]:
        """SVE or LSVR at a noise level minus that of the clean encoder, in nats.

        Empty when the two levels share no seed or no data set.
        """
        difference = contrast([Term(1, found, level), Term(-1, found, CLEAN)])
        if difference is None:
            return []
        return [Comparison(label, "nats", direction, difference.values)]

    def of_correlation(
        self, label: str, direction: int, space: Average, scores: Average
    ) -> list[Comparison]:
        """Fisher's z of Pearson's r over the noise levels, in each seed that has four or more.

        Empty when no seed has four levels, the fewest that `pearson` takes.
        """
        values: dict[int, float] = {}
        shared = sorted(space.levels.keys() & scores.levels.keys())
        by_level = {level: (space.seed_means(level), scores.seed_means(level)) for level in shared}
        seeds = {seed for x, y in by_level.values() for seed in x.keys() & y.keys()}
        correlations: list[float] = []
        for seed in sorted(seeds):
            points = [(x[seed], y[seed]) for x, y in by_level.values() if seed in x and seed in y]
            r = pearson([x for x, _ in points], [y for _, y in points]).r
            if r is not None:
                values[seed] = math.atanh(max(min(r, _MOST_R), -_MOST_R))
                correlations.append(r)
        if not values:
            return []
        return [Comparison(label, "z", direction, values, correlations=tuple(correlations))]

    def _samples(
        self, sides: Sequence[Side], members: Sequence[str], seeds: Sequence[int]
    ) -> Samples:
        """What each test sample adds to a comparison; empty unless every prediction is known."""
        metrics = self.readout.metrics()
        if any(metrics.get(task) not in ("accuracy", *OF_PIXELS) for task in members):
            return {}  # a sample adds nothing of its own to F1 or to a correlation
        sums: dict[str, NDArray[np.float64]] = {}
        for task in members:
            digests: set[str] = set()
            rows: list[NDArray[np.float64]] = []
            for seed in seeds:
                row: NDArray[np.float64] | None = None
                for side in sides:
                    known = self._correct.get((side.level, seed, task, side.method))
                    if known is None:
                        return {}
                    digests.add(known[0])
                    if len(digests) > 1:
                        return {}  # other samples: they cannot be paired
                    row = side.weight * known[1] + (0.0 if row is None else row)
                assert row is not None, "a comparison has sides"
                rows.append(row)
            (digest,) = digests
            # Tasks over the same samples are resampled together: their samples are not independent.
            sums[digest] = sums.get(digest, 0.0) + 100 / len(members) * np.stack(rows)
        return sums


HeadKey = tuple[float, int, str, str]  # noise level, pre-training seed, task, method


def _shares_correct(readout: Readout) -> dict[HeadKey, tuple[str, NDArray[np.float64]]]:
    """For each head: the digest of its test samples, and how often each was classified correctly.

    Of masks: what each image adds to the score. The share [samples] is over tuning seeds. Heads
    whose tuning seeds were tested on different samples are left out.
    """
    gathered: dict[HeadKey, list[tuple[str, NDArray[np.float64]]]] = defaultdict(list)
    table = readout.predictions
    names = ("noise", "pretrain_seed", "task", "method", "samples")
    columns = [table[name].to_pylist() for name in names]
    lists, shares = table["correct"].combine_chunks(), table["shares"].combine_chunks()
    for at, (noise, seed, task, method, digest) in enumerate(zip(*columns, strict=True)):
        own = lists[at] if lists[at].is_valid else shares[at]
        correct = own.values.to_numpy(zero_copy_only=False).astype(np.float64)
        gathered[noise, seed, task, method].append((digest, correct))
    return {
        key: (found[0][0], np.mean([correct for _, correct in found], axis=0))
        for key, found in gathered.items()
        if len({digest for digest, _ in found}) == 1
    }


def sample_interval(comparison: Comparison) -> Interval | None:
    """The interval over seeds and test samples; None where the predictions are not known."""
    return crossed_interval(comparison.samples) if comparison.samples else None

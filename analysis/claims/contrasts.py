"""What a claim is tested on: contrasts of averages, seed by seed, and the same by test sample.

Takes a `Readout`, gives `Part`s: one number a pre-training seed (the unit of replication), the side
of zero that the claim says it lies on, and, where the test samples' answers are known, what is
needed to resample them. A part knows nothing of verdicts.
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
from analysis.statistics import Interval, bootstrap, pearson

Unit = Literal["points", "nats", "z"]  # of accuracy; of SVE and LSVR; Fisher's z of a correlation

CLEAN = 0.0
SLIGHT = 10.0  # percent; what the papers call slight noise
_MOST_R = 0.999999  # a correlation beyond it has no finite z

Samples = Mapping[str, NDArray[np.float64]]  # test set's digest -> [seeds, samples]


@dataclass(frozen=True)
class Part:
    """One comparison of a claim."""

    label: str
    unit: Unit
    direction: int  # +1 or -1: the side of zero on which the claim puts it
    values: Mapping[int, float]  # pre-training seed -> the comparison's value
    samples: Samples = field(default_factory=dict)  # empty: answers not known
    shown: tuple[float, ...] = ()  # other numbers that its label speaks of


@dataclass(frozen=True)
class Side:
    """One method at one noise level in a comparison, with its weight."""

    weight: float
    method: str
    level: float


class Evidence:
    """A readout, with what claims ask of it again and again kept at hand."""

    def __init__(self, readout: Readout) -> None:
        self.readout = readout
        self.accuracy = lru_cache(maxsize=None)(readout.accuracy)
        self._answers = _answers(readout)

    def levels(self, domain: str, method: str) -> list[float]:
        """The noise levels at which a method has an average."""
        return sorted(self.accuracy(domain, method).levels)

    def part(self, label: str, direction: int, domain: str, sides: Iterable[Side]) -> list[Part]:
        """A weighted sum of accuracies in points, over shared tasks; empty where none is shared."""
        sides = list(sides)
        found = contrast(
            Term(side.weight, self.accuracy(domain, side.method), side.level) for side in sides
        )
        if found is None:
            return []
        seeds = sorted(found.values)
        samples = self._samples(sides, found.members, seeds)
        return [Part(label, "points", direction, found.values, samples)]

    def space_part(self, label: str, direction: int, found: Average, level: float) -> list[Part]:
        """A level's feature space minus the clean encoder's, in nats."""
        apart = contrast([Term(1, found, level), Term(-1, found, CLEAN)])
        return [] if apart is None else [Part(label, "nats", direction, apart.values)]

    def correlation(
        self, label: str, direction: int, space: Average, accuracy: Average
    ) -> list[Part]:
        """Fisher's z of Pearson's r over the noise levels, in each seed that has three or more."""
        values: dict[int, float] = {}
        shared = sorted(space.levels.keys() & accuracy.levels.keys())
        by_level = {
            level: (space.seed_means(level), accuracy.seed_means(level)) for level in shared
        }
        seeds = {seed for x, y in by_level.values() for seed in x.keys() & y.keys()}
        shown: list[float] = []
        for seed in sorted(seeds):
            points = [(x[seed], y[seed]) for x, y in by_level.values() if seed in x and seed in y]
            r = pearson([x for x, _ in points], [y for _, y in points]).r
            if len(points) >= 3 and r is not None:
                values[seed] = math.atanh(max(min(r, _MOST_R), -_MOST_R))
                shown.append(r)
        return [Part(label, "z", direction, values, shown=tuple(shown))] if values else []

    def _samples(
        self, sides: Sequence[Side], members: Sequence[str], seeds: Sequence[int]
    ) -> Samples:
        """What each test sample adds to a comparison; empty unless every answer is known."""
        sums: dict[str, NDArray[np.float64]] = {}
        for task in members:
            digests: set[str] = set()
            rows: list[NDArray[np.float64]] = []
            for seed in seeds:
                row: NDArray[np.float64] | None = None
                for side in sides:
                    known = self._answers.get((side.level, seed, task, side.method))
                    if known is None:
                        return {}
                    digests.add(known[0])
                    if len(digests) > 1:
                        return {}  # not the same samples: no pairs
                    row = side.weight * known[1] + (0.0 if row is None else row)
                assert row is not None, "a comparison has sides"
                rows.append(row)
            (digest,) = digests
            # Tasks over the same images are resampled together: their samples are not independent.
            sums[digest] = sums.get(digest, 0.0) + 100 / len(members) * np.stack(rows)
        return sums


Place = tuple[float, int, str, str]


def _answers(readout: Readout) -> dict[Place, tuple[str, NDArray[np.float64]]]:
    """(level, seed, task, method) -> digest of the samples, share of tuning seeds that were right.

    Left out where tuning seeds were tested on different samples.
    """
    gathered: dict[Place, list[tuple[str, NDArray[np.float64]]]] = defaultdict(list)
    table = readout.predictions
    names = ("noise", "pretrain_seed", "task", "method", "samples")
    columns = [table[name].to_pylist() for name in names]
    lists = table["correct"].combine_chunks()
    for at, (noise, seed, task, method, digest) in enumerate(zip(*columns, strict=True)):
        correct = lists[at].values.to_numpy(zero_copy_only=False).astype(np.float64)
        gathered[noise, seed, task, method].append((digest, correct))
    return {
        place: (found[0][0], np.mean([correct for _, correct in found], axis=0))
        for place, found in gathered.items()
        if len({digest for digest, _ in found}) == 1
    }


def resampled(parts: Sequence[Part]) -> list[Interval | None]:
    """The bootstrap interval of each part, all from the same draws; None without answers."""
    known = [part for part in parts if part.samples]
    intervals = iter(bootstrap([part.samples for part in known]) if known else [])
    return [next(intervals) if part.samples else None for part in parts]

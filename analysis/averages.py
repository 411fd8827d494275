"""Averages with named members: over tasks inside a seed first, then over seeds.

Takes single scores, gives for each noise level the scores that are comparable with those of every
other level. A task that lacks a score anywhere is left out everywhere, and named: a mean over three
tasks at one level and two at another would show the missing task, not the noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from analysis.statistics import Difference, Interval, mean_interval, paired_difference


@dataclass(frozen=True)
class Score:
    """One measured number, and what it was measured on."""

    noise: float  # level in percent
    seed: int  # of pre-training: the unit of replication
    member: str  # of an average: a task or a data set
    value: float
    tuning_seed: int = 0


Bounds = tuple[float, float]
"""The least and the most that can be measured."""
PERCENT: Bounds = (0.0, 100.0)


@dataclass(frozen=True)
class Average:
    """Scores by noise level. They are balanced: every level and seed has every member."""

    members: tuple[str, ...]  # sorted
    left_out: tuple[str, ...]  # measured somewhere, but not at every level and seed
    levels: Mapping[float, Mapping[tuple[int, str], float]]  # level -> (seed, member) -> value
    bounds: Bounds | None = None  # of what can be measured; no interval reaches beyond

    def seed_means(self, noise: float) -> dict[int, float]:
        """Seed -> mean over the members at one level; empty for an unknown level."""
        scores = self.levels.get(noise, {})
        return {
            seed: math.fsum(scores[seed, member] for member in self.members) / len(self.members)
            for seed in sorted({seed for seed, _ in scores})
        }

    def interval(self, noise: float) -> Interval | None:
        """Mean and interval over seeds at one level; None when nothing was measured there.

        The t interval ends at what is possible: no accuracy is above 100 %.
        """
        means = self.seed_means(noise)
        if not means:
            return None
        found = mean_interval(list(means.values()))
        if self.bounds is None or found.low is None or found.high is None:
            return found
        least, most = self.bounds
        return replace(found, low=max(found.low, least), high=min(found.high, most))

    def change(self, noise: float, clean: float = 0.0) -> Difference | None:
        """This level minus the clean one, paired by seed and member; None when no pair exists."""
        return _difference(self.levels.get(noise, {}), self.levels.get(clean, {}))

    def against(self, other: Average, noise: float) -> Difference | None:
        """This average minus another at one level, over shared seeds and members."""
        return _difference(self.levels.get(noise, {}), other.levels.get(noise, {}))

    def against_overall(self, other: Average) -> Difference | None:
        """This average minus another over all shared levels, paired by level too."""
        return _difference(self._flat(), other._flat())

    def _flat(self) -> dict[tuple[int, str], float]:
        return {
            (seed, f"{member} at {noise:g} %"): value
            for noise, scores in self.levels.items()
            for (seed, member), value in scores.items()
        }


def _difference(
    first: Mapping[tuple[int, str], float], second: Mapping[tuple[int, str], float]
) -> Difference | None:
    try:
        return paired_difference(first, second)
    except ValueError:
        return None  # the caller shows a gap


@dataclass(frozen=True)
class Term:
    """One average at one noise level in a contrast, with its weight."""

    weight: float
    average: Average
    level: float


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of averages in each seed, over the members that all of them have."""

    members: tuple[str, ...]
    values: Mapping[int, float]  # seed -> weighted sum of the means over the members


def contrast(terms: Iterable[Term]) -> Contrast | None:
    """The weighted sum of some averages, paired by seed and member; None when none is shared.

    "10 % minus clean" is two terms of one average, weights 1 and -1; "the same for one method minus
    another's" is four.
    """
    terms = list(terms)
    held = [set(term.average.members) for term in terms]
    seeds = [{seed for seed, _ in term.average.levels.get(term.level, {})} for term in terms]
    members = tuple(sorted(set.intersection(*held))) if held else ()
    shared = sorted(set.intersection(*seeds)) if seeds else []
    if not members or not shared:
        return None
    values = {
        seed: math.fsum(
            term.weight * term.average.levels[term.level][seed, member]
            for term in terms
            for member in members
        )
        / len(members)
        for seed in shared
    }
    return Contrast(members, values)


def average(scores: Iterable[Score], bounds: Bounds | None = None) -> Average:
    """Balance scores over levels and seeds, and average over tuning seeds inside each seed.

    A member stays when it has a score at every (level, seed, tuning seed) that has any score.
    Raises ValueError for two scores of one member at the same level and seeds.
    """
    found: dict[tuple[float, int, int], dict[str, float]] = {}
    for score in scores:
        unit = found.setdefault((score.noise, score.seed, score.tuning_seed), {})
        if score.member in unit:
            raise ValueError(
                f"{score.member} has two scores at noise {score.noise:g} %, seed {score.seed}, "
                f"tuning seed {score.tuning_seed}; an average counts each member once"
            )
        unit[score.member] = score.value
    everyone = sorted({member for unit in found.values() for member in unit})
    members = tuple(m for m in everyone if all(m in unit for unit in found.values()))
    gathered: dict[float, dict[tuple[int, str], list[float]]] = {}
    for (noise, seed, _), unit in sorted(found.items()):
        for member in members:
            gathered.setdefault(noise, {}).setdefault((seed, member), []).append(unit[member])
    return Average(
        members=members,
        left_out=tuple(m for m in everyone if m not in members),
        levels={
            noise: {key: math.fsum(values) / len(values) for key, values in scores.items()}
            for noise, scores in gathered.items()
        },
        bounds=bounds,
    )

"""Averages that name their members: over tasks inside a seed first, then over seeds.

Takes single scores, gives for each noise level the scores that may be compared with every other
level's. A task that lacks a score anywhere is left out everywhere, and named: a mean over three
tasks at one level and two at another would show the missing task, not the noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from analysis.statistics import Difference, Interval, mean_interval, paired_difference


@dataclass(frozen=True)
class Score:
    """One measured number and its place."""

    noise: float  # level in percent
    seed: int  # of pre-training: the unit of replication
    member: str  # what an average is over: a task, an image set
    value: float
    tuning_seed: int = 0


@dataclass(frozen=True)
class Average:
    """Scores by level, balanced: every level and seed in it holds every member."""

    members: tuple[str, ...]  # sorted
    left_out: tuple[str, ...]  # measured somewhere, but not at every level and seed
    levels: Mapping[float, Mapping[tuple[int, str], float]]  # level -> (seed, member) -> value

    def seed_means(self, noise: float) -> dict[int, float]:
        """The mean over the members in each seed of one level; empty for an unknown level."""
        scores = self.levels.get(noise, {})
        return {
            seed: math.fsum(scores[seed, member] for member in self.members) / len(self.members)
            for seed in sorted({seed for seed, _ in scores})
        }

    def interval(self, noise: float) -> Interval | None:
        """Mean and interval over seeds at one level; None where nothing was measured."""
        means = self.seed_means(noise)
        return mean_interval(list(means.values())) if means else None

    def change(self, noise: float, clean: float = 0.0) -> Difference | None:
        """This level minus the clean one, paired by seed and member; None without a pair."""
        return _difference(self.levels.get(noise, {}), self.levels.get(clean, {}))

    def against(self, other: Average, noise: float) -> Difference | None:
        """This average minus another at one level, over the seeds and members both hold."""
        return _difference(self.levels.get(noise, {}), other.levels.get(noise, {}))

    def against_overall(self, other: Average) -> Difference | None:
        """This average minus another over all levels both hold, paired by level too."""
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
        return None  # an absent comparison is shown as a gap


@dataclass(frozen=True)
class Term:
    """One average at one noise level in a contrast, with its weight."""

    weight: float
    average: Average
    level: float


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of averages in each seed, over the members that all of them hold."""

    members: tuple[str, ...]
    values: Mapping[int, float]  # seed -> weighted sum of the means over the members


def contrast(terms: Iterable[Term]) -> Contrast | None:
    """The weighted sum of some averages, paired by seed and member; None where nothing is shared.

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


def average(scores: Iterable[Score]) -> Average:
    """Balance scores over levels and seeds, tuning seeds averaged inside each.

    A member stays when it was measured in every (level, seed, tuning seed) in which anything was.
    Raises ValueError for two scores in one place: an average counts a member once.
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
            noise: {place: math.fsum(values) / len(values) for place, values in scores.items()}
            for noise, scores in gathered.items()
        },
    )

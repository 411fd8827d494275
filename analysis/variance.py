"""What varies: the spread of a score over replicates, tuning seeds and test samples.

Takes a `Readout`, gives standard deviations in points of the mean over tasks. The components are
method-of-moments estimates of a balanced nested design: replicates, and tuning seeds within them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc

from analysis.claims.contrasts import Contrasts, Side
from analysis.readout import Readout
from analysis.schemas import CLEAN
from analysis.statistics import standard_deviation


@dataclass(frozen=True)
class Components:
    """The standard deviations of one method's mean over the tasks of a domain, in points.

    None where the experiment does not show it. At noisy levels, `replicate` has the part of the
    noise draw if each replicate has its own, and that of tuning if each has its own tuning seed.
    """

    domain: str
    method: str
    noisy: bool  # pooled over the noisy levels; else of the clean level
    replicates: int
    replicate: float | None  # between replicates; None for fewer than two
    tuning: float | None  # between tuning seeds of a replicate; None for fewer than two
    sample: float | None  # by the choice of test samples; None where predictions are not known


def components(readout: Readout) -> Iterator[Components]:
    """The components of every domain and method, for the clean and for the noisy levels."""
    contrasts = Contrasts(readout)
    for domain in readout.domains():
        for method in readout.methods():
            levels = contrasts.levels(domain, method)
            for noisy in (False, True):
                if chosen := [level for level in levels if (level != CLEAN) == noisy]:
                    yield _components(contrasts, domain, method, chosen)


def _components(
    contrasts: Contrasts, domain: str, method: str, levels: Sequence[float]
) -> Components:
    values = _by_tuning_seed(contrasts.readout, domain, method, levels)
    tunings = min((len(each) for one in values for each in one), default=0)
    replicates = min(map(len, values), default=0)
    tuning = replicate = None
    if tunings >= 2:
        tuning = _mean(standard_deviation(each) ** 2 for one in values for each in one)
    if replicates >= 2:
        means = ([math.fsum(each) / len(each) for each in one] for one in values)
        between = _mean(standard_deviation(one) ** 2 for one in means)
        replicate = max(0.0, between - (tuning or 0.0) / tunings)
    samples = [_of_samples(contrasts, domain, method, level) for level in levels]
    known = [one for one in samples if one is not None]
    return Components(
        domain,
        method,
        levels[0] != CLEAN,
        replicates,
        None if replicate is None else math.sqrt(replicate),
        None if tuning is None else math.sqrt(tuning),
        math.sqrt(_mean(known)) if len(known) == len(levels) else None,
    )


def _by_tuning_seed(
    readout: Readout, domain: str, method: str, levels: Sequence[float]
) -> list[list[list[float]]]:
    """The mean over tasks by level, replicate and tuning seed."""
    alone = [readout]
    if len(readout.question.tuning_seeds) > 1:
        cells, seed = readout.cells, pc.field("tuning_seed")
        found = sorted(set(cells["tuning_seed"].to_pylist()))
        alone = [replace(readout, cells=cells.filter(seed == each)) for each in found]
    scores = [one.scores(domain, method) for one in alone]
    return [
        [[found[seed] for found in means if seed in found] for seed in sorted(set().union(*means))]
        for means in ([one.seed_means(level) for one in scores] for level in levels)
    ]


def _of_samples(contrasts: Contrasts, domain: str, method: str, level: float) -> float | None:
    """The variance of a mean over tasks by the choice of the test samples."""
    found = contrasts.of_scores("", 1, domain, [Side(1.0, method, level)])
    if not found or not found[0].samples:
        return None
    return math.fsum(
        float(np.var(rows.mean(axis=0), ddof=1)) / rows.shape[1]
        for rows in found[0].samples.values()
        if rows.shape[1] > 1
    )


def _mean(values: Iterator[float] | Sequence[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)

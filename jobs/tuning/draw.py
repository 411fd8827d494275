"""Draws the configurations of a cell from its method's search space.

A draw depends only on the tuning seed and on the name of the hyper-parameter. All methods of a seed
get the same number of configurations, and the same values where their domains are equal. A larger
budget begins with the draws of a smaller one. A grid gives all of its combinations. The domains are
those of Ray Tune, with the same meaning.
"""

from __future__ import annotations

import hashlib
import json
import math
from itertools import product

import numpy as np
from ray import tune

from jobs.contract import Work
from jobs.tuning.search_space import (
    Choice,
    Domain,
    Grid,
    LogUniform,
    QUniform,
    RandInt,
    Space,
    Uniform,
)
from jobs.tuning.trained import Configuration, configuration, step_of


def draw(space: Space, configurations: int, seed: int) -> tuple[Configuration, ...]:
    """`configurations` points of a space, in an order that depends only on the seed.

    A space with grids gives all their combinations instead; the grid of the last field varies
    fastest.
    """
    grids = {n: domain.grid for n, domain in space.domains.items() if isinstance(domain, Grid)}
    count = math.prod(map(len, grids.values())) if grids else configurations
    drawn = {
        name: _draw_one(domain, count, seed, name)
        for name, domain in space.domains.items()
        if not isinstance(domain, Grid)
    }
    points = product(*grids.values()) if grids else iter([()] * count)
    return tuple(
        configuration(
            {n: values[i] for n, values in drawn.items()} | dict(zip(grids, point, strict=True))
        )
        for i, point in enumerate(points)
    )


def _draw_one(domain: Domain, count: int, seed: int, name: str) -> list[float]:
    """`count` draws of one hyper-parameter, from its own random generator."""
    digest = hashlib.blake2b(json.dumps([seed, "space", name]).encode(), digest_size=8).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "little"))
    match domain:
        case LogUniform(loguniform=(low, high)):
            sampled = tune.loguniform(low, high)
        case Uniform(uniform=(low, high)):
            sampled = tune.uniform(low, high)
        case QUniform(quniform=(low, high, step)):
            sampled = tune.quniform(low, high, step)
        case RandInt(randint=(least, limit)):
            sampled = tune.randint(least, limit)
        case Choice(choice=values) | Grid(grid=values):
            sampled = tune.choice(list(values))
        case fixed:
            return [float(fixed)] * count
    return [float(sampled.sample(random_state=generator)) for _ in range(count)]


def configurations_of(work: Work) -> tuple[Configuration, ...] | None:
    """The configurations of a cell; None when Optuna proposes them batch by batch."""
    step = step_of(work)
    if step.settings.search == "optuna" and step.method.head != "zero_shot":
        return None
    return draw(step.method.space, step.settings.configurations, step.seed)

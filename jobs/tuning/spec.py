"""What an experiment file can say of adaptation: methods, search spaces, budgets."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from jobs.contract import NOT_SEMANTIC, Slug, Spec
from jobs.tasks.spec import Task


class LogUniform(Spec):
    """Tune's `loguniform(low, high)`."""

    loguniform: tuple[float, float]

    @model_validator(mode="after")
    def _ordered(self) -> LogUniform:
        low, high = self.loguniform
        if not 0 < low < high:
            raise ValueError(f"loguniform [{low:g}, {high:g}] needs 0 < low < high")
        return self


class Uniform(Spec):
    """Tune's `uniform(low, high)`."""

    uniform: tuple[float, float]

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        low, high = self.uniform
        if not low < high:
            raise ValueError(f"uniform [{low:g}, {high:g}] needs low < high")
        return self


class Choice(Spec):
    """Tune's `choice(values)`."""

    choice: tuple[float, ...] = Field(min_length=1)


Domain = LogUniform | Uniform | Choice | float
"""A Tune domain, or a fixed value."""


def _bounds(domain: Domain) -> tuple[float, float]:
    """The least and the greatest value a domain can give."""
    match domain:
        case LogUniform(loguniform=bounds) | Uniform(uniform=bounds):
            return bounds
        case Choice(choice=values):
            return min(values), max(values)
        case fixed:
            return fixed, fixed


class Space(Spec):
    """The hyper-parameters of one method. Loss weights of 0 turn a regulariser off."""

    lr: Domain
    weight_decay: Domain = 0.0
    mse: Domain = 0.0
    cov: Domain = 0.0
    svd: Domain = 0.0
    scale: Domain = Field(1.0, description="multiplies the three weights of one configuration")

    @model_validator(mode="after")
    def _in_range(self) -> Space:
        for name in type(self).model_fields:
            low, high = _bounds(getattr(self, name))
            if not (low >= 0 and high < math.inf) or (name == "lr" and low == 0):
                least = "above 0" if name == "lr" else "0 or more"
                raise ValueError(f"{name} spans [{low:g}, {high:g}]; must be finite and {least}")
        return self

    @property
    def regularised(self) -> bool:
        """Whether any configuration can weigh a regulariser."""
        return any(_bounds(domain)[1] > 0 for domain in (self.mse, self.cov, self.svd))


class Method(Spec):
    """A head and how its hyper-parameters are searched.

    `linear`: a linear probe. `paper`, `released`: the two-layer head, the losses and the views of
    that name (paper 1 section 4; the authors' code). The plain MLP is a two-layer head whose
    regularisers weigh nothing.
    """

    head: Literal["linear", "paper", "released"]
    space: Space

    @model_validator(mode="after")
    def _has_something_to_regularise(self) -> Method:
        if self.head == "linear" and self.space.regularised:
            raise ValueError(
                "a linear head has no output to regularise; leave out mse, cov and svd"
            )
        return self


class Tuning(Spec):
    """The tuning section of an experiment file. Budgets are equal for all methods by design."""

    methods: dict[Slug, Method] = Field(min_length=1)
    configurations: int = Field(8, ge=1, description="drawn for each method in each cell")
    epochs: int = Field(30, ge=1)
    batch_size: int = Field(64, ge=2, description="samples a step; each brings all its views")
    fractions: tuple[Annotated[float, Field(gt=0, le=100)], ...] = (100.0,)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0,)


class TuneStep(Spec):
    """One cell: a task, a method, a share of the training rows and a tuning seed.

    For an OOD task the head comes from the cell it is trained on (an input step) and is only
    evaluated here: an added OOD task re-runs nothing.
    """

    task: Task
    method_name: Slug
    method: Method
    fraction: float
    seed: int
    configurations: int
    epochs: int
    batch_size: int
    cpus: Annotated[int, NOT_SEMANTIC] = 1

    @model_validator(mode="after")
    def _consistent(self) -> TuneStep:
        if self.task.domain == "ood" and self.task.trained_on is None:
            raise ValueError(f"OOD task {self.task.name} must name the task it is trained on")
        return self

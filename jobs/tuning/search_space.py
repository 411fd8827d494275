"""Search spaces as an experiment file writes them: Ray Tune's domains, grids and fixed values.

Takes the `space` of a method; gives its domains by hyper-parameter. Ranges are checked when the
file is read. Draws nothing (see `jobs.tuning.draw`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from jobs.contract import SILENT, Spec


class LogUniform(Spec):
    """Tune's `loguniform(low, high)`."""

    loguniform: tuple[float, float] = Field(description="low and high, both above 0")

    @model_validator(mode="after")
    def _ordered(self) -> LogUniform:
        low, high = self.loguniform
        if not 0 < low < high:
            raise ValueError(f"loguniform [{low:g}, {high:g}] needs 0 < low < high")
        return self


class Uniform(Spec):
    """Tune's `uniform(low, high)`."""

    uniform: tuple[float, float] = Field(description="low and high")

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        low, high = self.uniform
        if not low < high:
            raise ValueError(f"uniform [{low:g}, {high:g}] needs low < high")
        return self


class QUniform(Spec):
    """Tune's `quniform(low, high, q)`: uniform, rounded to multiples of q."""

    quniform: tuple[float, float, float] = Field(description="low, high and the step q")

    @model_validator(mode="after")
    def _ordered(self) -> QUniform:
        low, high, step = self.quniform
        if not (low < high and 0 < step <= high - low):
            raise ValueError(
                f"quniform [{low:g}, {high:g}, {step:g}] needs low < high and 0 < q <= high - low"
            )
        for name, bound in (("low", low), ("high", high)):
            if not math.isclose(bound / step, round(bound / step)):  # Tune requires it
                raise ValueError(
                    f"quniform [{low:g}, {high:g}, {step:g}]: {name} must be a multiple of q, for "
                    f"example {step * round(bound / step):g}"
                )
        return self


class RandInt(Spec):
    """Tune's `randint(low, high)`: whole numbers from low to high - 1."""

    randint: tuple[int, int] = Field(description="low, and one more than the highest")

    @model_validator(mode="after")
    def _ordered(self) -> RandInt:
        low, high = self.randint
        if not low < high:
            raise ValueError(f"randint [{low}, {high}] needs low < high")
        return self


class Choice(Spec):
    """Tune's `choice(values)`."""

    choice: tuple[float, ...] = Field(min_length=1, description="the values")


class Grid(Spec):
    """Tune's `grid_search(values)`: every value, combined with every value of the other grids."""

    grid: tuple[float, ...] = Field(min_length=1, description="the values")


DOMAINS = ("loguniform", "uniform", "quniform", "randint", "choice", "grid")


def _named_domain(value: Any) -> Any:
    """Refuse a value that names no domain; one error instead of pydantic's one for each domain."""
    if isinstance(value, (list, tuple)):
        raise ValueError("a list of values is written as choice: [...] or grid: [...]")
    if isinstance(value, Mapping) and (len(value) != 1 or next(iter(value)) not in DOMAINS):
        near = difflib.get_close_matches(str(next(iter(value), "")), DOMAINS, n=1)
        hint = f"did you mean {near[0]}?" if near and len(value) == 1 else "or give a number"
        raise ValueError(f"a search domain has one of {', '.join(DOMAINS)}; {hint}")
    return value


def _domain_of(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"tagged-{next(iter(value))}"
    return f"tagged-{type(value).__name__.lower() if isinstance(value, Spec) else 'number'}"


Domain = Annotated[
    Annotated[LogUniform, Tag("tagged-loguniform")]
    | Annotated[Uniform, Tag("tagged-uniform")]
    | Annotated[QUniform, Tag("tagged-quniform")]
    | Annotated[RandInt, Tag("tagged-randint")]
    | Annotated[Choice, Tag("tagged-choice")]
    | Annotated[Grid, Tag("tagged-grid")]
    | Annotated[float, Tag("tagged-number")],
    Discriminator(_domain_of),
    BeforeValidator(_named_domain),
]
"""A Tune domain, or a fixed value."""


def bounds(domain: Domain) -> tuple[float, float]:
    """The smallest and the largest value of a domain."""
    match domain:
        case LogUniform(loguniform=bounds) | Uniform(uniform=bounds):
            return bounds
        case QUniform(quniform=(low, high, _)):
            return low, high
        case RandInt(randint=(low, high)):
            return low, high - 1
        case Choice(choice=values) | Grid(grid=values):
            return min(values), max(values)
        case fixed:
            return fixed, fixed


class Space(Spec):
    """The hyper-parameters of one method. Loss weights of 0 turn a regulariser off."""

    lr: Domain | None = Field(None, description="required for heads that are trained by steps")
    weight_decay: Domain = Field(0.0, description="of the head's weights")
    mse: Domain = Field(0.0, description="weight of NMTune's consistency with the frozen features")
    cov: Domain = Field(0.0, description="weight of NMTune's covariance term")
    svd: Domain = Field(0.0, description="weight of NMTune's dominant-singular-value term")
    scale: Domain = Field(1.0, description="multiplies mse, cov and svd of a configuration")
    l2: Domain | None = Field(
        None, description="required for ridge and lbfgs, their only parameter"
    )
    own: Annotated[dict[str, Domain], SILENT] = Field(
        {}, description="an extension's hyper-parameters, which a file writes beside lr"
    )

    @model_validator(mode="after")
    def _in_range(self) -> Space:
        for name in STANDARD:
            domain = getattr(self, name)
            if domain is None:
                continue
            low, high = bounds(domain)
            positive = name in ("lr", "l2")
            if low < 0 or (positive and low == 0):
                least = "above 0" if positive else "0 or more"
                raise ValueError(f"{name} spans [{low:g}, {high:g}]; it must be {least}")
        return self

    @property
    def domains(self) -> dict[str, Domain]:
        """The domains by name, without `lr` or `l2` where they are not given."""
        return {n: d for n in STANDARD if (d := getattr(self, n)) is not None} | self.own

    @property
    def regularised(self) -> bool:
        """Whether a configuration can give a regulariser a weight above 0."""
        return any(bounds(domain)[1] > 0 for domain in (self.mse, self.cov, self.svd))

    @property
    def combinations(self) -> int | None:
        """How many points the grids have together; None when a domain is drawn at random."""
        domains = self.domains.values()
        if any(not isinstance(domain, (Grid, int, float)) for domain in domains):
            return None
        return math.prod(len(domain.grid) for domain in domains if isinstance(domain, Grid))


STANDARD = tuple(name for name in Space.model_fields if name != "own")
"""The hyper-parameters that every method may have; an extension adds names of its own."""

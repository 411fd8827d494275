"""What an experiment file can say of adaptation: methods, search spaces, budgets."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from jobs.contract import NOT_SEMANTIC, Slug, Spec
from jobs.features.spec import Precision, Views
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

    `adapt` says what is trained: the head alone on frozen features, or with it the encoder itself,
    by low-rank adapters (`lora`) or whole (`ft`). On a trained encoder stands a linear head, and
    COV and SVD regularise the encoder's features (the authors' code).
    """

    head: Literal["linear", "paper", "released"]
    space: Space
    adapt: Literal["frozen", "lora", "ft"] = "frozen"
    rank: int = Field(8, ge=1, description="lora: of each adapter")
    encoder_lr: float = Field(
        1.0, ge=0, le=1, description="lora, ft: the encoder's share of the space's lr"
    )

    @property
    def reads_images(self) -> bool:
        """Whether the encoder is trained, so that features will not do."""
        return self.adapt != "frozen"

    @model_validator(mode="after")
    def _fits_the_encoder(self) -> Method:
        if self.reads_images and self.head != "linear":
            raise ValueError(f"{self.adapt} puts a linear head on the encoder, not {self.head}")
        if self.reads_images and _bounds(self.space.mse)[1] > 0:
            raise ValueError(
                f"mse compares a head's output with frozen features, and {self.adapt} has none; "
                f"leave out mse"
            )
        return self

    @model_validator(mode="after")
    def _has_something_to_regularise(self) -> Method:
        if self.head == "linear" and not self.reads_images and self.space.regularised:
            raise ValueError(
                "a linear head has no output to regularise; leave out mse, cov and svd"
            )
        return self


class Asha(Spec):
    """Tune's asynchronous successive halving over the configurations of a `lora` or `ft` cell.

    Rungs stand at `grace`, `grace * reduction`, ... epochs; a configuration goes past one when its
    validation accuracy is among the best 1/`reduction` of those that have reached it so far. Which
    those are depends on the order in which trials report.
    """

    grace: int = Field(3, ge=1, description="epochs every configuration is trained for")
    reduction: float = Field(3.0, gt=1)


class EncoderTuning(Spec):
    """What a cell that trains the encoder is told besides what every cell is."""

    views: Views
    precision: Precision = "float32"
    asha: Asha | None = None
    gpus: Annotated[float, NOT_SEMANTIC] = 0


class Tuning(Spec):
    """The tuning section of an experiment file. Budgets are equal for all methods by design."""

    methods: dict[Slug, Method] = Field(min_length=1)
    configurations: int = Field(8, ge=1, description="drawn for each method in each cell")
    epochs: int = Field(30, ge=1)
    batch_size: int = Field(64, ge=2, description="samples a step; each brings all its views")
    fractions: tuple[Annotated[float, Field(gt=0, le=100)], ...] = (100.0,)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    asha: Asha | None = Field(Asha(), description="lora, ft; none: all train for all epochs")
    gpus_per_trial: Annotated[float, NOT_SEMANTIC] = Field(0, ge=0, description="lora, ft")


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
    encoder: EncoderTuning | None = None  # of methods that read images; none: frozen features
    cpus: Annotated[int, NOT_SEMANTIC] = 1

    @model_validator(mode="after")
    def _consistent(self) -> TuneStep:
        if self.task.domain == "ood" and self.task.trained_on is None:
            raise ValueError(f"OOD task {self.task.name} must name the task it is trained on")
        if self.method.reads_images != (self.encoder is not None):
            raise ValueError(f"{self.method_name}: `encoder` goes with the methods that train it")
        return self

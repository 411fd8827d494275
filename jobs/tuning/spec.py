"""The tuning section of an experiment file, and the spec of one cell.

Both are checked when they are read; invalid ones raise ValueError.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from jobs.contract import FLAT, NOT_SEMANTIC, SILENT, Slug, Spec
from jobs.extensions.spec import Extension, Part
from jobs.features.spec import Precision as EncoderPrecision
from jobs.images.spec import Views
from jobs.tasks.spec import Task
from jobs.tuning.methods import Method
from jobs.tuning.schedule import Schedule
from jobs.tuning.search_space import Grid


class Halving(Spec):
    """Successive halving of a method's configurations.

    The cuts are after `first`, `first` * `eta`, `first` * `eta`^2, ... epochs. At a cut the better
    1/`eta` of the configurations continues; the others are dropped and stay in the results.
    Each configuration of `lora` and `ft` is a trial, and Tune's asynchronous halving (ASHA) stops
    trials at the same epochs. Which ones it stops depends on the order in which trials report.
    """

    first: int = Field(ge=1, description="epochs before the first cut")
    eta: int = Field(2, ge=2, description="one of so many configurations continues after a cut")

    def cuts(self, configurations: int, epochs: int) -> tuple[tuple[int, int], ...]:
        """(epoch, configurations that continue after it) of each cut before the last epoch."""
        found = []
        epoch, left = self.first, configurations
        while epoch < epochs and left > 1:
            left = max(1, left // self.eta)
            found.append((epoch, left))
            epoch *= self.eta
        return tuple(found)


Search = Literal["random", "grid", "optuna"]
Precision = Literal["float32", "tf32", "bf16"]
Percent = Annotated[float, Field(ge=0, le=50)]
NoiseClasses = Literal["others", "all"]


class EncoderTuning(Spec):
    """View settings and precision of a cell that trains the encoder (`lora`, `ft`)."""

    views: Views
    precision: EncoderPrecision = "float32"
    source: Annotated[Extension | None, SILENT] = None  # the file of an extension's encoder


class TuningSettings(Spec):
    """What all cells of an experiment share: budget, search, arithmetic and resources."""

    configurations: int = Field(8, ge=1, description="tried for each method in each cell")
    epochs: int = Field(30, ge=1, description="of each configuration, over the training rows")
    schedule: Annotated[Schedule, SILENT] = Field(
        "cosine", description="of the learning rate, from its base to 0 over all epochs"
    )
    batch_size: int = Field(64, ge=2, description="samples a step, each with all its views")
    search: Search = Field(
        "random",
        description="how configurations are chosen: drawn, all of a grid, or by Optuna from the "
        "results so far",
    )
    halving: Halving | None = Field(
        None, description="drop the worse configurations early; none: all train to the end"
    )
    patience: int | None = Field(
        None, ge=1, description="a configuration stops after so many epochs without improvement"
    )
    precision: Precision = Field("float32", description="of matrix products; tf32 needs a GPU")
    cpus: Annotated[int, NOT_SEMANTIC] = Field(1, ge=1, description="of a cell")
    gpus: Annotated[float, NOT_SEMANTIC] = Field(0, ge=0, description="of a cell; may be a share")
    memory_mb: Annotated[int, NOT_SEMANTIC] = Field(
        1024, ge=1, description="memory of a stack; larger stacks train in turns"
    )


class Tuning(TuningSettings):
    """The tuning section of an experiment file. All methods have the same budget by design."""

    methods: dict[Slug, Method] = Field(
        min_length=1,
        description="the methods by name; each regularised one gets a control without "
        "regularisers, unless one is among them",
    )
    fractions: tuple[Annotated[float, Field(gt=0, le=100)], ...] = Field(
        (100.0,), min_length=1, description="percent of a task's training rows that heads get"
    )
    label_noise: tuple[Percent, ...] = Field(
        (0.0,),
        min_length=1,
        description="percent of training labels made wrong; other parts stay clean",
    )
    label_noise_classes: Annotated[NoiseClasses, SILENT] = Field(
        "others",
        description="what a label is replaced by: one of the C - 1 other classes, or one of all C, "
        "so that 1/C of those drawn stay right",
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None,
        min_length=1,
        description="tuning seeds of every encoder; none: each replicate's own pre-training seed",
    )

    @field_validator("methods")
    @classmethod
    def _with_controls(cls, methods: dict[str, Method]) -> dict[str, Method]:
        """The methods, each regularised one with its control: the same with weights of 0."""
        found = dict[str, Method]()
        for name, method in methods.items():
            found[name] = method
            known = (*methods.values(), *found.values())
            if method.space.regularised and method.control not in known:
                added = f"{name}-control"
                if added in methods:
                    raise ValueError(
                        f"{added} is the name of the control of {name} (the same with weights of "
                        f"0), and here it is another method; rename it"
                    )
                found[added] = method.control
        return found

    @property
    def controls(self) -> dict[str, str]:
        """The control of each regularised method, by name."""
        return {
            name: next(other for other, one in self.methods.items() if one == method.control)
            for name, method in self.methods.items()
            if method.space.regularised
        }

    def settings(self, method: Method) -> TuningSettings:
        """The settings of a method's cells, with the number of configurations that it tries.

        The grid of a control is smaller than that of its method, and it tries all of it.
        """
        shared = {name: getattr(self, name) for name in TuningSettings.model_fields}
        tried = self.configurations
        if self.search == "grid":
            tried = min(tried, method.space.combinations or tried)
        return TuningSettings(**shared | {"configurations": method.tries(tried)})

    @model_validator(mode="after")
    def _fits_trained_encoders(self) -> Tuning:
        for name, method in self.methods.items():
            if method.trains_encoder and (self.search == "optuna" or self.patience is not None):
                what = "patience" if self.patience is not None else "search: optuna"
                raise ValueError(
                    f"method {name} trains the encoder, one trial for each configuration, and "
                    f"{what} does not support that; leave it out, or put {name} in an experiment "
                    f"of its own"
                )
        return self

    @model_validator(mode="after")
    def _label_noise_is_drawn(self) -> Tuning:
        if self.label_noise_classes != "others" and not any(self.label_noise):
            raise ValueError(
                f"label_noise_classes: {self.label_noise_classes} says how label noise is drawn, "
                f"and there is none; give label_noise a level above 0, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _searchable(self) -> Tuning:
        controls = self.controls.values()
        for name, method in self.methods.items():
            if method.head == "zero_shot":
                continue
            points = method.space.combinations
            grids = [n for n, d in method.space.domains.items() if isinstance(d, Grid)]
            if self.search != "grid" and grids:
                raise ValueError(
                    f"method {name} gives {grids[0]} as a grid, which needs search: grid, but "
                    f"search is {self.search}; use choice"
                )
            if self.search == "grid" and points is None:
                raise ValueError(
                    f"method {name} has a domain to draw from, and search: grid draws nothing; "
                    f"give grid: [...] or one value"
                )
            if name in controls and points is not None and points < self.configurations:
                continue
            if self.search == "grid" and points != self.configurations:
                raise ValueError(
                    f"the grid of method {name} has {points} combinations and the budget is "
                    f"configurations={self.configurations}; make them equal, because "
                    f"every method tries the same number"
                )
        if self.search == "optuna" and self.halving is not None:
            raise ValueError(
                "search: optuna trains batch by batch and cannot be halved; leave out halving"
            )
        if self.precision == "tf32" and not self.gpus:
            raise ValueError("precision: tf32 exists on GPUs alone; set gpus, or use float32")
        for axis in ("fractions", "label_noise", "seeds"):
            given = getattr(self, axis) or ()
            if len(set(given)) < len(given):
                raise ValueError(f"one of {axis} is given twice; name each once")
        return self


class TuneStep(Spec):
    """One cell: a task, a method, a share of the training rows, label noise and a tuning seed.

    For an OOD task the head comes from an ID cell (an input step) and is only evaluated here, so
    a new OOD task re-runs no other cell.
    """

    protocol: ClassVar[int] = 3

    task: Task
    method_name: Slug
    method: Method
    fraction: float
    seed: int
    label_noise: Percent = 0.0
    label_noise_classes: Annotated[NoiseClasses, SILENT] = "others"
    settings: Annotated[TuningSettings, FLAT]
    source: Annotated[Extension | None, SILENT] = None  # the file that has the method's head
    drop_overlap: Annotated[bool, SILENT] = False  # test rows that an input, `overlap`, names
    encoder: EncoderTuning | None = None  # of methods that read images; None: frozen features

    @property
    def part(self) -> Part | None:
        """The class of the extension that has the head; None for a built-in head."""
        return Part(self.source, self.method.head.partition(":")[2]) if self.source else None

    @model_validator(mode="after")
    def _consistent(self) -> TuneStep:
        if self.method.extension != (self.source.name if self.source else None):
            raise ValueError(f"{self.method_name}: source is the file of {self.method.head}")
        if self.task.domain == "ood" and self.task.trained_on is None:
            raise ValueError(f"OOD task {self.task.name} must name the task it is trained on")
        if self.method.trains_encoder != (self.encoder is not None):
            raise ValueError(
                f"{self.method_name}: `encoder` goes with the methods that train it; set it for "
                f"lora and ft, and leave it out for others"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_target(self) -> TuneStep:
        kind = self.task.target_kind
        unfit = kind.unfit_heads.get(self.method.head)
        if unfit is not None:
            raise ValueError(
                f"method {self.method_name} is {unfit}, which needs {kind.needs}, but task "
                f"{self.task.name} predicts a {kind.name}; use {kind.remedy}, or put one of the "
                f"two in an experiment of its own"
            )
        if kind.dense and self.method.trains_encoder:
            raise ValueError(
                f"method {self.method_name} trains the encoder, and task {self.task.name} predicts "
                f"a mask from features of patches that do not change; leave the method out, or put "
                f"one of the two in an experiment of its own"
            )
        if self.label_noise and kind.dense:
            raise ValueError(
                f"label_noise {self.label_noise:g} replaces the label of a row, but task "
                f"{self.task.name} predicts a mask; put one of the two in an experiment of its own"
            )
        if self.label_noise and not kind.has_classes:
            raise ValueError(
                f"label_noise {self.label_noise:g} replaces labels by those of other classes, but "
                f"task {self.task.name} predicts a {kind.name}; put one of the two in an "
                f"experiment of its own"
            )
        return self

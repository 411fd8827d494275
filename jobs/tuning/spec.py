"""What an experiment file can say of adaptation: methods, search spaces, budgets."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from jobs.contract import NOT_SEMANTIC, Slug, Spec
from jobs.encoders.templates import Template
from jobs.features.spec import Precision as EncoderPrecision
from jobs.images.spec import Views
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


class QUniform(Spec):
    """Tune's `quniform(low, high, q)`: uniform, rounded to multiples of q."""

    quniform: tuple[float, float, float]

    @model_validator(mode="after")
    def _ordered(self) -> QUniform:
        low, high, step = self.quniform
        if not (low < high and 0 < step <= high - low):
            raise ValueError(
                f"quniform [{low:g}, {high:g}, {step:g}] needs low < high and 0 < q <= high - low"
            )
        for name, bound in (("low", low), ("high", high)):
            if not math.isclose(bound / step, round(bound / step)):  # as Tune itself asks
                raise ValueError(
                    f"quniform [{low:g}, {high:g}, {step:g}]: {name} must be a multiple of q, as "
                    f"{step * round(bound / step):g} is"
                )
        return self


class RandInt(Spec):
    """Tune's `randint(low, high)`: whole numbers, the upper bound left out."""

    randint: tuple[int, int]

    @model_validator(mode="after")
    def _ordered(self) -> RandInt:
        low, high = self.randint
        if not low < high:
            raise ValueError(f"randint [{low}, {high}] needs low < high")
        return self


class Choice(Spec):
    """Tune's `choice(values)`."""

    choice: tuple[float, ...] = Field(min_length=1)


class Grid(Spec):
    """Tune's `grid_search(values)`: every value, with every combination of the other grids."""

    grid: tuple[float, ...] = Field(min_length=1)


DOMAINS = ("loguniform", "uniform", "quniform", "randint", "choice", "grid")


def _named_domain(value: Any) -> Any:
    """Refuse what names no domain, before each of them says what it misses."""
    if isinstance(value, (list, tuple)):
        raise ValueError("a list of values is written as choice: [...], or grid: [...]")
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


def _bounds(domain: Domain) -> tuple[float, float]:
    """The least and the greatest value a domain can give."""
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

    lr: Domain | None = Field(None, description="heads that are trained by steps: needed")
    weight_decay: Domain = 0.0
    mse: Domain = 0.0
    cov: Domain = 0.0
    svd: Domain = 0.0
    scale: Domain = Field(1.0, description="multiplies the three weights of one configuration")
    l2: Domain | None = Field(None, description="ridge and lbfgs: needed, their only parameter")

    @model_validator(mode="after")
    def _in_range(self) -> Space:
        for name in type(self).model_fields:
            domain = getattr(self, name)
            if domain is None:
                continue
            low, high = _bounds(domain)
            positive = name in ("lr", "l2")
            if low < 0 or (positive and low == 0):
                least = "above 0" if positive else "0 or more"
                raise ValueError(f"{name} spans [{low:g}, {high:g}]; must be {least}")
        return self

    @property
    def domains(self) -> dict[str, Domain]:
        """What is given, by name."""
        return {n: d for n in type(self).model_fields if (d := getattr(self, n)) is not None}

    @property
    def regularised(self) -> bool:
        """Whether any configuration can weigh a regulariser."""
        return any(_bounds(domain)[1] > 0 for domain in (self.mse, self.cov, self.svd))

    @property
    def combinations(self) -> int | None:
        """Points of a grid; none when a domain is drawn from."""
        domains = self.domains.values()
        if any(not isinstance(domain, (Grid, int, float)) for domain in domains):
            return None
        return math.prod(len(domain.grid) for domain in domains if isinstance(domain, Grid))


HeadKind = Literal["linear", "paper", "released"]

PROBES = ("ridge", "lbfgs")
"""Linear heads that are solved, not trained by steps: oracles of what a linear probe can reach."""

TEMPLATES = ("a photo of a {}.",)
"""What a zero-shot head says of a class where nothing else is given."""

GIVEN = (*PROBES, "zero_shot")
"""Linear heads that take no steps."""


class Method(Spec):
    """A head and how its hyper-parameters are searched.

    `linear`: a linear probe. `paper`, `released`: the two-layer head, the losses and the views of
    that name (paper 1 section 4; the authors' code). The plain MLP is a two-layer head whose
    regularisers weigh nothing. `ridge`: least squares on the classes' indicators, in closed form;
    `lbfgs`: logistic regression to convergence; both linear, with `l2` as their only parameter.
    `zero_shot`: the classes' names in `templates`, as the text tower of an open_clip encoder reads
    them; nothing is trained or searched, so that a task has one such cell.

    `adapt` says what is trained: the head alone on frozen features, or with it the encoder itself,
    by low-rank adapters (`lora`) or whole (`ft`). On a trained encoder stands a linear head, and
    COV and SVD regularise the encoder's features (the authors' code).
    """

    head: Literal["linear", "paper", "released", "ridge", "lbfgs", "zero_shot"]
    space: Space = Space()
    templates: tuple[Template, ...] = Field(
        TEMPLATES, min_length=1, description="zero_shot: {} stands for a class's name"
    )
    adapt: Literal["frozen", "lora", "ft"] = "frozen"
    rank: int = Field(8, ge=1, description="lora: of each adapter")
    encoder_lr: float = Field(
        1.0, ge=0, le=1, description="lora, ft: the encoder's share of the space's lr"
    )

    @property
    def kind(self) -> HeadKind:
        """What the head is, however it is found."""
        return self.head if self.head == "paper" or self.head == "released" else "linear"

    @property
    def reads_images(self) -> bool:
        """Whether the encoder is trained, so that features will not do."""
        return self.adapt != "frozen"

    @model_validator(mode="after")
    def _says_nothing_in_vain(self) -> Method:
        """What bears on no result would still make a cell another one."""
        fields = type(self).model_fields
        for name, readers in (("rank", ("lora",)), ("encoder_lr", ("lora", "ft"))):
            if self.adapt not in readers and getattr(self, name) != fields[name].default:
                raise ValueError(f"{name} belongs to adapt: {' or '.join(readers)}; leave it out")
        if self.space.scale != Space.model_fields["scale"].default and not self.space.regularised:
            raise ValueError("scale multiplies mse, cov and svd, and none is given; leave it out")
        return self

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
    def _has_what_its_head_reads(self) -> Method:
        if not self.reads_images and self.head in ("linear", *GIVEN) and self.space.regularised:
            raise ValueError(
                f"a {self.head} head has no output to regularise; leave out mse, cov and svd"
            )
        if self.head in PROBES:
            foreign = sorted(set(self.space.model_dump(exclude_defaults=True)) - {"l2"})
            if foreign or self.space.l2 is None:
                remedy = f"leave out {', '.join(foreign)}" if foreign else "give l2"
                raise ValueError(f"a {self.head} head is searched over l2 alone; {remedy}")
        elif self.head == "zero_shot":
            if self.space != Space():
                raise ValueError("a zero_shot head has nothing to search; leave out space")
        elif self.space.lr is None or self.space.l2 is not None:
            raise ValueError(f"a {self.head} head needs lr in its space, and takes no l2")
        return self

    @model_validator(mode="after")
    def _templates_have_a_reader(self) -> Method:
        if self.head != "zero_shot" and self.templates != TEMPLATES:
            raise ValueError(f"templates belong to a zero_shot head, not {self.head}; remove them")
        return self

    def tries(self, configurations: int) -> int:
        """How many of the configurations that every method is given it has a use for."""
        return 1 if self.head == "zero_shot" else configurations


class Halving(Spec):
    """Successive halving: after `first` epochs, and at every `eta` times as many, the better
    1/`eta` of a method's configurations goes on; the others are kept as rows that were dropped.
    Configurations of `lora` and `ft` are trials of their own and halved by Tune's asynchronous
    form (ASHA) at the same epochs: who goes on there depends on the order in which trials report.
    """

    first: int = Field(ge=1, description="epochs before the first cut")
    eta: int = Field(2, ge=2)

    def cuts(self, configurations: int, epochs: int) -> tuple[tuple[int, int], ...]:
        """(after this many epochs, this many configurations go on), in order, before the end."""
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


class EncoderTuning(Spec):
    """What a cell that trains the encoder (`lora`, `ft`) sees in the place of features."""

    views: Views
    precision: EncoderPrecision = "float32"


class Tuning(Spec):
    """The tuning section of an experiment file. Budgets are equal for all methods by design."""

    methods: dict[Slug, Method] = Field(min_length=1)
    configurations: int = Field(8, ge=1, description="tried for each method in each cell")
    epochs: int = Field(30, ge=1)
    batch_size: int = Field(64, ge=2, description="samples a step; each brings all its views")
    fractions: tuple[Annotated[float, Field(gt=0, le=100)], ...] = Field((100.0,), min_length=1)
    label_noise: tuple[Percent, ...] = Field(
        (0.0,), min_length=1, description="percent of training labels made wrong; never others"
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    search: Search = "random"
    halving: Halving | None = None
    patience: int | None = Field(
        None, ge=1, description="epochs without a better validation after which a member stops"
    )
    precision: Precision = Field("float32", description="of matrix products; tf32 needs a GPU")
    cpus: Annotated[int, NOT_SEMANTIC] = Field(1, ge=1, description="of a cell")
    gpus: Annotated[float, NOT_SEMANTIC] = Field(0, ge=0, description="of a cell; may be a share")
    memory_mb: Annotated[int, NOT_SEMANTIC] = Field(
        1024, ge=1, description="that a stack may work in; larger ones train in turns"
    )

    @model_validator(mode="after")
    def _fits_trained_encoders(self) -> Tuning:
        for name, method in self.methods.items():
            if method.reads_images and (self.search == "optuna" or self.patience is not None):
                what = "patience" if self.patience is not None else "search: optuna"
                raise ValueError(
                    f"method {name} trains the encoder, a trial for each configuration, which "
                    f"{what} does not reach; leave it out, or put {name} in an experiment of its "
                    f"own"
                )
        return self

    @model_validator(mode="after")
    def _searchable(self) -> Tuning:
        for name, method in self.methods.items():
            if method.head == "zero_shot":
                continue
            points = method.space.combinations
            grids = [n for n, d in method.space.domains.items() if isinstance(d, Grid)]
            if self.search != "grid" and grids:
                raise ValueError(
                    f"method {name} gives {grids[0]} as a grid, which needs search: grid "
                    f"(it is {self.search}); use choice"
                )
            if self.search == "grid" and points is None:
                raise ValueError(
                    f"method {name} has a domain to draw from, which search: grid cannot; "
                    f"give grid: [...] or one value"
                )
            if self.search == "grid" and points != self.configurations:
                raise ValueError(
                    f"the grid of method {name} has {points} combinations and the budget is "
                    f"configurations={self.configurations}; every method tries as many"
                )
        if self.search == "optuna" and self.halving is not None:
            raise ValueError("search: optuna trains in batches of its own; leave out halving")
        if self.precision == "tf32" and not self.gpus:
            raise ValueError("precision: tf32 exists on GPUs alone; set gpus, or take float32")
        for axis in ("fractions", "label_noise", "seeds"):
            given = getattr(self, axis)
            if len(set(given)) < len(given):
                raise ValueError(f"one of {axis} is given twice; name each once")
        return self


class TuneStep(Spec):
    """One cell: a task, a method, a share of the training rows, label noise and a tuning seed.

    For an OOD task the head comes from the cell it is trained on (an input step) and is only
    evaluated here: an added OOD task re-runs nothing.
    """

    protocol: ClassVar[int] = 3

    task: Task
    method_name: Slug
    method: Method
    fraction: float
    seed: int
    configurations: int
    epochs: int
    batch_size: int
    label_noise: Percent = 0.0
    search: Search = "random"
    halving: Halving | None = None
    patience: int | None = None
    precision: Precision = "float32"
    encoder: EncoderTuning | None = None  # of methods that read images; none: frozen features
    cpus: Annotated[int, NOT_SEMANTIC] = 1
    gpus: Annotated[float, NOT_SEMANTIC] = 0
    memory_mb: Annotated[int, NOT_SEMANTIC] = 1024

    @model_validator(mode="after")
    def _consistent(self) -> TuneStep:
        if self.task.domain == "ood" and self.task.trained_on is None:
            raise ValueError(f"OOD task {self.task.name} must name the task it is trained on")
        if self.method.reads_images != (self.encoder is not None):
            raise ValueError(f"{self.method_name}: `encoder` goes with the methods that train it")
        return self

    @model_validator(mode="after")
    def _fits_a_number(self) -> TuneStep:
        if self.task.target == "class":
            return self
        if self.method.head in ("lbfgs", "zero_shot"):
            what = "logistic regression" if self.method.head == "lbfgs" else "zero-shot"
            raise ValueError(
                f"method {self.method_name} is {what}, which needs classes, and task "
                f"{self.task.name} predicts a number; use ridge, or put one of the two in an "
                f"experiment of its own"
            )
        if self.label_noise:
            raise ValueError(
                f"label_noise {self.label_noise:g} takes a label for another class, and task "
                f"{self.task.name} predicts a number; put one of the two in an experiment of its "
                f"own"
            )
        return self

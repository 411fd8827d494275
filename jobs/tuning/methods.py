"""Methods as an experiment file writes them: a head, what is trained, and a search space.

Refuses combinations that have no meaning, in one sentence, when the file is read.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from jobs.contract import SILENT, Spec
from jobs.encoders.templates import Template
from jobs.extensions.spec import extension_of, reference
from jobs.tuning.search_space import STANDARD, Space, bounds
from jobs.validation import one_of

HeadKind = Literal["linear", "paper", "released", "extension"]

ClassifierInit = Literal["uniform", "kaiming_uniform"]

PROBES = ("ridge", "lbfgs")
"""Linear heads that are solved, not trained by steps: the optimum of a linear probe."""

TEMPLATES = ("a photo of a {}.",)
"""The default templates of a zero-shot head."""

GIVEN = (*PROBES, "zero_shot")
"""Linear heads that are not trained by steps."""

HEADS = ("linear", "paper", "released", *GIVEN)


def _known_head(head: str) -> str:
    if head in HEADS:
        return head
    if ":" in head:
        return reference(head)
    raise ValueError(f"{one_of(head, [*HEADS])}, or an extension's, as in my_methods:Shrinkage")


Head = Annotated[str, AfterValidator(_known_head)]
"""One of HEADS, or a class of an extension."""


class Method(Spec):
    """A head and how its hyper-parameters are searched.

    `linear`: a linear probe. `paper`, `released`: the two-layer head, the losses and the views of
    that name (paper 1 section 4; the authors' code). The plain MLP is a two-layer head whose
    regularisers have weight 0. `ridge`: least squares on the classes' indicators, in closed form;
    `lbfgs`: logistic regression to convergence; both linear, with `l2` as their only parameter.
    `zero_shot`: the text tower of an open_clip encoder embeds the classes' names in `templates`;
    nothing is trained or searched, so a task has one such cell. `my_methods:Shrinkage`: the class
    Shrinkage of the extension my_methods.py, with the hyper-parameters that it declares.

    `adapt` chooses what is trained: only the head, on frozen features, or the encoder too, by
    low-rank adapters (`lora`) or whole (`ft`). With a trained encoder the head is linear, and COV
    and SVD regularise the encoder's features (the authors' code); or it is an extension's class
    whose loss takes the encoder (`ft`).

    The fields from `views` on are what the authors' code does in another way
    (`docs/published.md`).
    """

    head: Head = Field(description="the layers on the encoder, and how they are found")
    space: Space = Field(Space(), description="the hyper-parameters and their ranges")
    templates: tuple[Template, ...] = Field(
        TEMPLATES, min_length=1, description="zero_shot: {} stands for a class's name"
    )
    adapt: Literal["frozen", "lora", "ft"] = Field(
        "frozen",
        description="what is trained: the head alone, low-rank adapters too, or the whole encoder",
    )
    rank: int = Field(8, ge=1, description="lora: of each adapter")
    encoder_lr: float = Field(
        1.0, ge=0, le=1, description="lora, ft: the encoder's share of the space's lr"
    )
    views: Annotated[int | None, SILENT] = Field(
        None,
        ge=0,
        description="views of each training sample in an epoch, the next ones in each epoch, in "
        "turn; none: all of `features.views`; 0: the plain sample",
    )
    classifier_init: Annotated[ClassifierInit, SILENT] = Field(
        "uniform",
        description="of the last layer; uniform: weights and bias in +-1/sqrt(D), as nn.Linear; "
        "kaiming_uniform: weights in +-sqrt(6/D), as nn.init, and bias 0",
    )
    residual: Annotated[bool, SILENT] = Field(True, description="released: z = s * h(f) + f, or h")
    residual_scale: Annotated[float, SILENT] = Field(
        1.0, gt=0, description="released: what the entries of s start at"
    )
    encoder_mode: Annotated[Literal["eval", "train"], SILENT] = Field(
        "eval", description="lora, ft: of BatchNorm and dropout while the encoder is trained"
    )

    @model_validator(mode="before")
    @classmethod
    def _split_space(cls, given: Any) -> Any:
        """Set an extension's own hyper-parameters apart from those that every method may have."""
        space = given.get("space") if isinstance(given, dict) else None
        if not isinstance(space, dict) or ":" not in str(given.get("head")) or "own" in space:
            return given
        own = {name: domain for name, domain in space.items() if name not in STANDARD}
        rest = {name: domain for name, domain in space.items() if name in STANDARD}
        return {**given, "space": {**rest, "own": own} if own else rest}

    @property
    def kind(self) -> HeadKind:
        """The head's layers; probes and zero-shot heads are linear."""
        kinds: dict[str, HeadKind] = {"paper": "paper", "released": "released"}
        return "extension" if self.extension else kinds.get(self.head, "linear")

    @property
    def extension(self) -> str | None:
        """The extension that has the head; None for a built-in one."""
        return extension_of(self.head)

    @property
    def trains_encoder(self) -> bool:
        """Whether the encoder is trained, on samples; other methods read features."""
        return self.adapt != "frozen"

    @property
    def control(self) -> Method:
        """The same method without its regularisers: what they add is the difference."""
        none = {"mse": 0.0, "cov": 0.0, "svd": 0.0, "scale": 1.0}
        return self.model_copy(update={"space": self.space.model_copy(update=none)})

    @model_validator(mode="after")
    def _fields_have_a_reader(self) -> Method:
        """Refuse a field that nothing reads: it would still change the cell's fingerprint."""
        fields = type(self).model_fields
        trained = ("lora", "ft")
        for name, readers in (
            ("rank", ("lora",)),
            ("encoder_lr", trained),
            ("encoder_mode", trained),
        ):
            if self.adapt not in readers and getattr(self, name) != fields[name].default:
                raise ValueError(f"{name} belongs to adapt: {' or '.join(readers)}; leave it out")
        for name, unfit in (
            ("residual", self.head != "released"),
            ("residual_scale", self.head != "released" or not self.residual),
            ("views", self.head in GIVEN),
            ("classifier_init", self.head in GIVEN or self.extension is not None),
        ):
            if unfit and getattr(self, name) != fields[name].default:
                where = {
                    "residual": "head: released",
                    "residual_scale": "head: released with residual: true",
                }.get(name, "heads that are trained by steps")
                raise ValueError(f"{name} belongs to {where}; leave it out")
        if self.space.own and not self.extension:
            raise ValueError(
                f"space.{next(iter(self.space.own))} is a hyper-parameter of an extension's; "
                f"leave it out"
            )
        if self.space.scale != Space.model_fields["scale"].default and not self.space.regularised:
            raise ValueError("scale multiplies mse, cov and svd, and none is given; leave it out")
        return self

    @model_validator(mode="after")
    def _fits_the_encoder(self) -> Method:
        if not self.trains_encoder or self.extension:
            return self
        if self.head != "linear":
            raise ValueError(
                f"{self.adapt} puts a linear head on the encoder, not {self.head}; use head: linear"
            )
        if bounds(self.space.mse)[1] > 0:
            raise ValueError(
                f"mse compares a head's output with frozen features, and {self.adapt} has none; "
                f"leave out mse"
            )
        return self

    @model_validator(mode="after")
    def _has_what_its_head_reads(self) -> Method:
        if not self.trains_encoder and self.head in ("linear", *GIVEN) and self.space.regularised:
            raise ValueError(
                f"a {self.head} head has no output to regularise; leave out mse, cov and svd"
            )
        if self.head in PROBES:
            unwanted = sorted(set(self.space.model_dump(exclude_defaults=True)) - {"l2"})
            if unwanted or self.space.l2 is None:
                remedy = f"leave out {', '.join(unwanted)}" if unwanted else "give l2"
                raise ValueError(f"a {self.head} head is searched over l2 alone; {remedy}")
        elif self.head == "zero_shot":
            if self.space != Space():
                raise ValueError("a zero_shot head has nothing to search; leave out space")
        elif self.extension:
            pass  # its file says what it reads (`jobs.extensions.declared`)
        elif self.space.lr is None or self.space.l2 is not None:
            remedies = ["give lr"] * (self.space.lr is None) + ["leave out l2"] * (
                self.space.l2 is not None
            )
            raise ValueError(
                f"a {self.head} head needs lr in its space, and takes no l2; "
                f"{' and '.join(remedies)}"
            )
        return self

    @model_validator(mode="after")
    def _templates_have_a_reader(self) -> Method:
        if self.head != "zero_shot" and self.templates != TEMPLATES:
            raise ValueError(f"templates belong to a zero_shot head, not {self.head}; remove them")
        return self

    def tries(self, configurations: int) -> int:
        """How many of `configurations`, the number for every method, this method tries."""
        return 1 if self.head == "zero_shot" else configurations

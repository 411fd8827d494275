"""The settings of a corpus's noise in an experiment file.

One model for each `kind`. A noise's name and its list of levels are not part of a step's identity,
since each level is a step of its own; the other settings are. Files are named by path and
identified by content: `sha256` is semantic, the path is not.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, field_validator, model_validator

from jobs.contract import NOT_SEMANTIC, PATH, SILENT, Slug, Spec
from jobs.extensions.spec import Extension, Part, Reference

Level = Annotated[float, Field(ge=0, lt=100)]
"""A noise level in percent."""

ClassName = Annotated[int, Field(ge=0, strict=True)] | str
"""A class: its name or id in the corpus, or its number."""


def _known_seed(seed: Any) -> int | str:
    if isinstance(seed, str) and re.fullmatch("shared(:[0-9]+)?", seed):
        return seed
    try:
        number = int(seed)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if isinstance(seed, bool) or number < 0 or number != float(seed):
        raise ValueError("must be a whole number from 0 on, `shared`, or `shared:` and a number")
    return number


Seed = Annotated[int | str, BeforeValidator(_known_seed)]
"""A whole number, or `shared`, or `shared:N`."""

Path = Annotated[str, Field(min_length=1), PATH, NOT_SEMANTIC]
"""A file: a path (relative to where the command runs) or a URI."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _NoiseBase(Spec):
    """The settings that all kinds share."""

    replaces: ClassVar[Literal["label", "caption"]] = "label"

    name: Annotated[Slug, NOT_SEMANTIC] = Field(
        description="the noise's name in addresses and tables"
    )
    levels: Annotated[tuple[Level, ...], Field(min_length=1), NOT_SEMANTIC] = Field(
        description="percent of the rows that become wrong, 0 for clean; each has its own encoders"
    )

    @field_validator("levels")
    @classmethod
    def _refuse_duplicates(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        repeated = [level for level in levels if levels.count(level) > 1]
        if repeated:
            raise ValueError(f"{repeated[0]:g} is given twice; name each level once")
        return tuple(sorted(level + 0.0 for level in levels))  # -0.0 is 0.0

    @property
    def shared(self) -> bool:
        """Whether all replicates have the same noise: one draw, or labels that are given."""
        return True

    def drawn(self, replicate: int) -> Self:
        """The noise of the replicate with this pre-training seed: `seed` is that of its draw."""
        return self


class _DrawnNoise(_NoiseBase):
    """Random noise: the seed of the draw and the samples' keys decide which samples are changed."""

    seed: Seed = Field(
        0,
        description="a replicate's draw has the seed that is the sum of this and the pre-training "
        "seed; `shared`, or `shared:3`: all replicates have one draw, with seed 0, or 3",
    )
    classes: tuple[ClassName, ...] = Field(
        (), description="only samples of these classes may be changed; none: all classes"
    )
    of: Literal["corpus", "subset"] = Field(
        "corpus",
        description="what a level is a percentage of: all training rows, or the rows that may be "
        "changed",
    )

    @property
    def shared(self) -> bool:
        """Whether all replicates have one draw."""
        return isinstance(self.seed, str)

    @property
    def draw(self) -> int:
        """The seed of the draw; of the first replicate where each has its own."""
        if isinstance(self.seed, str):
            return int(self.seed.partition(":")[2] or 0)
        return self.seed

    def drawn(self, replicate: int) -> Self:
        """The noise of the replicate with this pre-training seed: `seed` is that of its draw."""
        return self.model_copy(update={"seed": self.draw + (0 if self.shared else replicate)})


class Symmetric(_DrawnNoise):
    """A label becomes one of the other classes, uniformly."""

    kind: Literal["symmetric"] = "symmetric"


class Pair(_DrawnNoise):
    """A label becomes the next class; the last becomes the first."""

    kind: Literal["pair"] = "pair"


class Groups(_DrawnNoise):
    """A label becomes another class of its own super-class, uniformly."""

    kind: Literal["groups"] = "groups"
    file: Path = Field(description="CSV with the columns class and group, or JSON {class: group}")
    sha256: Sha256 | None = Field(None, description="of the file; filled in when planned")


class Transition(_DrawnNoise):
    """Labels change by a row-stochastic C x C matrix T.

    Row c is the distribution of the labels of class c in full noise. A level changes samples of
    each class in proportion to n_c (1 - T_cc); their new labels follow row c without its diagonal.
    """

    kind: Literal["transition"] = "transition"
    file: Path = Field(description="npy, csv (numbers alone) or parquet; classes in label order")
    sha256: Sha256 | None = Field(None, description="of the file; filled in when planned")


class Subset(_DrawnNoise):
    """Paper 2's asymmetric noise: labels of the named classes become others of these classes."""

    kind: Literal["subset"] = "subset"
    classes: tuple[ClassName, ...] = Field(
        min_length=2, description="the classes whose labels are exchanged"
    )


class Instance(_DrawnNoise):
    """An annotator model: hard samples change first, to classes they are confused with."""

    kind: Literal["instance"] = "instance"
    file: Path = Field(description="Parquet: a key and the list of its C class probabilities")
    key: str = Field("key", description="the column with the samples' keys")
    column: str = Field("probabilities", description="the column with the probabilities")
    sha256: Sha256 | None = Field(None, description="of the file; checked where it is given")


class Given(_NoiseBase):
    """Real noisy labels. Nothing is random: its level is its measured rate, or 0 (clean)."""

    kind: Literal["given"] = "given"
    file: Path = Field(description="Parquet or CSV: a key and its noisy label")
    key: str = Field("key", description="the column with the samples' keys")
    column: str = Field(description="the noisy labels, by class name, id or number")
    sha256: Sha256 | None = Field(None, description="of the file; checked where it is given")


class CaptionSwap(_DrawnNoise):
    """Pairs of samples exchange their captions."""

    replaces: ClassVar[Literal["label", "caption"]] = "caption"

    kind: Literal["caption_swap"] = "caption_swap"


class CaptionSwapNear(_DrawnNoise):
    """Pairs of samples in one cluster exchange their captions."""

    replaces: ClassVar[Literal["label", "caption"]] = "caption"

    kind: Literal["caption_swap_near"] = "caption_swap_near"
    file: Annotated[str | None, PATH, NOT_SEMANTIC] = Field(
        None, description="Parquet or CSV: a key and its cluster; none: classes are the clusters"
    )
    key: str = Field("key", description="the column with the samples' keys")
    column: str | None = Field(None, description="the clusters, by number or name")
    sha256: Sha256 | None = Field(None, description="of the file; checked where it is given")

    @model_validator(mode="after")
    def _file_needs_column(self) -> CaptionSwapNear:
        if (self.file is None) != (self.column is None):
            raise ValueError("file and column are given together, or neither")
        return self


class _OwnNoise(_DrawnNoise):
    """Noise of an extension (docs/extensions.md)."""

    function: Reference = Field(description="as in my_noise:confuse, a function of my_noise.py")
    source: Annotated[Extension | None, SILENT] = Field(
        None, description="the file; filled in when planned"
    )

    @property
    def part(self) -> Part:
        """The function. Raises ValueError for noise that was not planned."""
        if self.source is None:
            raise ValueError(f"{self.function} has no source")
        return Part(self.source, self.function.partition(":")[2])


class OwnLabels(_OwnNoise):
    """A function of an extension gives each sample's threshold and label."""

    kind: Literal["extension"] = "extension"


class OwnCaptions(_OwnNoise):
    """A function of an extension gives each sample's threshold and caption."""

    replaces: ClassVar[Literal["label", "caption"]] = "caption"

    kind: Literal["caption_extension"] = "caption_extension"


Noise: TypeAlias = Annotated[
    Symmetric
    | Pair
    | Groups
    | Transition
    | Subset
    | Instance
    | Given
    | CaptionSwap
    | CaptionSwapNear
    | OwnLabels
    | OwnCaptions,
    Field(discriminator="kind"),
]
"""A noise of any kind, with its levels."""


class NoiseStep(Spec):
    """One level of noise over one corpus."""

    protocol: ClassVar[int] = 2

    corpus: Slug
    noise: Noise  # of one draw: its `seed` is a number
    level: Level

"""What an experiment file can say of the noise laid over a corpus.

One model a kind, told apart by `kind`. What every level shares bears on identity; a noise's name
and its list of levels do not, for each level is a step of its own. Files are named by path, and
known by their content: `sha256` is semantic, the path is not.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from jobs.contract import NOT_SEMANTIC, PATH, Slug, Spec

Level = Annotated[float, Field(ge=0, lt=100)]
"""A noise level in percent."""

ClassName = Annotated[int, Field(ge=0, strict=True)] | str
"""A class by its name or its id in the corpus, or by its number."""

Path = Annotated[str, Field(min_length=1), PATH, NOT_SEMANTIC]
"""A file: a path (relative to where the command runs) or a URI."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Levels(Spec):
    """What every noise has."""

    replaces: ClassVar[Literal["label", "caption"]] = "label"

    name: Annotated[Slug, NOT_SEMANTIC]
    levels: Annotated[tuple[Level, ...], Field(min_length=1), NOT_SEMANTIC]

    @field_validator("levels")
    @classmethod
    def _each_once(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        twice = [level for level in levels if levels.count(level) > 1]
        if twice:
            raise ValueError(f"{twice[0]:g} is given twice; name each level once")
        return tuple(sorted(levels))


class _Drawn(_Levels):
    """Noise that is drawn: who is changed follows from the seed and the samples' keys."""

    seed: int = Field(0, ge=0)
    classes: tuple[ClassName, ...] = Field(
        (), description="only samples of these classes may be changed; none named: all may"
    )
    of: Literal["corpus", "subset"] = Field(
        "corpus",
        description="what a level is a percentage of: all training rows, or those that may be "
        "changed",
    )


class Symmetric(_Drawn):
    """A label becomes one of the other classes, each as likely."""

    kind: Literal["symmetric"] = "symmetric"


class Pair(_Drawn):
    """A label becomes the next class; the last becomes the first."""

    kind: Literal["pair"] = "pair"


class Groups(_Drawn):
    """A label becomes another class of its own super-class, each as likely."""

    kind: Literal["groups"] = "groups"
    file: Path = Field(description="CSV with the columns class and group, or JSON {class: group}")
    sha256: Sha256 | None = Field(None, description="of the file; filled in when planned")


class Transition(_Drawn):
    """Labels change by a row-stochastic C x C matrix.

    Row c is what a label c reads at full strength. A level takes samples of each class in
    proportion to n_c (1 - T_cc); what they become follows row c without its diagonal.
    """

    kind: Literal["transition"] = "transition"
    file: Path = Field(description="npy, csv (numbers alone) or parquet; classes in label order")
    sha256: Sha256 | None = Field(None, description="of the file; filled in when planned")


class Subset(_Drawn):
    """Paper 2's asymmetric noise: the named classes alone change, each to another of them."""

    kind: Literal["subset"] = "subset"
    classes: tuple[ClassName, ...] = Field(min_length=2)


class Instance(_Drawn):
    """An annotator model: hard samples are changed first, to what they are confused with."""

    kind: Literal["instance"] = "instance"
    file: Path = Field(description="Parquet: a key and the list of its C class probabilities")
    key: str = "key"
    column: str = "probabilities"
    sha256: Sha256 | None = Field(None, description="of the file; checked where it is given")


class Given(_Levels):
    """Real noisy labels. Nothing is drawn: its level is its measured rate, and 0 the clean one."""

    kind: Literal["given"] = "given"
    file: Path = Field(description="Parquet or CSV: a key and the label it was given")
    key: str = "key"
    column: str = Field(description="the noisy labels, by class name, id or number")
    sha256: Sha256 | None = Field(None, description="of the file; checked where it is given")


class CaptionSwap(_Drawn):
    """Two samples exchange their captions."""

    replaces: ClassVar[Literal["label", "caption"]] = "caption"

    kind: Literal["caption_swap"] = "caption_swap"


class CaptionSwapNear(_Drawn):
    """Two samples of one cluster exchange their captions."""

    replaces: ClassVar[Literal["label", "caption"]] = "caption"

    kind: Literal["caption_swap_near"] = "caption_swap_near"
    file: Annotated[str | None, PATH, NOT_SEMANTIC] = Field(
        None, description="Parquet or CSV: a key and its cluster; none: classes are the clusters"
    )
    key: str = "key"
    column: str | None = Field(None, description="the clusters, by number or name")
    sha256: Sha256 | None = Field(None, description="of the file; checked where it is given")

    @model_validator(mode="after")
    def _file_and_column(self) -> CaptionSwapNear:
        if (self.file is None) != (self.column is None):
            raise ValueError("file and column are given together, or neither")
        return self


Noise: TypeAlias = Annotated[
    Symmetric
    | Pair
    | Groups
    | Transition
    | Subset
    | Instance
    | Given
    | CaptionSwap
    | CaptionSwapNear,
    Field(discriminator="kind"),
]
"""A kind of noise and the levels it is laid over a corpus at."""


class NoiseStep(Spec):
    """One level of noise over one corpus."""

    protocol: ClassVar[int] = 2

    corpus: Slug
    noise: Noise
    level: Level

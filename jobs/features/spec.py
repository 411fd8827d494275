"""What an experiment file can say of features and of the shifts that make an OOD test."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jobs.contract import NOT_SEMANTIC, Slug, Spec
from jobs.pretrain.spec import Affine


class Shift(Spec):
    """A declared change of every test image, drawn from the seed and the key alone."""

    kind: Literal["rotate", "blur", "invert", "noise"]
    strength: float = Field(
        1.0,
        gt=0,
        description="rotate: degrees, the sign drawn by key; blur: Gaussian sigma in source "
        "pixels; noise: standard deviation, as a share of the full range; invert: share of the "
        "way to the negative",
    )
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _negative_at_most(self) -> Shift:
        if self.kind == "invert" and self.strength > 1:
            raise ValueError(
                f"invert goes to the negative at most: strength 1, not {self.strength:g}"
            )
        return self


class Views(Spec):
    """Seeded augmented views of the training part, shared by all methods of all cells.

    Unless told otherwise two that shift and scale a little: what no task's classes turn on.
    """

    count: int = Field(2, ge=0, le=16)
    augment: Affine = Affine(translate=0.08, scale=(0.9, 1.1))
    seed: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _none_are_drawn_from_nothing(cls, given: object) -> object:
        if isinstance(given, dict) and given.get("count") == 0:
            return {"augment": {}, **given}
        return given

    @model_validator(mode="after")
    def _are_no_copies(self) -> Views:
        if self.count and not self.augment.moves:
            raise ValueError(
                f"{self.count} views that change nothing are copies of the plain image; give "
                f"augment degrees, translate, scale or flip, or set count to 0"
            )
        return self


Precision = Literal["float32", "bfloat16", "float16"]

BatchSize = Literal["auto"] | Annotated[int, Field(ge=1)]


class Features(Spec):
    """The features section of an experiment file."""

    views: Views = Views()
    dtype: Literal["float32", "float16"] = Field("float32", description="as features are stored")
    precision: Precision = Field("float32", description="the encoder's arithmetic (autocast)")
    batch_size: Annotated[BatchSize, NOT_SEMANTIC] = Field(
        "auto",
        description="images an encoder sees at once; auto: as many as its memory is good for",
    )
    gpus_per_worker: Annotated[float, NOT_SEMANTIC] = Field(0, ge=0)
    cpus_per_worker: Annotated[int, NOT_SEMANTIC] = Field(
        1, ge=1, description="threads that decode, and without a GPU also compute"
    )


class FeaturesStep(Spec):
    """One encoder (an input step) over one set of images (an input step), perhaps shifted."""

    images: Slug
    parts: tuple[Literal["train", "validation", "test"], ...]
    shift: Shift | None = None
    views: Views = Views()
    dtype: Literal["float32", "float16"] = "float32"
    precision: Precision = "float32"
    batch_size: Annotated[BatchSize, NOT_SEMANTIC] = "auto"
    gpus_per_worker: Annotated[float, NOT_SEMANTIC] = 0
    cpus_per_worker: Annotated[int, NOT_SEMANTIC] = 1


class GivenStep(Spec):
    """Features that somebody else extracted, of one task, from one Parquet file."""

    images: Slug = Field(description="the task's name: its rows are this file's")
    parts: tuple[Literal["train", "validation", "test"], ...]
    file: Annotated[str, NOT_SEMANTIC]
    sha256: str
    key: str = "key"
    vector: str = "vector"
    label: str = "label"
    split: str | None = None
    classes: tuple[str, ...] = ()
    target: Literal["class", "number"] = "class"
    dtype: Literal["float32", "float16"] = "float32"

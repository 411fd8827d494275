"""What an experiment file can say of a corpus and of the noise laid over it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from jobs.contract import Slug, Spec


class DigitsReader(Spec):
    """scikit-learn's handwritten digits: 1,797 real 8 x 8 images, shipped inside the package."""

    rows: ClassVar[int | None] = 1797  # known before it is read; for the cost preview

    kind: Literal["digits"] = "digits"


Reader = DigitsReader
"""Every reader an experiment file can name, told apart by `kind`."""


class Parts(Spec):
    """Shares of a corpus's parts; a row's part is a function of its key alone."""

    train: float = Field(0.60, gt=0, lt=1)
    validation: float = Field(0.15, gt=0, lt=1)
    test: float = Field(0.25, gt=0, lt=1)

    @model_validator(mode="after")
    def _whole(self) -> Parts:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train, validation and test must sum to 1, not {total:g}")
        return self


class Corpus(Spec):
    """A source of keyed images with labels, captions or both, cut into parts and shards."""

    name: Slug
    reader: Reader
    parts: Parts = Parts()
    seed: int = Field(0, ge=0, description="decides each key's part and place in the shuffle")
    rows_per_shard: int = Field(512, ge=1, description="bears on the training order: semantic")


Level = Annotated[float, Field(ge=0, lt=100)]
"""A noise level in percent of the corpus's training rows."""


class Noise(Spec):
    """A kind of noise and the levels it is laid over a corpus at."""

    name: Slug
    kind: Literal["symmetric", "caption_swap"]
    levels: tuple[Level, ...] = Field(min_length=1)
    seed: int = Field(0, ge=0)

    @field_validator("levels")
    @classmethod
    def _each_once(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        twice = [level for level in levels if levels.count(level) > 1]
        if twice:
            raise ValueError(f"{twice[0]:g} is given twice; name each level once")
        return tuple(sorted(levels))


class NoiseStep(Spec):
    """One level of noise over one corpus."""

    corpus: Slug
    kind: Literal["symmetric", "caption_swap"]
    level: Level
    seed: int

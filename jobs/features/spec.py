"""The settings of features in an experiment file, and the specs of features steps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jobs.contract import NOT_SEMANTIC, PATH, SILENT, Slug, Spec
from jobs.encoders.api import ApiEncoder
from jobs.encoders.spec import GivenColumns
from jobs.images.spec import Grid, Shift, Views
from jobs.tasks.target import TargetName

Precision = Literal["float32", "bfloat16", "float16"]

BatchSize = Literal["auto"] | Annotated[int, Field(ge=1)]


class Features(Spec):
    """The features section of an experiment file."""

    views: Views = Views()
    dtype: Literal["float32", "float16"] = Field("float32", description="as features are stored")
    precision: Precision = Field("float32", description="the encoder's arithmetic (autocast)")
    grid: Annotated[Grid | None, SILENT] = Field(
        None, description="how patches become features, where a task's labels are masks"
    )
    batch_size: Annotated[BatchSize, NOT_SEMANTIC] = Field(
        "auto",
        description="rows an encoder encodes at once; auto: as many as fit the device's memory, "
        "of texts a number of tokens",
    )
    gpus_per_worker: Annotated[float, NOT_SEMANTIC] = Field(0, ge=0)
    cpus_per_worker: Annotated[int, NOT_SEMANTIC] = Field(
        1, ge=1, description="threads that decode, and that compute where there is no GPU"
    )


class FeaturesStep(Features):
    """One encoder over one corpus of a task (both input steps), with or without a shift."""

    @property
    def protocol(self) -> int:  # type: ignore[override]
        """See `_protocol`."""
        return _protocol(self.dtype)

    images: Slug
    parts: tuple[Literal["train", "validation", "test"], ...]
    shift: Shift | None = None
    api: Annotated[ApiEncoder | None, NOT_SEMANTIC] = Field(
        None, description="how to ask an encoder behind an API; the encoder's step identifies it"
    )


class GivenStep(GivenColumns):
    """Features that somebody else extracted, of one task, from one Parquet file."""

    @property
    def protocol(self) -> int:  # type: ignore[override]
        """See `_protocol`."""
        return _protocol(self.dtype)

    images: Slug = Field(description="the task's name: its rows are this file's")
    parts: tuple[Literal["train", "validation", "test"], ...]
    file: Annotated[str, PATH, NOT_SEMANTIC]
    sha256: str
    classes: tuple[str, ...] = ()
    target: TargetName = "class"
    dtype: Literal["float32", "float16"] = "float32"


def _protocol(dtype: str) -> int:
    """2 for float16, whose spectrum is computed before features are stored; it once was after."""
    return 2 if dtype == "float16" else 1

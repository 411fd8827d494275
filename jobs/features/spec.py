"""The settings of features in an experiment file, and the specs of features steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from jobs.contract import NOT_SEMANTIC, PATH, SILENT, Slug, Spec
from jobs.encoders.api import ApiEncoder
from jobs.encoders.spec import GivenColumns
from jobs.extensions.spec import Extension
from jobs.images.spec import Grid, Shift, Views
from jobs.tasks.target import TargetName

Precision = Literal["float32", "bfloat16", "float16"]

Part = Literal["train", "validation", "test"]

BatchSize = Literal["auto"] | Annotated[int, Field(ge=1)]


class Features(Spec):
    """The features section of an experiment file."""

    views: Views = Field(Views(), description="augmented copies of the training samples")
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
    gpus_per_worker: Annotated[float, NOT_SEMANTIC] = Field(
        0, ge=0, description="GPUs of each encoder that runs; 0: it runs on CPUs"
    )
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
    parts: tuple[Part, ...]
    only: Annotated[tuple[Part, ...] | None, NOT_SEMANTIC] = Field(
        None, description="the parts to encode now, others can be added later; none: all"
    )
    shift: Shift | None = None
    source: Annotated[Extension | None, SILENT] = Field(
        None, description="the file that has the function of an extension's encoder"
    )
    api: Annotated[ApiEncoder | None, NOT_SEMANTIC] = Field(
        None, description="how to ask an encoder behind an API; the encoder's step identifies it"
    )

    @property
    def wanted(self) -> tuple[Part, ...]:
        """The parts to encode now."""
        return self.parts if self.only is None else self.only

    def lacking(self, counts: Mapping[str, int]) -> tuple[Part, ...]:
        """The wanted parts that finished features with these counts have not.

        Features that were made in part have their test rows, and no others.
        """
        if "rows_test" not in counts:
            return ()
        return tuple(part for part in self.wanted if f"rows_{part}" not in counts)


class GivenStep(GivenColumns):
    """Features that somebody else extracted, of one task, from one Parquet file."""

    @property
    def protocol(self) -> int:  # type: ignore[override]
        """See `_protocol`."""
        return _protocol(self.dtype)

    images: Slug = Field(description="the task's name: its rows are this file's")
    parts: tuple[Part, ...]
    file: Annotated[str, PATH, NOT_SEMANTIC]
    sha256: str
    classes: tuple[str, ...] = ()
    target: TargetName = "class"
    dtype: Literal["float32", "float16"] = "float32"


def _protocol(dtype: str) -> int:
    """2 for float16, whose spectrum is computed before features are stored; it once was after."""
    return 2 if dtype == "float16" else 1

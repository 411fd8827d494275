"""What an experiment file can say of encoders that are not trained here.

Each has a name and a `kind`: a library's pretrained tag, a file of weights, or features that
somebody else has extracted. They have no noise level and no pre-training seed. A file is
known by its content: its digest is filled in when the experiment is planned, its path never bears
on a result. A tag is known by its name; the digest of what it gave is kept with the encoder.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, JsonValue, StringConstraints, model_validator

from jobs.contract import NOT_SEMANTIC, PATH, Slug, Spec

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ImageChange(Spec):
    """What to change of the input that the weights were made for; none: as they were."""

    size: int | None = Field(None, ge=8, le=1024, description="side in pixels")
    mean: tuple[float, ...] | None = Field(None, description="of pixels in [0, 1]")
    std: tuple[float, ...] | None = None
    crop_pct: Literal["whole"] | Annotated[float, Field(gt=0, le=2)] | None = Field(
        None,
        description="the shorter side becomes size / crop_pct and the centre is cut out; whole: "
        "nothing is cut off, the sides are made equal",
    )
    interpolation: Literal["bilinear", "bicubic"] | None = None


class _Named(Spec):
    """What every named encoder with weights has."""

    name: Slug
    model: str = Field(description="the library's name of the architecture")
    image: ImageChange = ImageChange()


class TimmEncoder(_Named):
    """A timm model with pretrained weights, by timm's own loading."""

    kind: Literal["timm"] = "timm"
    tag: str | None = Field(
        None, description="which weights, as in ns_jft_in1k; none: timm's default for the model"
    )

    @model_validator(mode="before")
    @classmethod
    def _tag_after_the_dot(cls, given: object) -> object:
        """`model: tf_efficientnet_b3.ns_jft_in1k`, as timm itself writes it."""
        if isinstance(given, dict) and isinstance(given.get("model"), str):
            model, dot, tag = given["model"].partition(".")
            if dot and given.get("tag") is None:
                return {**given, "model": model, "tag": tag}
        return given


class OpenClipEncoder(_Named):
    """The image tower of an open_clip model with pretrained weights, by open_clip's loading."""

    kind: Literal["open_clip"] = "open_clip"
    tag: str = Field(description="which weights, as in laion2b_s34b_b79k")


class FileEncoder(_Named):
    """A timm or open_clip architecture with the weights of a file, local or in a bucket.

    The file is safetensors, or a state dict of tensors alone: it is read without running code.
    """

    kind: Literal["file"] = "file"
    family: Literal["timm", "open_clip"] = "timm"
    model_options: dict[str, JsonValue] = Field(default_factory=dict)
    file: Annotated[str, PATH, NOT_SEMANTIC]
    sha256: Sha256 | None = Field(None, description="of the file; filled in when planned")
    match: Literal["name", "order"] = Field(
        "name",
        description="how tensors find their place: by name, or one after another, for weights of "
        "the same architecture in another implementation",
    )
    leave_out: tuple[str, ...] = Field(
        (), description="match=name: prefixes of the file's tensors that are not the encoder's"
    )


class GivenColumns(Spec):
    """Which columns of a Parquet file of features hold what."""

    key: str = Field("key", description="the column that names a sample, string")
    vector: str = Field("vector", description="the column of features, list of float")
    label: str = Field("label", description="the column of classes, integer or name, or numbers")
    split: str | None = Field(
        None,
        description="the column that says train, validation or test; none: `split` where the file "
        "has one, else by key",
    )


class GivenEncoder(GivenColumns):
    """An encoder known by its features alone: a Parquet file for each task, any source."""

    kind: Literal["features"] = "features"
    name: Slug
    files: Annotated[dict[Slug, str], PATH, NOT_SEMANTIC] = Field(
        min_length=1, description="task -> Parquet with a row a sample"
    )
    sha256: dict[Slug, Sha256] = Field(
        default_factory=dict, description="task -> of its file; filled in when planned"
    )
    classes: dict[Slug, tuple[str, ...]] = Field(
        default_factory=dict, description="task -> names in label order; none: as the file has them"
    )

    @model_validator(mode="after")
    def _of_its_files(self) -> GivenEncoder:
        for name, found in (("sha256", self.sha256), ("classes", self.classes)):
            stray = sorted(set(found) - set(self.files))
            if stray:
                raise ValueError(f"{name} names {stray[0]}, and files has no such task; add it")
        return self


Weights: TypeAlias = Annotated[
    TimmEncoder | OpenClipEncoder | FileEncoder, Field(discriminator="kind")
]
NamedEncoder: TypeAlias = Annotated[
    TimmEncoder | OpenClipEncoder | FileEncoder | GivenEncoder, Field(discriminator="kind")
]
"""Every kind of encoder an experiment file can name."""


class EncoderStep(Spec):
    """One named encoder, taken in."""

    protocol: ClassVar[int] = 2

    encoder: Weights

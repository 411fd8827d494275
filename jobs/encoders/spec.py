"""The settings of pretrained encoders (not trained here) in an experiment file.

Each has a name and a `kind`: a library's pretrained tag, a file of weights, a text model's folder,
or features that somebody else has extracted. They have no noise level and no pre-training seed. A
file is identified by its sha256, which planning fills in; its path never affects a result. A tag is
identified by its name; the sha256 of its weights is stored with the encoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, JsonValue, StringConstraints, model_validator

from jobs.contract import NOT_SEMANTIC, PATH, SILENT, Slug, Spec
from jobs.corpus.form import Modality
from jobs.encoders.api import ApiEncoder
from jobs.extensions.spec import Extension, Reference
from jobs.images.spec import ImageInput
from jobs.storage.folder import Folder
from jobs.text.spec import Pair, Pooling, Truncate

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ImageChange(Spec):
    """Changes of the input that the weights were made for; none: no change."""

    size: int | None = Field(None, ge=8, le=1024, description="side in pixels")
    mean: tuple[float, ...] | None = Field(None, description="of pixels in [0, 1]")
    std: tuple[float, ...] | None = Field(None, description="of pixels in [0, 1]")
    crop_pct: Literal["whole"] | Annotated[float, Field(gt=0, le=2)] | None = Field(
        None,
        description="the shorter side becomes size / crop_pct and the centre is cut out; whole: "
        "nothing is cut off, the sides are made equal",
    )
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        None, description="how an image is resized"
    )


class _WithWeights(Spec):
    """The fields of every pretrained encoder of images that has weights."""

    modality: ClassVar[Modality] = "image"

    name: Slug = Field(description="the encoder's name in addresses and tables")
    model: str = Field(description="the library's name of the architecture")
    image: ImageChange = Field(
        ImageChange(), description="changes of the input that the weights were made for"
    )


class TimmEncoder(_WithWeights):
    """A timm model with pretrained weights, loaded by timm."""

    kind: Literal["timm"] = "timm"
    tag: str | None = Field(
        None, description="which weights, as in ns_jft_in1k; none: timm's default for the model"
    )

    @model_validator(mode="before")
    @classmethod
    def _split_tag(cls, given: object) -> object:
        """Split timm's own notation, `model: tf_efficientnet_b3.ns_jft_in1k`, in two."""
        if isinstance(given, dict) and isinstance(given.get("model"), str):
            model, dot, tag = given["model"].partition(".")
            if dot and given.get("tag") is None:
                return {**given, "model": model, "tag": tag}
        return given


class OpenClipEncoder(_WithWeights):
    """The image tower of an open_clip model with pretrained weights, loaded by open_clip."""

    kind: Literal["open_clip"] = "open_clip"
    tag: str = Field(description="which weights, as in laion2b_s34b_b79k")


class FileEncoder(_WithWeights):
    """A timm or open_clip architecture with weights from a file, local or in a bucket.

    The file is safetensors, or a state dict of tensors alone. Reading it runs no code.
    """

    kind: Literal["file"] = "file"
    family: Literal["timm", "open_clip"] = Field(
        "timm", description="the library that has the architecture"
    )
    model_options: dict[str, JsonValue] = Field(
        default_factory=dict, description="the library's options of the architecture"
    )
    file: Annotated[str, PATH, NOT_SEMANTIC] = Field(
        description="the weights: a path, s3:// or gs://"
    )
    sha256: Sha256 | None = Field(None, description="of the file; filled in when planned")
    match: Literal["name", "order"] = Field(
        "name",
        description="how tensors are matched to the model: by name, or in order, for weights of "
        "the same architecture in another implementation",
    )
    leave_out: tuple[str, ...] = Field(
        (), description="match=name: prefixes of tensors in the file that the encoder does not have"
    )


class _OfExtension(Spec):
    """The fields of every encoder that a function of an extension builds."""

    name: Slug = Field(description="the encoder's name in addresses and tables")
    model: Reference = Field(description="the function, as in my_models:small_cnn")
    model_options: dict[str, JsonValue] = Field(
        default_factory=dict, description="the function's arguments after the first"
    )
    file: Annotated[str | None, PATH, NOT_SEMANTIC] = Field(
        None,
        description="the weights of the module that the function returns: a path, s3:// or gs://; "
        "none: those that the function gives",
    )
    sha256: Sha256 | None = Field(None, description="of the file; filled in when planned")
    leave_out: tuple[str, ...] = Field(
        (), description="prefixes of tensors in the file that the module does not have"
    )
    source: Annotated[Extension | None, SILENT] = Field(
        None, description="the extension's file; filled in when planned"
    )

    @model_validator(mode="after")
    def _has_a_file(self) -> Self:
        if self.file is None and (self.sha256 or self.leave_out):
            raise ValueError("sha256 and leave_out belong to file; give it, or leave them out")
        return self


class OwnEncoder(_OfExtension):
    """A function of an extension builds the encoder of images; its weights may come from a file."""

    modality: ClassVar[Modality] = "image"

    kind: Literal["extension"] = "extension"
    image: ImageInput = Field(ImageInput(), description="how an image becomes the encoder's input")


class OwnTextEncoder(_OfExtension):
    """A function of an extension builds the encoder of texts; its weights may come from a file."""

    modality: ClassVar[Modality] = "text"

    kind: Literal["text_extension"] = "text_extension"
    tokenizer: Annotated[str, PATH, NOT_SEMANTIC] = Field(
        description="a folder with a tokenizer, as its save_pretrained writes it"
    )
    tokenizer_sha256: Sha256 | None = Field(
        None, description="of the tokenizer's files; filled in when planned"
    )
    pooling: Literal["cls", "mean", "last"] = Field(
        "mean", description="which hidden states stand for a text: the first, the mean, the last"
    )
    pair: Pair = Field(
        "join",
        description="how two texts of a row are read: tokenizer: as its own pair; join: with a "
        "line break between; concat4: each by itself, [u; v; |u - v|; u * v]",
    )
    prompt: str = Field("", description="stands before each text")
    normalise: bool = Field(False, description="features of length 1")
    max_length: int = Field(128, ge=1, description="tokens of a text, special ones included")
    truncate: Truncate = Field("end", description="what happens to a longer text")


PACKAGE = "package:"
"""Begins the name of a folder inside an installed Python package: `package:some_model/model`."""


class TransformersEncoder(Spec):
    """A text model of the transformers library, from a folder or the Hub. Its code is never run.

    A folder is identified by `sha256`, a model of the Hub by its id and revision.
    """

    modality: ClassVar[Modality] = "text"

    kind: Literal["transformers"] = "transformers"
    name: Slug = Field(description="the encoder's name in addresses and tables")
    model: Annotated[str, PATH, NOT_SEMANTIC] = Field(
        description="a folder with config.json, model.safetensors and a tokenizer; `package:` and "
        "a path: such a folder in an installed package; with `revision`: an id of the Hub, as in "
        "openai-community/gpt2"
    )
    revision: str | None = Field(
        None, pattern=r"^[0-9a-f]{40}$", description="the commit of a model of the Hub"
    )
    pooling: Literal["auto"] | Pooling = Field(
        "auto",
        description="auto: as a sentence-transformers folder says; else the last token of a model "
        "that reads from left to right, and the first token of others",
    )
    pair: Pair = Field(
        "tokenizer",
        description="how two texts of a row are read: tokenizer: as its own pair; join: with a "
        "line break between; concat4: each by itself, [u; v; |u - v|; u * v]",
    )
    prompt: str = Field("", description="stands before each text; none: the folder's own, if any")
    normalise: bool | None = Field(
        None, description="features of length 1; none: as the folder says, else no"
    )
    layer: int | None = Field(
        None, description="index of the hidden states that are pooled; none: the last ones"
    )
    max_length: int | None = Field(
        None, ge=1, description="tokens; none: the folder's own, else the model's, at most 512"
    )
    truncate: Truncate = Field("end", description="what happens to a longer text")
    sha256: Sha256 | None = Field(None, description="of the files; filled in when planned")

    def semantic(self) -> dict[str, Any]:
        """As of any spec; an id of the Hub bears identity, a folder's path does not."""
        own = super().semantic()
        return own if self.revision is None else {**own, "model": self.model}

    def paths(self) -> Iterator[str]:
        """The folder; an id of the Hub is no path."""
        return super().paths() if self._is_path else iter(())

    def with_absolute_paths(self, folder: Folder | None = None) -> Self:
        """A copy with an absolute folder; an id of the Hub stays as it is."""
        return super().with_absolute_paths(folder) if self._is_path else self

    @property
    def _is_path(self) -> bool:
        return self.revision is None and not self.model.startswith(PACKAGE)


class GivenColumns(Spec):
    """The columns of a Parquet file of features."""

    key: str = Field("key", description="the column that names a sample, string")
    vector: str = Field("vector", description="the column of features, list of float")
    label: str = Field("label", description="the column of classes, integer or name, or numbers")
    split: str | None = Field(
        None,
        description="the column with train, validation or test; none: `split` where the file has "
        "one, else by key",
    )


class GivenEncoder(GivenColumns):
    """An encoder given by its features alone: a Parquet file for each task, from any source."""

    kind: Literal["features"] = "features"
    name: Slug = Field(description="the encoder's name in addresses and tables")
    files: Annotated[dict[Slug, str], PATH, NOT_SEMANTIC] = Field(
        min_length=1, description="task -> Parquet file with one row for each sample"
    )
    sha256: dict[Slug, Sha256] = Field(
        default_factory=dict, description="task -> sha256 of its file; filled in when planned"
    )
    classes: dict[Slug, tuple[str, ...]] = Field(
        default_factory=dict, description="task -> names in label order; none: those in the file"
    )

    @model_validator(mode="after")
    def _check_tasks(self) -> GivenEncoder:
        for name, found in (("sha256", self.sha256), ("classes", self.classes)):
            stray = sorted(set(found) - set(self.files))
            if stray:
                raise ValueError(f"{name} names {stray[0]}, but files has no such task; add it")
        return self


_Loaded: TypeAlias = (
    TimmEncoder
    | OpenClipEncoder
    | FileEncoder
    | OwnEncoder
    | OwnTextEncoder
    | TransformersEncoder
    | ApiEncoder
)

Weights: TypeAlias = Annotated[_Loaded, Field(discriminator="kind")]
PretrainedEncoder: TypeAlias = Annotated[_Loaded | GivenEncoder, Field(discriminator="kind")]
"""Every kind of pretrained encoder an experiment file can have."""


class EncoderStep(Spec):
    """One pretrained encoder to import."""

    protocol: ClassVar[int] = 2

    encoder: Weights

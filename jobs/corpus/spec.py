"""The settings of a corpus in an experiment file: its source, its parts, its shards.

Paths are not part of a corpus's identity, since data moves; `version` is, for when data changes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from jobs.contract import NOT_SEMANTIC, SILENT, Slug, Spec
from jobs.corpus.form import Form, LabelKind, Modality, form_of
from jobs.corpus.reader_spec import AnyReader, MaskFolderReader, Reader, TextReader
from jobs.images.spec import MOST_PIXELS, Shrink


def _tag_of(value: Any) -> str:
    return "tagged-share" if isinstance(value, (int, float, str)) else "tagged-reader"


ShareOrSource = Annotated[
    Annotated[float, Field(ge=0, le=1), Tag("tagged-share")]
    | Annotated[Reader, Tag("tagged-reader")],
    Discriminator(_tag_of),
]


class Parts(Spec):
    """A corpus's parts: shares of `reader`'s rows, chosen by key, or readers of their own.

    A row's part is a function of its key alone. The shares sum to 1.
    """

    train: float = Field(0.60, ge=0, le=1, description="0: a corpus for tests only")
    validation: ShareOrSource = Field(
        0.15, description="a share of the rows, or a reader of its own; selects configurations"
    )
    test: ShareOrSource = Field(
        0.25, description="a share of the rows, or a reader of its own; read once, at the end"
    )

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> Parts:
        total = sum(self.shares)
        if abs(total - 1) > 1e-9:
            named = [n for n in ("train", "validation", "test") if n not in self.sources]
            raise ValueError(f"{' and '.join(named)} must sum to 1, not {total:g}")
        return self

    @property
    def shares(self) -> tuple[float, float, float]:
        """The shares of train, validation and test; 0 for a part that has its own reader."""
        validation, test = (v if isinstance(v, float) else 0.0 for v in self._validation_and_test)
        return self.train, validation, test

    @property
    def sources(self) -> dict[str, AnyReader]:
        """The parts that have a reader of their own."""
        named = zip(("validation", "test"), self._validation_and_test, strict=True)
        return {name: value for name, value in named if not isinstance(value, float)}

    @property
    def _validation_and_test(self) -> tuple[float | AnyReader, float | AnyReader]:
        return self.validation, self.test


class Corpus(Spec):
    """Keyed images or texts with labels (images: captions too), split into parts and shards."""

    name: Slug = Field(description="the corpus's name in addresses and tables")
    modality: Annotated[Modality, SILENT] = Field("image", description="what its samples are")
    reader: Reader = Field(description="where the rows are, and in which format")
    parts: Parts = Field(Parts(), description="how the rows are split")
    seed: int = Field(0, ge=0, description="decides each key's part and position in the shuffle")
    shuffle: Literal["global", "none"] = Field("global", description="none: in the source's order")
    rows_per_shard: int = Field(512, ge=1, description="semantic: it affects the training order")
    shard_mb: float | None = Field(
        None, gt=0, description="the size of a shard, instead of `rows_per_shard`"
    )
    verify: Literal["headers", "full"] = Field(
        "headers", description="full: decode every image, not only small and unusual ones"
    )
    max_pixels: int = Field(
        89_478_485,
        ge=1,
        le=MOST_PIXELS,
        description="width x height; a larger image is refused undecoded",
    )
    shrink: Annotated[Shrink | None, SILENT] = Field(
        None, description="of images: larger ones are stored smaller; none: as they are"
    )
    allow_empty_classes: Annotated[bool, NOT_SEMANTIC] = Field(
        False, description="build although a class has no row in the training part"
    )
    max_bad_share: Annotated[float, NOT_SEMANTIC] = Field(
        0.001, ge=0, le=1, description="share of quarantined rows above which the build fails"
    )

    @model_validator(mode="after")
    def _readers_agree(self) -> Corpus:
        readers = {"reader": self.reader} | {
            f"parts.{part}": reader for part, reader in self.parts.sources.items()
        }
        for where, reader in readers.items():
            if reader.modality == self.modality:
                continue
            if reader.modality == "text":
                raise ValueError(
                    f"corpus.{where} has `fields`, so it reads texts: set modality: text"
                )
            raise ValueError(
                f"corpus.{where} of kind {reader.kind} reads images, and modality is text: give it "
                f"`fields` (kind parquet, table or jsonl)"
            )
        if self.shrink is not None and self.modality != "image":
            raise ValueError("corpus.shrink is for images, and modality is text: leave it out")
        if self.shrink is not None and self.label_kind == "masks":
            raise ValueError("corpus.shrink keeps no masks, which are as large as their images")
        if len({_label_kind(reader) for reader in readers.values()}) > 1:
            raise ValueError(
                "the readers of a corpus must have the same `labels`, and masks in all or in none"
            )
        return self

    @property
    def label_kind(self) -> LabelKind:
        """Whether its labels are classes, numbers or masks."""
        return _label_kind(self.reader)

    @property
    def form(self) -> Form:
        """The form of its rows."""
        return form_of(self.modality, self.label_kind)


def _label_kind(reader: AnyReader) -> LabelKind:
    if isinstance(reader, MaskFolderReader) or getattr(reader, "mask", None) is not None:
        return "masks"
    return reader.labels if isinstance(reader, TextReader) else "classes"

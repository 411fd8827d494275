"""The form of a corpus's rows: which columns they have, before and after they are stored.

A corpus has one modality, image or text, and labels of one kind: classes, numbers, or masks (a
class for each pixel of an image). `form_of` gives its schemas and names the one column that holds
most of a row's bytes. All else in this room handles rows by their form. Knows schemas alone: reads
and checks nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import pyarrow as pa

Modality = Literal["image", "text"]
LabelKind = Literal["classes", "numbers", "masks"]

IMAGES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # stable, unique, from the source's naming
        pa.field("image", pa.binary(), nullable=False),  # encoded: the source's bytes, or shrunk
        pa.field("label", pa.int32()),  # index into the corpus's classes
        pa.field("caption", pa.string()),
        pa.field("width", pa.int32(), nullable=False),  # pixels
        pa.field("height", pa.int32(), nullable=False),
    ]
)
"""A row of a shard of images."""

MASKED = IMAGES.append(pa.field("mask", pa.binary(), nullable=False))
"""As IMAGES, with a PNG of the corpus's class numbers (`jobs.images.masks`); labels are null."""

TEXTS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # from the source, or a hash of both texts
        pa.field("text", pa.string(), nullable=False),
        pa.field("pair", pa.string()),  # the second text; null in corpora without pairs
        pa.field("label", pa.int32()),  # index into the corpus's classes
    ]
)
"""A row of a shard of texts; `label` is float64 where labels are numbers."""

_UNCOMPRESSED = ("image", "mask")  # encoded images do not become smaller
_REPEATING = ("label", "width", "height")  # columns with few different values


@dataclass(frozen=True)
class Form:
    """How the rows of a corpus are stored."""

    modality: Modality
    shard: pa.Schema  # of a shard's rows
    content: tuple[str, ...]  # the columns of a row's content: what an encoder reads
    companion: str  # the second thing that a row may have: a caption, a pair

    @property
    def bulk(self) -> str:
        """The column that holds most of a row's bytes. It is never null."""
        return self.content[0]

    @property
    def light(self) -> list[str]:
        """All other columns."""
        return [name for name in self.shard.names if name != self.bulk]

    @property
    def checked(self) -> pa.Schema:
        """The schema of checked rows: a shard's, with the bulk as large_binary."""
        at = self.shard.get_field_index(self.bulk)
        return self.shard.set(at, pa.field(self.bulk, pa.large_binary(), nullable=False))

    @property
    def run(self) -> pa.Schema:
        """The schema of a run's rows: the light ones, with their order and their bulk's bytes."""
        light = (self.shard.field(name) for name in self.light)
        order = pa.field("order", pa.uint64(), nullable=False)
        return pa.schema([order, *light, pa.field("size", pa.int64(), nullable=False)])

    @property
    def compression(self) -> dict[str, str]:
        """Parquet's compression of each column of a shard."""
        return {n: "NONE" if n in _UNCOMPRESSED else "ZSTD" for n in self.shard.names}

    @property
    def dictionary(self) -> list[str]:
        """The columns of a shard that Parquet stores by dictionary."""
        return [n for n in _REPEATING if n in self.shard.names and n not in self._floating]

    @property
    def _floating(self) -> list[str]:
        return [field.name for field in self.shard if pa.types.is_floating(field.type)]


@cache
def form_of(modality: Modality, labels: LabelKind = "classes") -> Form:
    """The form of a corpus with this modality and kind of labels."""
    if modality == "image":
        return Form("image", MASKED if labels == "masks" else IMAGES, ("image",), "caption")
    shard = TEXTS
    if labels == "numbers":
        shard = shard.set(shard.get_field_index("label"), pa.field("label", pa.float64()))
    return Form("text", shard, ("text", "pair"), "pair")

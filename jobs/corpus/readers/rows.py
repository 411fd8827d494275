"""Rows as a reader gives them, before they are checked.

A reader's row says where it comes from, its key, its bytes, and its label or caption as the source
has them; a row that the reader itself cannot make whole carries a `fault`, a word for the
quarantine. Whether the image is an image, the label a class and the caption text is for
`jobs.corpus.check` to say. Nothing here reads a source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from jobs.images.headers import EXTENSIONS

RAW = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),  # the file, relative to the reader's path
        pa.field("key", pa.string()),
        pa.field("image", pa.large_binary()),  # encoded
        pa.field("label", pa.int64()),  # index into the reader's classes
        pa.field("caption", pa.large_binary()),  # should be UTF-8
        pa.field("claims", pa.string()),  # the format that the file's name claims
        pa.field("fault", pa.string()),  # why the reader gives the row up; null: it does not
    ]
)

UNKNOWN = -1
"""The label of a row whose source names a class that is none of its classes."""

LABEL_DIGITS = 18  # at most; more is no class's number, and may not fit `RAW`

BATCH_ROWS = 4_096
BATCH_BYTES = 16 << 20


@dataclass(frozen=True)
class Unit:
    """A piece of a source that is read by one task, in the reader's own terms."""

    file: str
    start: int
    stop: int
    label: int | None = None  # of all its rows, where the reader knows it so


@dataclass(frozen=True)
class Classes:
    """A source's classes in label order; both empty for a source without labels."""

    ids: tuple[str, ...] = ()  # as the source names them: folder, WordNet id, or the name itself
    names: tuple[str, ...] = ()  # for people, and for zero-shot prompts

    @staticmethod
    def of(ids: Sequence[str], names: dict[str, str] | None = None) -> Classes:
        """Classes by id, with the names that a mapping gives some of them."""
        known = names or {}
        return Classes(tuple(ids), tuple(known.get(i, i) for i in ids))


class Reader(Protocol):
    """What the corpus stage asks of any source. It is sent to workers, so it holds no handles."""

    @property
    def labels(self) -> bool:
        """Whether every row ought to have a label, even where no class is known."""

    @property
    def captions(self) -> bool:
        """Whether every row ought to have a caption."""

    def classes(self) -> Classes:
        """The classes; may read names, headers and small columns, never images."""

    def units(self) -> Sequence[Unit]:
        """The pieces that together are the whole source, each row in exactly one, in its order."""

    def files(self) -> Iterator[tuple[str, int]]:
        """(name, bytes) of every file of the source that `Listing` is made of."""

    def read(self, unit: Unit) -> Iterator[pa.Table]:
        """A unit's rows, by `RAW`, a few megabytes at a time, always in the same order."""


@dataclass
class Gather:
    """Rows gathered one by one into tables of a bounded size."""

    source: str
    _rows: dict[str, list[Any]] = field(default_factory=lambda: {n: [] for n in RAW.names})
    _bytes: int = 0

    def add(
        self,
        key: str,
        image: bytes | None,
        *,
        label: int | None = None,
        caption: bytes | None = None,
        claims: str | None = None,
        fault: str | None = None,
    ) -> None:
        """One row more."""
        row = (self.source, key, image, label, caption, claims, fault)
        for column, value in zip(self._rows.values(), row, strict=True):
            column.append(value)
        self._bytes += len(image or b"")

    def full(self) -> Iterator[pa.Table]:
        """The table, once there is enough for one."""
        if self._bytes >= BATCH_BYTES or len(self._rows["key"]) >= BATCH_ROWS:
            yield from self.rest()

    def rest(self) -> Iterator[pa.Table]:
        """The table of whatever has been gathered, if anything has."""
        if self._rows["key"]:
            yield pa.table(self._rows, schema=RAW)
            self._rows, self._bytes = {name: [] for name in RAW.names}, 0


def number_of(words: str) -> int:
    """The label that these words are as a number; UNKNOWN where they are none."""
    return int(words) if words.isdecimal() and len(words) <= LABEL_DIGITS else UNKNOWN


def claim(name: str) -> str | None:
    """The format that a file's name claims, None where it claims none."""
    return EXTENSIONS.get(name.rpartition(".")[2].lower())

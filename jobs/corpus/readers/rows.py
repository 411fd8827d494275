"""Rows as a reader gives them, before they are checked.

A row has its source, its key, its content, and its label or caption as in the source. A row that
the reader cannot complete has a `fault`, the reason for its quarantine. `jobs.corpus.check` decides
whether the image is an image, the label is a class and a text is text. What a reader passes over
is counted as notes. Nothing here reads a source.
"""

from __future__ import annotations

from collections import Counter
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
        pa.field("mask", pa.large_binary()),  # encoded; null unless the corpus has masks
        pa.field("claims", pa.string()),  # the image format by the file's extension
        pa.field("fault", pa.string()),  # why the row goes to quarantine; null: no fault so far
        pa.field("detail", pa.string()),  # what a message shows of it: a path tried, a label's text
    ]
)

TEXTS = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("key", pa.string()),
        pa.field("text", pa.large_binary()),  # should be UTF-8
        pa.field("pair", pa.large_binary()),  # should be UTF-8
        pa.field("label", pa.int64()),  # index into the reader's classes
        pa.field("number", pa.float64()),  # the label, where labels are numbers
        pa.field("fault", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
"""As RAW, of texts."""

UNKNOWN = -1
"""The label of a row whose class is not among the reader's classes."""

BATCH_ROWS = 4_096
BATCH_BYTES = 16 << 20


@dataclass(frozen=True)
class Unit:
    """A piece of a source that one task reads; each reader defines what `start` and `stop` are."""

    file: str
    start: int
    stop: int
    label: int | None = None  # of all its rows, if they share one


@dataclass(frozen=True)
class Classes:
    """A source's classes in label order; both empty for a source without labels."""

    ids: tuple[str, ...] = ()  # in the source's terms: folder, WordNet id, or the name itself
    names: tuple[str, ...] = ()  # for people, and for zero-shot prompts

    @staticmethod
    def of(ids: Sequence[str], names: dict[str, str] | None = None) -> Classes:
        """Classes by id, with the names in the mapping; a class without one has its id as name."""
        known = names or {}
        return Classes(tuple(ids), tuple(known.get(i, i) for i in ids))


class Reader(Protocol):
    """The interface of every source. It is sent to workers, so it keeps no open handles."""

    @property
    def labels(self) -> bool:
        """Whether every row must have a label, even if no class is known."""

    @property
    def captions(self) -> bool:
        """Whether every row must have a caption; of texts: a pair."""

    def classes(self) -> Classes:
        """The classes; may read names, headers and small columns, never images."""

    def units(self) -> Sequence[Unit]:
        """The pieces of the source, in its order; every row is in exactly one."""

    def files(self) -> Iterator[tuple[str, int]]:
        """(name, bytes) of every file of the source that its `Listing` counts."""

    def label_counts(self) -> Counter[int] | None:
        """Rows of each label, UNKNOWN included; None if only reading all images would tell."""

    def read(self, unit: Unit, notes: Counter[str]) -> Iterator[pa.Table]:
        """A unit's rows, by `RAW` or `TEXTS`, a few megabytes at a time, always in the same order.

        What is passed over because it is no row (a hidden file, say) is counted in `notes`.
        """


@dataclass
class RowBatcher:
    """Collects single rows into tables of a bounded size."""

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
        mask: bytes | None = None,
        claims: str | None = None,
        fault: str | None = None,
        detail: str | None = None,
    ) -> None:
        """Add a row."""
        row = (self.source, key, image, label, caption, mask, claims, fault, detail)
        for column, value in zip(self._rows.values(), row, strict=True):
            column.append(value)
        self._bytes += len(image or b"") + len(mask or b"")

    def full(self) -> Iterator[pa.Table]:
        """The table of the rows so far, once they are enough for one."""
        if self._bytes >= BATCH_BYTES or len(self._rows["key"]) >= BATCH_ROWS:
            yield from self.rest()

    def rest(self) -> Iterator[pa.Table]:
        """The table of the rows so far, if there are any."""
        if self._rows["key"]:
            yield pa.table(self._rows, schema=RAW)
            self._rows, self._bytes = {name: [] for name in RAW.names}, 0


def claim(name: str) -> str | None:
    """The image format by a file name's extension; None for an unknown extension."""
    return EXTENSIONS.get(name.rpartition(".")[2].lower())


def why_no_rows(spec: object) -> str:
    """Words on a source in which its reader (its settings are `spec`) found no row."""
    where = getattr(spec, "where", None)
    return f"no row of the source fits `where` ({where})" if where else "the source has no rows"

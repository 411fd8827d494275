"""Texts with a label: what all readers of texts share.

A format (Parquet, CSV and TSV, JSON Lines) gives a file's rows with labels as words (`FORM`). This
module gives them keys, classes and numbers. Labels are linked by name: an integer is a position in
`label_names`, or in the names that the file declares. A source without key columns is one unit,
because equal texts are counted over all of it. Opens no file.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from jobs.alike import alike
from jobs.contract import StageError
from jobs.corpus.reader_spec import TextReader
from jobs.corpus.readers.labels import (
    Naming,
    dense_names,
    scanned_names,
    scanned_numbers,
    whole_number,
    without_point_zero,
)
from jobs.corpus.readers.rows import TEXTS, UNKNOWN, Classes, Unit
from jobs.corpus.readers.source import files

FORM = pa.schema(
    [
        pa.field("text", pa.large_binary()),
        pa.field("pair", pa.large_binary()),
        pa.field("label", pa.string()),  # a class's name or number, or a number; null: none
        pa.field("key", pa.string()),  # null: the source names no key
        pa.field("fault", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
"""A row as a format gives it."""

_NEGATIVE = re.compile(r"-\d+(\.0*)?")
_SHOWN = 40  # characters of a label that a message shows


class Format(Protocol):
    """Reads one file of texts."""

    def rows(self, name: str) -> Iterator[pa.Table]:
        """A file's rows that fit `where`, by FORM, in its order, some thousand at a time."""

    def labels(self, name: str) -> Iterator[pa.Table]:
        """The same rows, of which `label` alone is needed."""

    def declared(self) -> Sequence[str] | None:
        """The names of the label's classes in the first file that declares some."""


@dataclass(frozen=True)
class Texts:
    """Rows of texts, keyed by columns or by the texts themselves.

    `known`: what `classes` gave, so that no label is read again to know them.
    """

    spec: TextReader
    format: Format
    known: Classes | None = None

    @property
    def labels(self) -> bool:
        """Every text has a label."""
        return True

    @property
    def captions(self) -> bool:
        """Whether every row has two texts."""
        return self.spec.fields.pair is not None

    @cached_property
    def _naming(self) -> Naming:
        """Without `known`, this may read every file."""
        return Naming(self.classes().ids)

    def classes(self) -> Classes:
        """`label_names`; else the names that the files declare; else the labels that occur."""
        if self.known is not None or self.spec.labels == "numbers":
            return self.known or Classes()
        declared, names = self.format.declared(), self.spec.label_names
        if names and declared is not None and list(declared) != list(names):
            raise StageError(
                f"{self.spec.path}: its metadata names the classes {', '.join(declared)}, and "
                f"label_names {', '.join(names)}; correct label_names, or leave it out"
            )
        if names or declared is not None:
            found = Naming(self._listed(names or declared or (), declared is not None))
            found.refuse_numbers_for_others(f"{self.spec.path}, `label_names`")
            return Classes.of(found.classes)
        texts = set(self._label_texts())
        where = f"{self.spec.path}, {self.spec.fields.label!r}"
        if negative := sorted(text for text in texts if _NEGATIVE.fullmatch(text.strip())):
            raise StageError(
                f"{where} holds the label {negative[0]}; list it in `unlabelled` if it stands for "
                f"no label, or name the classes in `label_names`"
            )
        for left_out in _unlabelled(self.spec) - texts:
            if (near := alike(left_out, texts)) is not None:
                raise StageError(
                    f"{where} holds the label {near!r}, and `unlabelled` lists {left_out!r}; "
                    f"write it as the source does"
                )
        numbers = scanned_numbers(texts)
        if numbers is None:
            return Classes.of(scanned_names(texts, where, "label_names"))
        return Classes.of(dense_names(numbers, where))

    def _listed(self, names: Sequence[str], declared: bool) -> tuple[str, ...]:
        """The listed names but those of `unlabelled`. Raises StageError for lists of no use."""
        left_out = _unlabelled(self.spec)
        source = "its metadata lists" if declared else "label_names lists"
        repeated = [name for name, count in Counter(names).items() if count > 1]
        blank = [name for name in names if not name.strip()]
        if repeated or blank:
            what = f"two classes called {repeated[0]!r}" if repeated else "a class without a name"
            where = "in `label_names`" if declared else "there"
            raise StageError(
                f"{self.spec.path}: {source} {what}; give each a name of its own {where}"
            )
        for text in left_out:
            number = whole_number(text)
            if declared and text not in names and number is not None and number < len(names):
                raise StageError(
                    f"{self.spec.path}: `unlabelled` lists {text}, but labels have names here; "
                    f"list the name, {names[number]!r}"
                )
        if not declared and (both := left_out & set(names)):
            raise StageError(
                f"{self.spec.path}: label_names and unlabelled both list {min(both)!r}; remove it "
                f"from one"
            )
        return tuple(name for name in names if name not in left_out)

    def units(self) -> Sequence[Unit]:
        """One for each file; without key columns, one for the source."""
        found = [name for name, _ in self.files()]
        if self.spec.key:
            return [Unit(name, 0, 1) for name in found]
        return [Unit("", 0, len(found))]

    def files(self) -> Iterator[tuple[str, int]]:
        """Every file of texts."""
        yield from files(self.spec.path, self.spec.files)

    def label_counts(self) -> Counter[int] | None:
        """By the labels of all rows."""
        if self.spec.labels == "numbers":
            return None
        found = Counter[int]()
        for text, count in self._label_texts().items():
            found[self._naming.of_text(text)] += count
        return found

    def rows(self) -> int:
        """How many rows the source has, those without a label included."""
        names = [name for name, _ in self.files()]
        return sum(len(rows) for name in names for rows in self.format.labels(name))

    def _label_texts(self) -> Counter[str]:
        """Every label that is not blank and stands for one -> its rows."""
        found: Counter[str] = Counter()
        for name, _ in self.files():
            for rows in self.format.labels(name):
                usable = rows["label"].filter(pc.is_null(rows["fault"]))
                found.update(usable.drop_null().to_pylist())
        return Counter({t: n for t, n in found.items() if t.strip() and not self._left_out(t)})

    def _left_out(self, label: str) -> bool:
        return without_point_zero(label.strip()) in _unlabelled(self.spec)

    def read(self, unit: Unit, notes: Counter[str]) -> Iterator[pa.Table]:
        """The rows of a file, or of all files. Rows without a label are counted as unlabelled."""
        names = [unit.file] if unit.file else [name for name, _ in self.files()]
        keys = _Keys()
        for name in names:
            for rows in self.format.rows(name):
                if self.spec.unlabelled:
                    labels = pc.unique(rows["label"].drop_null()).to_pylist()
                    left_out = [label for label in labels if self._left_out(label)]
                    without = pc.is_in(rows["label"], value_set=pa.array(left_out, pa.string()))
                    notes["unlabelled"] += pc.sum(without).as_py() or 0
                    rows = rows.filter(pc.invert(without))
                if len(rows):
                    yield self._as_raw(name, rows, keys, notes)

    def _as_raw(self, name: str, rows: pa.Table, keys: _Keys, notes: Counter[str]) -> pa.Table:
        key = rows["key"] if self.spec.key else pa.array(keys.of(rows, notes), pa.string())
        faults, details = rows["fault"].to_pylist(), rows["detail"].to_pylist()
        labels = rows["label"].to_pylist()
        naming = self._naming
        classes: list[int | None] = [None] * len(rows)
        numbers: list[float | None] = [None] * len(rows)
        for row, text in enumerate(labels):
            if text is None or not text.strip():
                continue
            if self.spec.labels == "numbers":
                numbers[row] = _number(text)
                if numbers[row] is None and faults[row] is None:
                    faults[row] = "label_not_a_number"
                    details[row] = f"the label {text[:_SHOWN]!r} is no finite number"
                continue
            classes[row] = naming.of_text(text)
            if not 0 <= (classes[row] or 0) < len(naming.classes):
                classes[row] = UNKNOWN
            if classes[row] == UNKNOWN and details[row] is None:
                remedy = "list it in `unlabelled` if it stands for no label"
                details[row] = f"{naming.why_unknown(text)}; {remedy}"
        columns = [
            pa.repeat(name, len(rows)),
            key,
            rows["text"],
            rows["pair"],
            pa.array(classes, pa.int64()),
            pa.array(numbers, pa.float64()),
            pa.array(faults, pa.string()),
            pa.array(details, pa.string()),
        ]
        return pa.table(columns, schema=TEXTS)


@dataclass
class _Keys:
    """Keys for rows without one: a hash of both texts, and a number where texts are equal."""

    _seen: dict[bytes, tuple[int, str | None]] = field(default_factory=dict)  # -> rows, first label

    def of(self, rows: pa.Table, notes: Counter[str]) -> list[str]:
        """The rows' keys. Equal texts are counted in `notes`, also those with other labels."""
        found = []
        columns = (rows[name].to_pylist() for name in ("text", "pair", "label", "key"))
        for text, pair, label, key in zip(*columns, strict=True):
            if text is None and key is not None:  # a bad row, named by its line
                found.append(key)
                continue
            digest = _digest(text, pair)
            count, first = self._seen.get(digest, (0, label))
            self._seen[digest] = count + 1, first
            hashed = digest.hex() if count == 0 else f"{digest.hex()}-{count + 1}"
            found.append(hashed if key is None else key)
            notes["equal_rows"] += count > 0
            notes["equal_rows_other_label"] += count > 0 and label != first
        return found


def _digest(text: bytes | None, pair: bytes | None) -> bytes:
    parts = [text or b""] if pair is None else [text or b"", pair]
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest()


def _number(text: str) -> float | None:
    """A finite decimal number; None for any other text."""
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) and text.isascii() and "_" not in text else None


def _unlabelled(spec: TextReader) -> set[str]:
    return {without_point_zero(str(value).strip()) for value in spec.unlabelled}


def wanted(spec: TextReader, column: str) -> list[str]:
    """The values that a column of `where` may have, as text; `3` stands for `3.0` too."""
    value = spec.where[column]
    values = value if isinstance(value, tuple) else (value,)
    return [without_point_zero(str(value)) for value in values]


def fits(spec: TextReader, column: str, texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which of a column's texts have a value that `where` wants."""
    plain = pc.replace_substring_regex(texts, r"^(-?\d+)\.0*$", r"\1")
    return pc.is_in(plain, value_set=pa.array(wanted(spec, column), pa.string()))

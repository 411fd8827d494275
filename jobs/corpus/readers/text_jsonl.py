"""Texts in JSON Lines: one object a line, as SNLI and MNLI are distributed.

A line that is no JSON object, and a text that is no string, is a bad row. Labels are strings or
numbers; a list, an object, true or false is no label. Files may be compressed (.gz).
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from jobs.alike import alike
from jobs.contract import StageError
from jobs.corpus.reader_spec import JsonLinesReader
from jobs.corpus.readers.formats import other_format
from jobs.corpus.readers.json_object import parse_object
from jobs.corpus.readers.labels import is_unicode, label_text, without_point_zero
from jobs.corpus.readers.rows import BATCH_ROWS
from jobs.corpus.readers.source import locate, stream
from jobs.corpus.readers.texts import FORM, wanted

LINE_BYTES = 16 << 20  # of a line; a longer one is a bad row
_SHOWN = 40  # characters of a line that a message shows


@dataclass(frozen=True)
class TextJsonLines:
    """The lines of JSON Lines files as texts."""

    spec: JsonLinesReader

    def declared(self) -> None:
        """None: JSON declares no class names."""
        return

    def rows(self, name: str) -> Iterator[pa.Table]:
        """A file's rows that fit `where`, by FORM. Raises StageError when no line has a field."""
        rows, whole, last = _Batch(), False, None
        for number, line in self._lines(name):
            values, fault, wrong = _parsed(line, self.spec.columns_read)
            if values is None:
                words = f"line {number:,} of {name}{wrong and f': {wrong}'}"
                rows.add(None, None, None, f"line {number}", fault, words)
            else:
                whole, last = whole or set(self.spec.columns_read) <= set(values), values
                if self._fits(values):
                    self._add(rows, values, number)
            if rows.full:
                self._refuse_fields(name, whole, last)
                yield from rows.rest()
        self._refuse_fields(name, whole, last)
        yield from rows.rest()

    def labels(self, name: str) -> Iterator[pa.Table]:
        """The same rows: JSON is read in whole."""
        yield from self.rows(name)

    def _lines(self, name: str) -> Iterator[tuple[int, bytes]]:
        """Each line that is not blank and its number. Of a line that is too long, its start."""
        with stream(self.spec.path, name) as opened:
            lines = io.BufferedReader(_Raw(opened), 1 << 20)
            if (other := other_format(lines.peek(8)[:8])) is not None:
                raise StageError(f"{locate(self.spec.path, name)[1]} {other}")
            number = 0
            while line := lines.readline(LINE_BYTES + 1):
                number += 1
                rest = line
                while len(rest) > LINE_BYTES and not rest.endswith(b"\n"):
                    rest = lines.readline(LINE_BYTES + 1)
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    yield number, line

    def _fits(self, values: Mapping[str, Any]) -> bool:
        for column in self.spec.where:
            value = values.get(column)
            text = str(value).lower() if isinstance(value, bool) else label_text(value)
            if text is None or without_point_zero(text) not in wanted(self.spec, column):
                return False
        return True

    def _add(self, rows: _Batch, values: Mapping[str, Any], number: int) -> None:
        fields, fault, detail = self.spec.fields, None, None
        texts: list[bytes | None] = []
        for role, name in (("text", fields.text), ("pair", fields.pair)):
            value = None if name is None else values.get(name)
            if value is not None and not isinstance(value, str):
                fault, detail, value = f"{role}_not_text", f"{name} is {value!r}"[:80], None
            texts.append(None if value is None else value.encode("utf-8", "surrogatepass"))
        value = values.get(fields.label)
        label = label_text(value)
        if self.spec.labels == "numbers" and isinstance(value, float):
            label = repr(value)
        if value is not None and label is None and fault is None:
            kind = "label_not_a_number" if self.spec.labels == "numbers" else "label_unknown"
            fault, detail = kind, f"{fields.label} is {value!r}"[:80]
        key = self._key(values) if self.spec.key else None
        if key is None and (fault or self.spec.key):
            key, detail = None if self.spec.key else f"line {number}", detail or f"line {number:,}"
        rows.add(*texts, label, key, fault, detail)

    def _key(self, values: Mapping[str, Any]) -> str | None:
        """The line's key; None unless each of its columns has a text or a whole number."""
        parts = [values.get(name) for name in self.spec.key]
        if not all(isinstance(part, (str, int)) and not isinstance(part, bool) for part in parts):
            return None
        key = "/".join(str(part) for part in parts)
        return key if is_unicode(key) else None

    def _refuse_fields(self, name: str, whole: bool, last: Mapping[str, Any] | None) -> None:
        """Raise StageError when no line so far has all fields; `last` is the last object."""
        values = last or {}
        missing = [column for column in self.spec.columns_read if column not in values]
        if missing and not whole and last is not None:
            full = locate(self.spec.path, name)[1]
            found = ", ".join(column if is_unicode(column) else repr(column) for column in values)
            near = alike(missing[0], values)
            hint = "" if near is None else f": name it as the file does, {near!r}"
            raise StageError(
                f"{full}: no line has all fields: one lacks {missing[0]!r} and has {found}; "
                f"correct the reader's `fields`, `key` or `where`{hint}"
            )


def _parsed(line: bytes, fields: Sequence[str]) -> tuple[dict[str, Any] | None, str, str]:
    """The object of a line; or None, the reason and words on it."""
    if len(line) > LINE_BYTES:
        return None, "too_large", f"more than {LINE_BYTES >> 20} MB"
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None, "text_not_utf8", ""
    values, wrong = parse_object(text, fields)
    return values, "broken_json", f"{wrong}: {text.strip()[:_SHOWN]!r}"


@dataclass
class _Batch:
    """Collects rows into tables by FORM."""

    _rows: list[tuple[Any, ...]] = field(default_factory=list)

    def add(self, *row: Any) -> None:
        """Add text, pair, label, key, fault and detail."""
        self._rows.append(row)

    @property
    def full(self) -> bool:
        """Whether the rows so far are enough for a table."""
        return len(self._rows) >= BATCH_ROWS

    def rest(self) -> Iterator[pa.Table]:
        """The table of the rows so far, if there are any."""
        if self._rows:
            columns = [list(column) for column in zip(*self._rows, strict=True)]
            yield pa.table(columns, schema=FORM)
            self._rows = []


class _Raw(io.RawIOBase):
    """A pyarrow stream as a raw stream of Python's."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with the next bytes; their number."""
        data = self._opened.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

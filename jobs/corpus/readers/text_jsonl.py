"""Texts in JSON Lines: one object a line, as SNLI and MNLI are distributed.

A line that is no JSON object, and a text that is no string, is a bad row. Labels are strings or
numbers; a list, an object, true or false is no label. Files may be compressed (.gz).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from jobs.contract import StageError
from jobs.corpus.readers.rows import BATCH_ROWS
from jobs.corpus.readers.source import locate, stream
from jobs.corpus.readers.texts import FORM
from jobs.corpus.spec import JsonLinesReader

LINE_BYTES = 16 << 20  # of a line; a longer one is a bad row


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
        for number, line in enumerate(self._lines(name), 1):
            values, fault = _parsed(line)
            if values is None:
                rows.add(None, None, None, f"line {number}", fault, f"line {number:,} of {name}")
            else:
                whole, last = whole or set(self.spec.columns_read) <= set(values), values
                if self._fits(values):
                    self._add(rows, values)
            if number % BATCH_ROWS == 0:
                self._refuse_fields(name, whole, last)
                yield from rows.rest()
        self._refuse_fields(name, whole, last)
        yield from rows.rest()

    def labels(self, name: str) -> Iterator[pa.Table]:
        """The same rows: JSON is read in whole."""
        yield from self.rows(name)

    def _lines(self, name: str) -> Iterator[bytes]:
        with stream(self.spec.path, name) as opened:
            first = True
            for line in io.BufferedReader(_Raw(opened), 1 << 20):
                line = line.removeprefix(b"\xef\xbb\xbf") if first else line
                first = False
                if line.strip():
                    yield line

    def _fits(self, values: Mapping[str, Any]) -> bool:
        for column, wanted in self.spec.where.items():
            value = values.get(column)
            one_of = wanted if isinstance(wanted, tuple) else (wanted,)
            if isinstance(value, bool) or str(value) not in map(str, one_of):
                return False
        return True

    def _add(self, rows: _Batch, values: Mapping[str, Any]) -> None:
        fields, fault, detail = self.spec.fields, None, None
        texts: list[bytes | None] = []
        for role, name in (("text", fields.text), ("pair", fields.pair)):
            value = None if name is None else values.get(name)
            if value is not None and not isinstance(value, str):
                fault, detail, value = f"{role}_not_text", f"{name} is {value!r}"[:80], None
            texts.append(None if value is None else value.encode("utf-8", "surrogatepass"))
        label = values.get(fields.label)
        if label is not None and (
            isinstance(label, bool) or not isinstance(label, (str, int, float))
        ):
            fault, detail, label = (
                fault or "label_unknown",
                f"{fields.label} is {label!r}"[:80],
                None,
            )
        parts = [values.get(name) for name in self.spec.key]
        key = None
        if self.spec.key and all(isinstance(part, (str, int)) for part in parts):
            key = "/".join(str(part) for part in parts)
        rows.add(*texts, None if label is None else str(label), key, fault, detail)

    def _refuse_fields(self, name: str, whole: bool, last: Mapping[str, Any] | None) -> None:
        """Raise StageError when no line so far has all fields; `last` is the last object."""
        values = last or {}
        missing = [column for column in self.spec.columns_read if column not in values]
        if missing and not whole and last is not None:
            full = locate(self.spec.path, name)[1]
            raise StageError(
                f"{full}: no line has all fields: one lacks {missing[0]!r} and has "
                f"{', '.join(values)}; correct the reader's `fields`"
            )


def _may_be_label(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _parsed(line: bytes) -> tuple[dict[str, Any] | None, str | None]:
    """The object of a line, or why it has none."""
    if len(line) > LINE_BYTES:
        return None, "too_large"
    try:
        values = json.loads(line)
    except UnicodeDecodeError:
        return None, "text_not_utf8"
    except (ValueError, RecursionError):
        return None, "broken_json"
    return (values, None) if isinstance(values, dict) else (None, "broken_json")


@dataclass
class _Batch:
    """Collects rows into tables by FORM."""

    _rows: list[tuple[Any, ...]] = field(default_factory=list)

    def add(self, *row: Any) -> None:
        """Add text, pair, label, key, fault and detail."""
        self._rows.append(row)

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

"""CSV and TSV tables of image paths, with a caption or a label each.

Paths are relative to the table (or to `root`), on the same filesystem. A row whose path is absolute
or contains `..`, or whose file does not exist, is quarantined. Tables may be compressed. In a CSV,
fields may be quoted as in RFC 4180; in a TSV, quotes have no meaning. Any other table is refused,
because a stray quote would swallow the rows up to the next quote.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from jobs.contract import StageError
from jobs.corpus.readers.labels import Naming, scanned_names
from jobs.corpus.readers.rows import UNKNOWN, Classes, RowBatcher, Unit, claim
from jobs.corpus.readers.source import contents, files, stream, why_no_content
from jobs.corpus.spec import TableReader
from jobs.storage.folder import Folder

UNITS = 64  # at most: every unit reads the table up to its own rows
UNIT_ROWS = 5_000  # at least
READ_ROWS = 256  # images requested at a time
MAX_FIELD = 1 << 20  # characters of a field: pyarrow's limit for a row
HEADER_BYTES = 1 << 16  # of a table's start, read to explain why it cannot be read
SHOWN = 80  # characters of a library's message that an error shows


@dataclass(frozen=True)
class Table:
    """Rows keyed by a column, or by the image's path as the table gives it."""

    spec: TableReader

    @property
    def labels(self) -> bool:
        """Whether the experiment file names a column of them."""
        return self.spec.label is not None

    @property
    def captions(self) -> bool:
        """Whether the experiment file names a column of them."""
        return self.spec.caption is not None

    def classes(self) -> Classes:
        """The classes of the experiment file, else the label column's distinct values, sorted."""
        if self.spec.label is None or self.spec.classes:
            Naming(self.spec.classes).refuse_numbers_for_others(f"{self.spec.path}, `classes`")
            return Classes.of(self.spec.classes)
        texts = {name for rows in self._batches([self.spec.label]) for (name,) in rows}
        where = f"{self.spec.path}, column {self.spec.label!r}"
        return Classes.of(scanned_names(texts, where))

    def units(self) -> Sequence[Unit]:
        """Ranges of rows. Raises StageError for a stray quote."""
        name, _ = next(self.files())
        if self._quoting(name):
            self._refuse_stray_quotes(name)
        rows = sum(len(rows) for rows in self._batches(self._columns()))
        step = max(UNIT_ROWS, -(-rows // UNITS))
        return [Unit(name, start, min(start + step, rows)) for start in range(0, rows, step)]

    def files(self) -> Iterator[tuple[str, int]]:
        """The table alone: to get every image's size costs as much as to read it."""
        found = files(self.spec.path)
        if len(found) != 1:
            raise StageError(f"{self.spec.path} is a folder; name the table itself")
        yield from found

    def label_counts(self) -> Counter[int] | None:
        """By the label column."""
        if self.spec.label is None:
            return None
        naming, texts = Naming(self.classes().ids), Counter[str]()
        for rows in self._batches([self.spec.label]):
            texts.update(name for (name,) in rows)
        found: Counter[int] = Counter()
        for text, count in texts.items():
            if text.strip():
                found[naming.of_text(text)] += count
        return found

    def read(self, unit: Unit, notes: Counter[str]) -> Iterator[pa.Table]:
        """Rows [start, stop) of the table, with their images' bytes."""
        spec = self.spec
        naming = Naming(self.classes().ids)
        root = self._image_root()
        columns = self._columns()
        rows = RowBatcher(unit.file)
        for block in self._rows(columns, unit):
            found = [dict(zip(columns, values, strict=True)) for values in block]
            paths = [values[spec.image].removeprefix("./") for values in found]
            images = contents(root, [p if _is_safe(p) else None for p in paths])
            for values, path, (image, fault) in zip(found, paths, images, strict=True):
                text = values[spec.label] if spec.label else ""
                label = naming.of_text(text) if text.strip() else None
                detail = None if image is not None else why_no_content(root, path, fault)
                if image is not None and label == UNKNOWN:
                    detail = naming.why_unknown(text)
                rows.add(
                    values[spec.key] if spec.key else values[spec.image],
                    image,
                    label=label,
                    caption=values[spec.caption] if spec.caption else None,
                    claims=claim(path),
                    fault=fault if _is_safe(path) else "unsafe_path",
                    detail=detail,
                )
                yield from rows.full()
        yield from rows.rest()

    def _columns(self) -> list[str]:
        wanted = [self.spec.image, self.spec.caption, self.spec.label, self.spec.key]
        return list(dict.fromkeys(name for name in wanted if name is not None))

    def _rows(self, columns: list[str], unit: Unit) -> Iterator[list[tuple[Any, ...]]]:
        at = 0
        for rows in self._batches(columns):
            cut = rows[max(unit.start - at, 0) : max(unit.stop - at, 0)]
            at += len(rows)
            for start in range(0, len(cut), READ_ROWS):
                yield cut[start : start + READ_ROWS]
            if at >= unit.stop:
                return

    def _batches(self, columns: list[str]) -> Iterator[list[tuple[Any, ...]]]:
        """The table's rows in order, these columns as text (captions as bytes)."""
        name, _ = next(self.files())
        quoting = self._quoting(name)
        try:
            with stream(self.spec.path, name) as opened:
                reader = pacsv.open_csv(
                    opened,
                    read_options=pacsv.ReadOptions(column_names=list(self.spec.columns) or None),
                    parse_options=pacsv.ParseOptions(
                        delimiter=self._delimiter(name),
                        quote_char='"' if quoting else False,
                        newlines_in_values=quoting,
                    ),
                    convert_options=self._convert_options(columns),
                )
                for batch in reader:
                    values = [batch.column(c).to_pylist() for c in columns]
                    yield list(zip(*values, strict=True))
        except (pa.ArrowInvalid, pa.ArrowKeyError, UnicodeDecodeError) as error:
            raise self._unreadable(name, columns, str(error)) from None

    def _unreadable(self, name: str, columns: list[str], error: str) -> StageError:
        """The error of a table that pyarrow cannot read: what its first line holds instead."""
        with stream(self.spec.path, name) as opened:
            begin = bytes(opened.read(HEADER_BYTES))
        if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in begin:
            return StageError(
                f"{self.spec.path} is not UTF-8 text, but probably UTF-16; convert it "
                f"(`iconv -f UTF-16 -t UTF-8`)"
            )
        line = begin.decode("utf-8-sig", "replace").splitlines()[:1]
        found = next(csv.reader(line, delimiter=self._delimiter(name)), [])
        missing = [column for column in columns if column not in found]
        if missing and not self.spec.columns:
            other = next((d for d in ";\t|,:" if len(found) == 1 and d in found[0]), None)
            hint = "correct the reader's fields, or name the columns in `columns` if it has none"
            if other is not None:
                hint = f"set `delimiter: {json.dumps(other)}`"
            return StageError(
                f"{self.spec.path} has no column {missing[0]!r}; its first line gives the columns "
                f"{_shorten(', '.join(found))}; {hint}"
            )
        hint = "" if self._quoting(name) else ", or set `quoting: true` if its fields are quoted"
        return StageError(
            f"{self.spec.path} cannot be read as a table with the columns {', '.join(columns)} "
            f"({_shorten(error)}); correct the table or the reader's fields{hint}"
        )

    def _delimiter(self, name: str) -> str:
        return self.spec.delimiter or ("\t" if _is_tsv(name) else ",")

    def _quoting(self, name: str) -> bool:
        return not _is_tsv(name) if self.spec.quoting is None else self.spec.quoting

    def _refuse_stray_quotes(self, name: str) -> None:
        """Raise StageError when the table breaks RFC 4180.

        pyarrow accepts a quote that is never closed, or is closed within a field, and makes one
        row of all the rows in between.
        """
        begin = 0
        csv.field_size_limit(MAX_FIELD)
        try:
            with stream(self.spec.path, name) as opened:
                lines = io.TextIOWrapper(opened, "utf-8-sig", "replace", newline="")
                rows = csv.reader(lines, delimiter=self._delimiter(name), strict=True)
                named = list(self.spec.columns) or next(rows, [])
                begin = rows.line_num
                for row in rows:
                    if rows.line_num > begin + 1:
                        self._refuse_lines(name, begin + 1, dict(zip(named, row, strict=False)))
                    begin = rows.line_num
        except csv.Error as error:
            raise self._stray_quote(name, begin + 1, str(error)) from None

    def _refuse_lines(self, name: str, line: int, row: dict[str, str]) -> None:
        """Raise StageError for line breaks outside captions: such a field has swallowed rows."""
        for column in {self.spec.image, self.spec.label, self.spec.key} - {None, self.spec.caption}:
            if "\n" in row.get(str(column), ""):
                raise self._stray_quote(name, line, f"{column} spans several lines")

    def _stray_quote(self, name: str, line: int, what: str) -> StageError:
        return StageError(
            f"{self.spec.path}: the row that begins in line {line:,} has a stray quote ({what}); "
            f'correct it (RFC 4180: a field that contains quotes is quoted, with "" for each '
            f"quote in it), or set `quoting: false` if quotes have no meaning in this table"
        )

    def _convert_options(self, columns: list[str]) -> Any:
        """Columns as text, captions as bytes: one that is not UTF-8 is then only its row's fault.

        A caption column that is also the path, label or key is text.
        """
        kinds = dict.fromkeys(columns, pa.string())
        others = (self.spec.image, self.spec.label, self.spec.key)
        if self.spec.caption in kinds and self.spec.caption not in others:
            kinds[self.spec.caption] = pa.binary()
        return pacsv.ConvertOptions(
            include_columns=columns, column_types=kinds, strings_can_be_null=False
        )

    def _image_root(self) -> str:
        if self.spec.root is not None:
            return self.spec.root
        return Folder.holding(Folder.of(self.spec.path).uri)[0].uri


def _is_tsv(name: str) -> bool:
    return name.removesuffix(".gz").endswith(".tsv")


def _shorten(text: str) -> str:
    """A library's message on one line, cut after SHOWN characters."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."


def _is_safe(path: str) -> bool:
    return bool(path) and not path.startswith(("/", "\\")) and ".." not in path.split("/")

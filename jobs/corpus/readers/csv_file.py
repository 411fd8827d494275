"""One CSV or TSV file of a source: checked, opened, and read some rows at a time.

Takes a file's name and how it is written; gives its rows' fields as text, or as bytes where text
may not be UTF-8. In a CSV, fields may be quoted as in RFC 4180; in a TSV, quotes have no meaning.
Files may be compressed. Raises StageError for a stray quote, which would swallow the rows up to the
next quote, and for a file that is no such table. Knows no column's role.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from jobs.alike import alike
from jobs.contract import StageError
from jobs.corpus.readers.formats import other_format
from jobs.corpus.readers.source import stream

MAX_FIELD = 1 << 20  # characters of a field: pyarrow's limit for a row
HEADER_BYTES = 1 << 16  # of a table's start, read to explain why it cannot be read
SHOWN = 80  # characters of a library's message that an error shows

BadRow = Callable[[Any], str]
"""Called for a row with too few or too many fields; gives `skip`, or `error` to refuse the file."""


@dataclass(frozen=True)
class CsvFile:
    """A table of a source, and how it is written."""

    path: str  # of the source
    name: str  # of the file, as the source lists it
    columns: tuple[str, ...] = ()  # names, for a table without a header
    delimiter: str | None = None  # none: a comma, in .tsv files a tab
    quoting: bool | None = None  # none: yes, in .tsv files no
    block: int = MAX_FIELD  # bytes read at a time: the most that a row may have

    @property
    def quoted(self) -> bool:
        """Whether fields may be quoted."""
        return not _is_tsv(self.name) if self.quoting is None else self.quoting

    def batches(
        self, columns: Sequence[str], as_bytes: Collection[str] = (), bad_row: BadRow | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows in order: these columns as text, or as bytes."""
        self._refuse_repeated(columns)
        kinds = {name: pa.binary() if name in as_bytes else pa.string() for name in columns}
        try:
            with stream(self.path, self.name) as opened:
                yield from pacsv.open_csv(
                    opened,
                    read_options=pacsv.ReadOptions(
                        column_names=list(self.columns) or None, block_size=self.block
                    ),
                    parse_options=pacsv.ParseOptions(
                        delimiter=self._delimiter,
                        quote_char='"' if self.quoted else False,
                        newlines_in_values=self.quoted,
                        invalid_row_handler=bad_row,
                    ),
                    convert_options=pacsv.ConvertOptions(
                        include_columns=columns, column_types=kinds, strings_can_be_null=False
                    ),
                )
        except (pa.ArrowInvalid, pa.ArrowKeyError, UnicodeDecodeError) as error:
            raise self._unreadable(columns, str(error)) from None

    def refuse_stray_quotes(self, one_line: Collection[str]) -> None:
        """Raise StageError when the table breaks RFC 4180, or a column of `one_line` has several.

        pyarrow accepts a quote that is never closed, or is closed within a field, and makes one
        row of all the rows in between.
        """
        if not self.quoted:
            return
        begin = 0
        csv.field_size_limit(max(MAX_FIELD, self.block))
        try:
            with stream(self.path, self.name) as opened:
                lines = io.TextIOWrapper(opened, "utf-8-sig", "replace", newline="")
                rows = csv.reader(lines, delimiter=self._delimiter, strict=True)
                named = list(self.columns) or next(rows, [])
                begin = rows.line_num
                for row in rows:
                    if rows.line_num > begin + 1:
                        fields = dict(zip(named, row, strict=False))
                        self._refuse_lines(begin + 1, fields, one_line)
                    begin = rows.line_num
        except csv.Error as error:
            raise self._stray_quote(begin + 1, str(error)) from None

    def _refuse_repeated(self, columns: Sequence[str]) -> None:
        """Raise StageError when two columns have a name that is to be read."""
        named = self.columns or self._first_line()[0]
        for column in columns:
            if named.count(column) > 1:
                where = "`columns` has" if self.columns else f"{self._full} has"
                raise StageError(
                    f"{where} {named.count(column)} columns called {column!r}; rename all but one"
                )

    def _first_line(self) -> tuple[list[str], bytes]:
        """The fields of the first line, and the bytes that the file begins with."""
        with stream(self.path, self.name) as opened:
            begin = bytes(opened.read(HEADER_BYTES))
        line = begin.decode("utf-8-sig", "replace").splitlines()[:1]
        return next(csv.reader(line, delimiter=self._delimiter), []), begin

    @property
    def _delimiter(self) -> str:
        return self.delimiter or ("\t" if _is_tsv(self.name) else ",")

    def _refuse_lines(self, line: int, row: dict[str, str], one_line: Collection[str]) -> None:
        """Raise StageError for line breaks where none can be: such a field has swallowed rows."""
        for column in one_line:
            if "\n" in row.get(column, ""):
                raise self._stray_quote(line, f"{column} spans several lines")

    def _stray_quote(self, line: int, what: str) -> StageError:
        return StageError(
            f"{self._full}: the row that begins in line {line:,} has a stray quote ({what}); "
            f'correct it (RFC 4180: a field that contains quotes is quoted, with "" for each '
            f"quote in it), or set `quoting: false` if quotes have no meaning in this table"
        )

    @property
    def _full(self) -> str:
        return self.path if self.path.endswith(self.name) else f"{self.path}/{self.name}"

    def _unreadable(self, columns: Sequence[str], error: str) -> StageError:
        """The error of a table that pyarrow cannot read: what its first line holds instead."""
        found, begin = self._first_line()
        if (other := other_format(begin)) is not None:
            return StageError(f"{self._full} {other}")
        if not begin.strip():
            return StageError(f"{self._full} is empty; correct the reader's path, or restore it")
        missing = [column for column in columns if column not in found]
        if missing and not self.columns:
            other = next((d for d in ";\t|,:" if len(found) == 1 and d in found[0]), None)
            hint = "correct the reader's fields, or name the columns in `columns` if it has none"
            if other is not None:
                hint = f"set `delimiter: {json.dumps(other)}`"
            elif (near := alike(missing[0], found)) is not None:
                hint = f"name it as the table does: {near!r}"
            return StageError(
                f"{self._full} has no column {missing[0]!r}; its first line gives the columns "
                f"{_shorten(', '.join(found))}; {hint}"
            )
        if "UTF8" in error:
            return StageError(
                f"{self._full} has a label, key or path that is not UTF-8 text "
                f"({_shorten(error)}); convert it from its own encoding "
                f"(`iconv -f LATIN1 -t UTF-8`, say)"
            )
        hint = "" if self.quoted else ", or set `quoting: true` if its fields are quoted"
        return StageError(
            f"{self._full} cannot be read as a table with the columns {', '.join(columns)} "
            f"({_shorten(error)}); correct the table or the reader's fields{hint}"
        )


def _is_tsv(name: str) -> bool:
    return name.removesuffix(".gz").endswith(".tsv")


def _shorten(text: str) -> str:
    """A library's message on one line, cut after SHOWN characters."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."

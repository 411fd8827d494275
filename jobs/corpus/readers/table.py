"""CSV and TSV tables of image paths, with a caption or a label each.

Paths are relative to the table (or to `root`), on the same filesystem; one that is absolute or
climbs out with `..` is refused, one that leads nowhere is quarantined. Tables may be compressed.
Fields may stand in quotes by RFC 4180 (a CSV), or quotes mean nothing (a TSV); a table that
keeps to neither is refused, since a stray quote would swallow the rows up to the next one.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from jobs.contract import StageError
from jobs.corpus.readers.rows import Classes, Gather, Unit, claim, number_of
from jobs.corpus.readers.source import contents, files, stream
from jobs.corpus.spec import TableReader
from jobs.storage.folder import Folder

UNITS = 64  # at most: every unit reads the table up to its own rows
UNIT_ROWS = 5_000  # at least
READ_ROWS = 256  # images asked for at a time
LONGEST = 1 << 20  # characters of a field: as long as a row that pyarrow takes
SHOWN = 80  # characters of a table shown in a complaint


@dataclass(frozen=True)
class Table:
    """Rows keyed by a column, or by the image's path as it stands in the table."""

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
        """As listed in the experiment file, else the label column's distinct values, sorted."""
        if self.spec.label is None or self.spec.classes:
            return Classes.of(self.spec.classes)
        names = {name for rows in self._batches([self.spec.label]) for (name,) in rows if name}
        return Classes.of(sorted(names))

    def units(self) -> Sequence[Unit]:
        """Runs of rows. Raises StageError where a quote is not closed as it should be."""
        name, _ = next(self.files())
        if self._quoting(name):
            self._refuse_stray_quotes(name)
        rows = sum(len(rows) for rows in self._batches(self._columns()))
        step = max(UNIT_ROWS, -(-rows // UNITS))
        return [Unit(name, start, min(start + step, rows)) for start in range(0, rows, step)]

    def files(self) -> Iterator[tuple[str, int]]:
        """The table alone: asking for every image's size would cost as much as reading it."""
        found = files(self.spec.path)
        if len(found) != 1:
            raise StageError(f"{self.spec.path} is a folder; name the table itself")
        yield from found

    def read(self, unit: Unit) -> Iterator[pa.Table]:
        """Rows [start, stop) of the table, with their images' bytes."""
        spec = self.spec
        classes = {name: number for number, name in enumerate(self.classes().ids)}
        columns = self._columns()
        rows = Gather(unit.file)
        for said in self._rows(columns, unit):
            found = [dict(zip(columns, values, strict=True)) for values in said]
            paths = [values[spec.image].removeprefix("./") for values in found]
            images = contents(self._root(), [p if _is_safe(p) else None for p in paths])
            for values, path, image in zip(found, paths, images, strict=True):
                rows.add(
                    values[spec.key] if spec.key else values[spec.image],
                    image,
                    label=_label(values[spec.label], classes) if spec.label else None,
                    caption=values[spec.caption] if spec.caption else None,
                    claims=claim(path),
                    fault=None if _is_safe(path) else "unsafe_path",
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
        """The table's rows in order, these columns as text."""
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
                    convert_options=self._conversion(columns),
                )
                for batch in reader:
                    values = [batch.column(c).to_pylist() for c in columns]
                    yield list(zip(*values, strict=True))
        except (pa.ArrowInvalid, pa.ArrowKeyError, UnicodeDecodeError) as error:
            hint = "" if quoting else ", or set `quoting: true` if its fields stand in quotes"
            raise StageError(
                f"{self.spec.path} cannot be read as a table with the columns "
                f"{', '.join(columns)} ({_short(str(error))}); correct the table or the reader's "
                f"fields{hint}"
            ) from None

    def _delimiter(self, name: str) -> str:
        return self.spec.delimiter or ("\t" if _is_tsv(name) else ",")

    def _quoting(self, name: str) -> bool:
        return not _is_tsv(name) if self.spec.quoting is None else self.spec.quoting

    def _refuse_stray_quotes(self, name: str) -> None:
        """Raise StageError where the table is not what RFC 4180 says.

        pyarrow forgives a quote that is never closed, or closed within a field, and makes one row
        of all the rows between.
        """
        begin = 0
        csv.field_size_limit(LONGEST)
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
            raise self._stray(name, begin + 1, str(error)) from None

    def _refuse_lines(self, name: str, line: int, row: dict[str, str]) -> None:
        """Only a caption may go over several lines: what else does has swallowed rows."""
        for column in {self.spec.image, self.spec.label, self.spec.key} - {None, self.spec.caption}:
            if "\n" in row.get(str(column), ""):
                raise self._stray(name, line, f"{column} goes over several lines")

    def _stray(self, name: str, line: int, what: str) -> StageError:
        return StageError(
            f"{self.spec.path}: the row that begins in line {line:,} has a stray quote ({what}); "
            f'correct it (RFC 4180: a field with quotes stands in quotes, with "" for each of its '
            f"own), or set `quoting: false` if quotes mean nothing in this table"
        )

    def _conversion(self, columns: list[str]) -> Any:
        """All as text; captions as bytes, so that one that is no UTF-8 is one row's fault.

        A caption that is the path, label or key too is text as those are.
        """
        kinds = dict.fromkeys(columns, pa.string())
        others = (self.spec.image, self.spec.label, self.spec.key)
        if self.spec.caption in kinds and self.spec.caption not in others:
            kinds[self.spec.caption] = pa.binary()
        return pacsv.ConvertOptions(
            include_columns=columns, column_types=kinds, strings_can_be_null=False
        )

    def _root(self) -> str:
        if self.spec.root is not None:
            return self.spec.root
        return Folder.holding(Folder.of(self.spec.path).uri)[0].uri


def _is_tsv(name: str) -> bool:
    return name.removesuffix(".gz").endswith(".tsv")


def _short(text: str) -> str:
    """A library's message on one line, without the long rows it may quote."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."


def _is_safe(path: str) -> bool:
    return bool(path) and not path.startswith(("/", "\\")) and ".." not in path.split("/")


def _label(said: str, classes: dict[str, int]) -> int | None:
    if said in classes:
        return classes[said]
    return number_of(said) if said else None

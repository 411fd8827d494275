"""CSV and TSV tables of image paths, with a caption or a label each.

Paths are relative to the table (or to `root`), on the same filesystem; one that is absolute or
climbs out with `..` is refused, one that leads nowhere is quarantined. Tables may be compressed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from jobs.contract import StageError
from jobs.corpus.readers.rows import Classes, Gather, Unit, claim
from jobs.corpus.readers.source import contents, files, stream
from jobs.corpus.spec import TableReader
from jobs.place import Place

UNITS = 64  # at most: every unit reads the table up to its own rows
UNIT_ROWS = 5_000  # at least
READ_ROWS = 256  # images asked for at a time


@dataclass(frozen=True)
class Table:
    """Rows keyed by a column, or by the image's path as it stands in the table."""

    spec: TableReader

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
        """Runs of rows."""
        name, _ = next(self.files())
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
        comma = "\t" if name.removesuffix(".gz").endswith(".tsv") else ","
        try:
            with stream(self.spec.path, name) as opened:
                reader = pacsv.open_csv(
                    opened,
                    read_options=pacsv.ReadOptions(column_names=list(self.spec.columns) or None),
                    parse_options=pacsv.ParseOptions(
                        delimiter=self.spec.delimiter or comma, newlines_in_values=True
                    ),
                    convert_options=self._conversion(columns),
                )
                for batch in reader:
                    values = [batch.column(c).to_pylist() for c in columns]
                    yield list(zip(*values, strict=True))
        except (pa.ArrowInvalid, pa.ArrowKeyError, UnicodeDecodeError) as error:
            raise StageError(
                f"{self.spec.path} cannot be read as a table with the columns "
                f"{', '.join(columns)} ({error}); correct the table or the reader's fields"
            ) from None

    def _conversion(self, columns: list[str]) -> Any:
        """All as text; captions as bytes, so that one that is no UTF-8 is one row's fault."""
        kinds = dict.fromkeys(columns, pa.string())
        if self.spec.caption in kinds:
            kinds[self.spec.caption] = pa.binary()
        return pacsv.ConvertOptions(
            include_columns=columns, column_types=kinds, strings_can_be_null=False
        )

    def _root(self) -> str:
        if self.spec.root is not None:
            return self.spec.root
        return Place.holding(Place.of(self.spec.path).uri)[0].uri


def _is_safe(path: str) -> bool:
    return bool(path) and not path.startswith(("/", "\\")) and ".." not in path.split("/")


def _label(said: str, classes: dict[str, int]) -> int | None:
    if said in classes:
        return classes[said]
    return int(said) if said.isdigit() else None

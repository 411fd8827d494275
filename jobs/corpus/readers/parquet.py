"""Parquet in the layout of Hugging Face's data sets, or similar.

The image is a column of encoded bytes or a struct of bytes and path; the experiment file names the
label, caption and key columns. Class names come from the experiment file, from a column, from the
`huggingface` metadata of the schema, or are the labels themselves. Rows can be selected by a
column's value, so each domain in one file can be a source of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.contract import StageError
from jobs.corpus.reader_spec import ParquetReader
from jobs.corpus.readers.columns import (
    LabelColumn,
    cast,
    claimed_formats,
    declared_names,
    image_bytes,
    is_text,
    key_texts,
    may_be_caption,
    may_be_image,
    may_be_key,
    may_be_label,
    positions,
    refuse_columns,
    refuse_contradiction,
    value_type,
)
from jobs.corpus.readers.labels import Naming, dense_names, scanned_names
from jobs.corpus.readers.parquet_file import open_file, tables
from jobs.corpus.readers.rows import BATCH_ROWS, RAW, Classes, Unit
from jobs.corpus.readers.source import files, locate

UNIT_BYTES = 256 << 20  # of uncompressed row groups: the least for a unit, except a file's last


@dataclass(frozen=True)
class Parquet:
    """Rows keyed by the columns of `key`, else by file and row number within it."""

    spec: ParquetReader
    known: Classes | None = None  # what `classes` gave: then no label is read to know them

    @property
    def labels(self) -> bool:
        """Whether the experiment file names a label column."""
        return self.spec.label is not None

    @property
    def captions(self) -> bool:
        """Whether the experiment file names a caption column."""
        return self.spec.caption is not None

    def classes(self) -> Classes:
        """Names in label order; if nothing declares them, from the label columns of all rows."""
        if self.known is not None:
            return self.known
        if self.spec.label is None:
            return Classes.of(self.spec.classes)  # of masks, or none
        schema = self._labelled_schema()
        names = is_text(schema.field(self.spec.label).type)
        if self.spec.classes:
            if not names:
                Naming(self.spec.classes).refuse_numbers_for_others(f"{self.spec.path}, `classes`")
            return Classes.of(self.spec.classes)
        if names and self.spec.label_name is not None:
            raise StageError(
                f"{self.spec.path}: column {self.spec.label!r} holds names, so `label_name` does "
                f"not apply; leave it out"
            )
        if not names:
            declared = self._declared(schema, self.spec.path)
            return Classes.of(declared if declared is not None else self._scanned_names())
        found = self._distinct_values([self.spec.label])
        where = f"{self.spec.path}, column {self.spec.label!r}"
        return Classes.of(scanned_names((n for n in found if n is not None), where))

    def units(self) -> Sequence[Unit]:
        """Ranges of a file's row groups."""
        found = []
        for name, _ in self.files():
            with self._open(name) as opened:
                meta, first, size = opened.metadata, 0, 0
                for group in range(meta.num_row_groups):
                    size += meta.row_group(group).total_byte_size
                    if size >= UNIT_BYTES or group == meta.num_row_groups - 1:
                        found.append(Unit(name, first, group + 1))
                        first, size = group + 1, 0
        return found

    def files(self) -> Iterator[tuple[str, int]]:
        """The Parquet files."""
        yield from files(self.spec.path, self.spec.files)

    def rows(self) -> int:
        """How many rows fit `where`; reads its columns alone."""
        total = 0
        for name, _ in self.files():
            with self._open(name) as opened:
                if not self.spec.where:
                    total += opened.metadata.num_rows
                    continue
                for table in self._tables(opened, name, 1 << 16, list(self.spec.where)):
                    total += pc.sum(self._where_mask(table)).as_py() or 0
        return total

    def label_counts(self) -> Counter[int] | None:
        """By the label column."""
        if self.spec.label is None:
            return None
        found: Counter[int] = Counter()
        columns = [self.spec.label, *self.spec.where]
        for name, _ in self.files():
            with self._open(name) as opened:
                labels = self._label_reader(opened.schema_arrow, name)
                for table in self._tables(opened, name, 1 << 16, list(dict.fromkeys(columns))):
                    kept = self._where_mask(table)
                    rows = table if kept is None else table.filter(kept)
                    if labels is not None and len(rows):
                        found.update(labels.of(rows)[0].drop_null().to_pylist())
        return found

    def read(self, unit: Unit, notes: Counter[str]) -> Iterator[pa.Table]:
        """The rows of a range of row groups that fit `where`."""
        with self._open(unit.file) as opened:
            meta = opened.metadata
            row = sum(meta.row_group(group).num_rows for group in range(unit.start))
            groups = list(range(unit.start, unit.stop))
            columns = self._columns()
            labels = self._label_reader(opened.schema_arrow, unit.file)
            rows = min(BATCH_ROWS, max(1, _rows_for_bytes(meta, groups, bytes_in=64 << 20)))
            for table in self._tables(opened, unit.file, rows, columns, groups):
                numbers = pa.array(range(row, row + len(table)), type=pa.int64())
                row += len(table)
                kept = self._where_mask(table)
                if kept is not None:
                    table, numbers = table.filter(kept), numbers.filter(kept)
                if len(table):
                    yield self._rows(table, unit.file, numbers, labels)

    def _rows(
        self, table: pa.Table, file: str, numbers: pa.Array, labels: LabelColumn | None
    ) -> pa.Table:
        image, path = image_bytes(table[self.spec.image])
        none = pa.nulls(len(table))
        label, detail = (none, none) if labels is None else labels.of(table)
        return pa.table(
            {
                "source": pa.repeat(file, len(table)),
                "key": self._keys(table, file, numbers),
                "image": image,
                "label": label,
                "caption": none if self.spec.caption is None else table[self.spec.caption],
                "mask": none if self.spec.mask is None else image_bytes(table[self.spec.mask])[0],
                "claims": none if path is None else claimed_formats(path),
                "fault": none,
                "detail": detail,
            }
        ).cast(RAW)

    def _keys(self, table: pa.Table, file: str, numbers: pa.Array) -> pa.ChunkedArray:
        if not self.spec.key:
            return pc.binary_join_element_wise(file, numbers.cast(pa.string()), "/")
        where = f"{self.spec.path}, {file}"
        parts = [key_texts(table[name], where, name) for name in self.spec.key]
        return parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, "/")

    def _label_reader(self, schema: pa.Schema, file: str) -> LabelColumn | None:
        """How a file's label column gives the source's labels; None without such a column."""
        if self.spec.label is None:
            return None
        where = f"{self.spec.path}, {file}"
        if is_text(schema.field(self.spec.label).type):
            return LabelColumn(self.spec.label, where, Naming(self.classes().ids))
        declared = self._declared(schema, where)
        if declared is None:  # its numbers are the labels
            return LabelColumn(self.spec.label, where)
        if not self.spec.classes:
            relabel = positions(declared, self.classes().ids, where)
            return LabelColumn(self.spec.label, where, relabel=relabel)
        refuse_contradiction(declared, self.spec.classes, where)
        relabel = positions(declared, self._first_declared, where)
        return LabelColumn(self.spec.label, where, relabel=relabel)

    def _declared(self, schema: pa.Schema, where: str) -> Sequence[str] | None:
        """The class names that a file's metadata has, if any."""
        return declared_names(schema, str(self.spec.label), where, given=bool(self.spec.classes))

    @cached_property
    def _first_declared(self) -> Sequence[str]:
        """The names for which `classes` gives others: of the first file that declares some."""
        for name, _ in self.files():
            with self._open(name) as opened:
                found = self._declared(opened.schema_arrow, name)
            if found is not None:
                return found
        return self.spec.classes

    def _where_mask(self, table: pa.Table) -> pa.ChunkedArray | None:
        kept = None
        for column in self.spec.where:
            kind = value_type(table[column].type)
            fits = pc.is_in(table[column].cast(kind), value_set=self._where_values(column, kind))
            kept = fits if kept is None else pc.and_(kept, fits)
        return kept

    def _where_values(self, column: str, kind: pa.DataType) -> pa.Array:
        """The values of `where` for a column, in the column's type."""
        wanted = self.spec.where[column]
        found = [pa.nulls(0, kind)]
        for value in wanted if isinstance(wanted, tuple) else (wanted,):
            try:
                found.append(pa.array([value]).cast(kind))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                raise StageError(
                    f"{self.spec.path}: column {column!r} holds {kind}, but {value!r} in `where` "
                    f"is not one; correct the value or name another column"
                ) from None
        return pa.concat_arrays(found)

    def _columns(self) -> list[str]:
        """The columns to read."""
        named = [self.spec.image, self.spec.label, self.spec.caption, self.spec.mask]
        named += self.spec.key
        wanted = [name for name in (*named, *self.spec.where) if name is not None]
        return list(dict.fromkeys(wanted))

    def _refuse_columns(self, schema: pa.Schema, file: str) -> None:
        """Raise StageError when a named column is missing or has a type that its role forbids."""
        named = [*self._columns(), *filter(None, [self.spec.label_name])]
        refuse_columns(schema, named, file)
        roles = [
            ("image", self.spec.image, may_be_image, "encoded bytes"),
            ("mask", self.spec.mask, may_be_image, "encoded bytes"),
            ("caption", self.spec.caption, may_be_caption, "text"),
            ("label", self.spec.label, may_be_label, "integers or names"),
            ("label_name", self.spec.label_name, is_text, "text"),
            *(("key", name, may_be_key, "text or numbers") for name in self.spec.key),
        ]
        for role, name, fits, wanted in roles:
            kind = None if name is None else schema.field(name).type
            if kind is not None and not fits(value_type(kind)) and not pa.types.is_null(kind):
                raise StageError(
                    f"{file}: column {name!r}, the reader's `{role}`, holds {kind} instead of "
                    f"{wanted}; name another column or convert it"
                )
        for name in self.spec.where:
            self._where_values(name, value_type(schema.field(name).type))

    def _labelled_schema(self) -> pa.Schema:
        """The schema of the first file whose label column has a type other than null."""
        for name, _ in self.files():
            with self._open(name) as opened:
                schema = opened.schema_arrow
            if not pa.types.is_null(schema.field(str(self.spec.label)).type):
                break
        return schema

    def _scanned_names(self) -> list[str]:
        """Class names in the order of their numbers, from the label columns of all rows."""
        label, named = str(self.spec.label), self.spec.label_name
        if named is None:
            values = [value for value in self._distinct_values([label]) if value is not None]
            if not all(isinstance(value, int) for value in values):  # integers may exceed an int64
                values = cast(pa.array(values), self.spec.path, label, pa.int64()).to_pylist()
            return dense_names(values, f"{self.spec.path}: column {label!r}")
        pairs = [pair for pair in self._distinct_values([label, named]) if None not in pair]
        pairs.sort(key=lambda pair: pair[0])
        numbers = [number for number, _ in pairs]
        if numbers != list(range(len(pairs))) or not all(name.strip() for _, name in pairs):
            raise StageError(
                f"{self.spec.path}: columns {label!r} and {named!r} do not give each class 0, 1, "
                f"2, ... exactly one name; give the names in `classes`"
            )
        return [name for _, name in pairs]

    def _distinct_values(self, columns: list[str]) -> set[Any]:
        """The distinct values of a column, or tuples of several, over all rows of the source.

        The first column is the label; StageError when it has names in one file, numbers in another.
        """
        found: set[Any] = set()
        kinds: dict[bool, str] = {}  # whether labels are names -> a file with such labels
        for name, _ in self.files():
            with self._open(name) as opened:
                kind = opened.schema_arrow.field(columns[0]).type
                if not pa.types.is_null(kind):
                    kinds.setdefault(is_text(kind), name)
                if len(kinds) > 1:
                    raise StageError(
                        f"{self.spec.path}: column {columns[0]!r} holds names in {kinds[True]} and "
                        f"numbers in {kinds[False]}; use one of them, or give `classes`"
                    )
                for batch in self._tables(opened, name, 1 << 16, columns):
                    if is_text(kind):
                        column = cast(batch[columns[0]], self.spec.path, columns[0], pa.string())
                        batch = batch.set_column(0, columns[0], column)
                    table = batch.group_by(columns).aggregate([])
                    rows = zip(*(table[c].to_pylist() for c in columns), strict=True)
                    found |= {row if len(columns) > 1 else row[0] for row in rows}
        return found

    @contextmanager
    def _open(self, name: str) -> Iterator[pq.ParquetFile]:
        with open_file(self.spec.path, name) as (opened, full):
            self._refuse_columns(opened.schema_arrow, full)
            yield opened

    def _tables(
        self,
        opened: pq.ParquetFile,
        name: str,
        rows: int,
        columns: list[str],
        groups: list[int] | None = None,
    ) -> Iterator[pa.Table]:
        """Columns of a file, or of some of its row groups, `rows` rows at a time."""
        yield from tables(opened, locate(self.spec.path, name)[1], rows, columns, groups)


def _rows_for_bytes(meta: Any, groups: Sequence[int], bytes_in: int) -> int:
    """How many rows of these row groups have about `bytes_in` bytes."""
    rows = sum(meta.row_group(group).num_rows for group in groups)
    size = sum(meta.row_group(group).total_byte_size for group in groups)
    return int(bytes_in * rows / max(size, 1))

"""Parquet in the layout of Hugging Face's data sets, or similar.

The image is a column of encoded bytes or a struct of bytes and path; the experiment file names the
label, caption and key columns. Class names come from the experiment file, from a column, from the
`huggingface` metadata of the schema, or are the labels themselves. Rows can be selected by a
column's value, so each domain in one file can be a source of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.contract import StageError
from jobs.corpus.readers.rows import BATCH_ROWS, RAW, UNKNOWN, Classes, Unit
from jobs.corpus.readers.source import files, is_damage, locate
from jobs.corpus.spec import ParquetReader
from jobs.images.headers import EXTENSIONS

UNIT_BYTES = 256 << 20  # of uncompressed row groups: the least for a unit, except a file's last


@dataclass(frozen=True)
class Parquet:
    """Rows keyed by the columns of `key`, else by file and row number within it."""

    spec: ParquetReader

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
        if self.spec.label is None:
            return Classes()
        if self.spec.classes:
            return Classes.of(self.spec.classes)
        schema = self._labelled_schema()
        if not _is_text(schema.field(self.spec.label).type):
            declared = _declared_names(schema, self.spec.label, self.spec.path)
            return Classes.of(declared if declared is not None else self._scanned_names())
        names = self._distinct_values([self.spec.label])
        return Classes.of(sorted(str(name) for name in names if name is not None))

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

    def read(self, unit: Unit) -> Iterator[pa.Table]:
        """The rows of a range of row groups that fit `where`."""
        with self._open(unit.file) as opened:
            meta = opened.metadata
            row = sum(meta.row_group(group).num_rows for group in range(unit.start))
            groups = list(range(unit.start, unit.stop))
            columns = self._columns()
            label_of = self._label_numbers(opened.schema_arrow)
            rows = min(BATCH_ROWS, max(1, _rows_for_bytes(meta, groups, bytes_in=64 << 20)))
            for table in self._tables(opened, unit.file, rows, columns, groups):
                numbers = pa.array(range(row, row + len(table)), type=pa.int64())
                row += len(table)
                kept = self._where_mask(table)
                if kept is not None:
                    table, numbers = table.filter(kept), numbers.filter(kept)
                if len(table):
                    yield self._rows(table, unit.file, numbers, label_of)

    def _rows(
        self, table: pa.Table, file: str, numbers: pa.Array, label_of: dict[str, int] | None
    ) -> pa.Table:
        image, path = _image_bytes(table[self.spec.image])
        none = pa.nulls(len(table))
        return pa.table(
            {
                "source": pa.repeat(file, len(table)),
                "key": self._keys(table, file, numbers),
                "image": image,
                "label": none if self.spec.label is None else self._labels(table, label_of),
                "caption": none if self.spec.caption is None else table[self.spec.caption],
                "claims": none if path is None else _claimed_formats(path),
                "fault": none,
            }
        ).cast(RAW)

    def _keys(self, table: pa.Table, file: str, numbers: pa.Array) -> pa.ChunkedArray:
        if not self.spec.key:
            return pc.binary_join_element_wise(file, numbers.cast(pa.string()), "/")
        parts = [self._cast(table[name], name, pa.string()) for name in self.spec.key]
        return parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, "/")

    def _labels(self, table: pa.Table, label_of: dict[str, int] | None) -> pa.ChunkedArray:
        column = table[str(self.spec.label)]
        if label_of is None:
            return self._cast(column, str(self.spec.label), pa.int64())
        names = column.cast(pa.string())
        found = pc.index_in(names, value_set=pa.array(label_of, pa.string())).cast(pa.int64())
        return pc.if_else(names.is_null(), None, pc.fill_null(found, UNKNOWN))

    def _label_numbers(self, schema: pa.Schema) -> dict[str, int] | None:
        """Class name -> label, for a label column of names; None for a column of numbers."""
        if self.spec.label is None or not _is_text(schema.field(self.spec.label).type):
            return None
        return {name: number for number, name in enumerate(self.classes().ids)}

    def _where_mask(self, table: pa.Table) -> pa.ChunkedArray | None:
        kept = None
        for column in self.spec.where:
            kind = _value_type(table[column].type)
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
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OverflowError):
                raise StageError(
                    f"{self.spec.path}: column {column!r} holds {kind}, but {value!r} in `where` "
                    f"is not one; correct the value or name another column"
                ) from None
        return pa.concat_arrays(found)

    def _columns(self) -> list[str]:
        """The columns to read."""
        named = [self.spec.image, self.spec.label, self.spec.caption, *self.spec.key]
        wanted = [name for name in (*named, *self.spec.where) if name is not None]
        return list(dict.fromkeys(wanted))

    def _refuse_columns(self, schema: pa.Schema, file: str) -> None:
        """Raise StageError when a named column is missing or has a type that its role forbids."""
        named = [*self._columns(), *filter(None, [self.spec.label_name])]
        missing = [name for name in named if name not in schema.names]
        if missing:
            raise StageError(
                f"{self.spec.path} has no column {missing[0]!r}; it has {', '.join(schema.names)}"
            )
        roles = [
            ("image", self.spec.image, _may_be_image, "encoded bytes"),
            ("caption", self.spec.caption, _may_be_caption, "text"),
            ("label", self.spec.label, _may_be_label, "integers or names"),
            ("label_name", self.spec.label_name, _is_flat, "names"),
            *(("key", name, _is_flat, "text or numbers") for name in self.spec.key),
        ]
        for role, name, fits, wanted in roles:
            kind = None if name is None else schema.field(name).type
            if kind is not None and not fits(_value_type(kind)) and not pa.types.is_null(kind):
                raise StageError(
                    f"{file}: column {name!r}, the reader's `{role}`, holds {kind} instead of "
                    f"{wanted}; name another column or convert it"
                )
        for name in self.spec.where:
            self._where_values(name, _value_type(schema.field(name).type))

    def _cast(
        self, column: pa.Array | pa.ChunkedArray, name: str, kind: pa.DataType
    ) -> pa.ChunkedArray:
        try:
            return column.cast(kind)
        except pa.ArrowInvalid as error:
            wanted = "whole numbers" if pa.types.is_integer(kind) else "text"
            raise StageError(
                f"{self.spec.path}: column {name!r} holds more than {wanted} ({error}); "
                f"correct it or name another column"
            ) from None

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
            found = self._cast(pa.array(list(self._distinct_values([label]))), label, pa.int64())
            top = pc.max(found).as_py()
            return [str(number) for number in range(0 if top is None else top + 1)]
        pairs = [pair for pair in self._distinct_values([label, named]) if None not in pair]
        pairs.sort(key=lambda pair: pair[0])
        numbers = [number for number, _ in pairs]
        if numbers != list(range(len(pairs))):
            raise StageError(
                f"{self.spec.path}: columns {label!r} and {named!r} do not give each class 0, 1, "
                f"2, ... exactly one name; give the names in `classes`"
            )
        return [str(name) for _, name in pairs]

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
                    kinds.setdefault(_is_text(kind), name)
                if len(kinds) > 1:
                    raise StageError(
                        f"{self.spec.path}: column {columns[0]!r} holds names in {kinds[True]} and "
                        f"numbers in {kinds[False]}; use one of them, or give `classes`"
                    )
                for batch in self._tables(opened, name, 1 << 16, columns):
                    table = batch.group_by(columns).aggregate([])
                    rows = zip(*(table[c].to_pylist() for c in columns), strict=True)
                    found |= {row if len(columns) > 1 else row[0] for row in rows}
        return found

    @contextmanager
    def _open(self, name: str) -> Iterator[pq.ParquetFile]:
        filesystem, full = locate(self.spec.path, name)
        with filesystem.open_input_file(full) as source:
            try:
                opened = pq.ParquetFile(source)
            except (pa.ArrowInvalid, OSError) as error:
                raise _damaged(full, error) from error
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
        batches = opened.iter_batches(rows, row_groups=groups, columns=columns)
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowInvalid, OSError) as error:
                raise _damaged(locate(self.spec.path, name)[1], error) from error
            if batch is None:
                return
            yield pa.Table.from_batches([batch])


def _damaged(file: str, error: Exception) -> Exception:
    """The error to raise for a file that cannot be read; a disk's own error is passed on."""
    if isinstance(error, OSError) and not is_damage(error):
        return error
    line = " ".join(str(error).split())
    return StageError(f"{file} is not a Parquet file, or is damaged ({line}); download it again")


def _rows_for_bytes(meta: Any, groups: Sequence[int], bytes_in: int) -> int:
    """How many rows of these row groups have about `bytes_in` bytes."""
    rows = sum(meta.row_group(group).num_rows for group in groups)
    size = sum(meta.row_group(group).total_byte_size for group in groups)
    return int(bytes_in * rows / max(size, 1))


def _image_bytes(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None]:
    """The encoded bytes, and the images' paths if the column is a struct that has them."""
    if not pa.types.is_struct(column.type):
        return column, None
    fields = {column.type.field(i).name for i in range(column.type.num_fields)}
    if "bytes" not in fields:
        raise StageError(
            f"the image column is a struct of {', '.join(sorted(fields))}, without `bytes`; "
            f"embed the images' bytes in the files"
        )
    path = pc.struct_field(column, "path") if "path" in fields else None
    return (
        pc.struct_field(column, "bytes"),
        path if path is not None and _is_text(path.type) else None,
    )


def _claimed_formats(path: pa.ChunkedArray) -> pa.ChunkedArray:
    ends = pc.utf8_lower(pc.extract_regex(path, r"\.(?P<end>\w+)$").combine_chunks().field("end"))
    known = pc.index_in(ends, value_set=pa.array(list(EXTENSIONS)))
    return pa.array(list(EXTENSIONS.values())).take(known)


def _value_type(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values, also if the column is dictionary-encoded."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    kind = _value_type(kind)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def _is_flat(kind: pa.DataType) -> bool:
    return not pa.types.is_nested(kind)


def _may_be_image(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return _is_bytes(kind)
    types = [field.type for field in kind if field.name == "bytes"]
    return all(_is_bytes(one) or pa.types.is_null(one) for one in types)


def _may_be_caption(kind: pa.DataType) -> bool:
    return _is_text(kind) or _is_bytes(kind)


def _may_be_label(kind: pa.DataType) -> bool:
    return bool(
        _is_text(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
    )


def _declared_names(schema: pa.Schema, label: str, path: str) -> list[str] | None:
    """The class names in Hugging Face's metadata, if any; StageError when they are of no use."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return None
    try:
        found = json.loads(raw)
        for word in ("info", "features", label, "names"):
            found = (found or {}).get(word)
    except (ValueError, AttributeError, RecursionError):
        found = raw
    if not found:
        return None
    if not isinstance(found, list) or not all(isinstance(name, (str, int)) for name in found):
        raise StageError(
            f"{path}: its `huggingface` metadata does not list the names of {label!r} as Hugging "
            f"Face writes them; give the names in `classes`"
        )
    return [str(name) for name in found]

"""Texts in Parquet files, also in Hugging Face's layout.

The class names of an integer label are those of the `huggingface` metadata, if the file has it; a
file whose metadata has another order is read by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.contract import StageError
from jobs.corpus.reader_spec import TextParquetReader
from jobs.corpus.readers.columns import (
    cast,
    declared_names,
    is_flat,
    is_text,
    key_texts,
    may_be_key,
    may_be_label,
    refuse_columns,
    value_type,
)
from jobs.corpus.readers.parquet_file import open_file, tables
from jobs.corpus.readers.rows import BATCH_ROWS
from jobs.corpus.readers.source import files
from jobs.corpus.readers.texts import FORM, fits


@dataclass(frozen=True)
class TextParquet:
    """The rows of Parquet files as texts."""

    spec: TextParquetReader

    def declared(self) -> Sequence[str] | None:
        """The class names in the metadata of the first file that has some.

        Raises StageError if none has, and labels are names in one file, numbers in another.
        """
        kinds: dict[bool, str] = {}  # whether labels are names -> a file with such labels
        for name, _ in files(self.spec.path, self.spec.files):
            with open_file(self.spec.path, name) as (opened, full):
                self._refuse_columns(opened.schema_arrow, full)
                kind = opened.schema_arrow.field(self.spec.fields.label).type
                names = self._names(opened.schema_arrow, full)
            if names is not None:
                return names
            if not pa.types.is_null(kind):
                kinds.setdefault(is_text(kind), name)
        if len(kinds) > 1 and not self.spec.label_names and self.spec.labels == "classes":
            raise StageError(
                f"{self.spec.path}: column {self.spec.fields.label!r} holds names in {kinds[True]} "
                f"and numbers in {kinds[False]}; use one of them, or give `label_names`"
            )
        return None

    def rows(self, name: str) -> Iterator[pa.Table]:
        """A file's rows that fit `where`, by FORM."""
        yield from self._read(name, self.spec.columns_read)

    def labels(self, name: str) -> Iterator[pa.Table]:
        """The labels of the same rows."""
        yield from self._read(
            name, tuple(dict.fromkeys([self.spec.fields.label, *self.spec.where]))
        )

    def _read(self, name: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        with open_file(self.spec.path, name) as (opened, full):
            self._refuse_columns(opened.schema_arrow, full)
            names = self._names(opened.schema_arrow, full)
            for table in tables(opened, full, BATCH_ROWS, columns):
                for column in self.spec.where:
                    texts = cast(table[column], full, column, pa.string())
                    table = table.filter(fits(self.spec, column, texts))
                if len(table):
                    yield self._in_form(table, names, full)

    def _in_form(self, table: pa.Table, names: Sequence[str] | None, full: str) -> pa.Table:
        fields, none = self.spec.fields, pa.nulls(len(table))
        has = table.column_names

        def bytes_of(name: str | None) -> pa.ChunkedArray | pa.Array:
            if name is None or name not in has:
                return none.cast(pa.large_binary())
            column = table[name].cast(value_type(table[name].type))
            return column.cast(pa.large_string()).cast(pa.large_binary())

        label, fault, detail = self._labels(table[fields.label], names, full)
        keys = [key_texts(table[name], full, name) for name in self.spec.key if name in has]
        key = pc.binary_join_element_wise(*keys, "/") if keys else none.cast(pa.string())
        columns = [bytes_of(fields.text), bytes_of(fields.pair), label, key]
        return pa.table([*columns, fault, detail], schema=FORM)

    def _labels(
        self, column: pa.ChunkedArray, names: Sequence[str] | None, full: str
    ) -> tuple[pa.ChunkedArray, Any, Any]:
        """Labels as text, by the file's own names if it has some; faults and words on them."""
        text = cast(column, full, self.spec.fields.label, pa.string())
        faults = pa.nulls(len(column), pa.string())
        if self.spec.labels == "numbers" or is_text(column.type) or pa.types.is_null(column.type):
            return text, faults, faults
        numbers = column.cast(value_type(column.type))
        if not pa.types.is_integer(numbers.type):
            numbers = numbers.cast(pa.float64())
            whole = pc.and_(pc.equal(numbers, pc.trunc(numbers)), pc.less(pc.abs(numbers), 2.0**63))
            whole = pc.fill_null(whole, False)
            as_int = pc.if_else(whole, numbers, None).cast(pa.int64()).cast(pa.string())
            text = pc.if_else(whole, as_int, text)
        else:
            whole = pc.is_valid(numbers)
        if names is not None:
            at = pc.index_in(text, pa.array([str(n) for n in range(len(names))]))
            named = pa.array(names, pa.string()).take(pc.fill_null(at, 0).combine_chunks())
            whole = pc.is_valid(at)
            text = pc.if_else(whole, named, text)
        bad = pc.and_(pc.is_valid(text), pc.invert(whole))
        if pc.any(bad).as_py():
            faults = pc.if_else(bad, "label_unknown", None)
            count = "" if names is None else f", not one of the {len(names)} classes of the file"
            words = pc.binary_join_element_wise(
                "the label is ", pc.if_else(bad, text, None), count, ""
            )
            return text, faults.cast(pa.string()), words
        return text, faults, faults

    def _names(self, schema: pa.Schema, full: str) -> Sequence[str] | None:
        """The class names that a file declares for its integer labels."""
        label = self.spec.fields.label
        if self.spec.labels == "numbers" or is_text(schema.field(label).type):
            return None
        given = bool(self.spec.label_names)
        found = declared_names(schema, label, full, "label_names", given=given)
        if found is not None and len(set(found)) < len(found) and given:
            return None  # a number is a position in `label_names`
        return found

    def _refuse_columns(self, schema: pa.Schema, full: str) -> None:
        """Raise StageError when a named column is missing or has a type that its role forbids."""
        fields = self.spec.fields
        refuse_columns(schema, self.spec.columns_read, full)
        roles = [
            ("text", fields.text, is_text, "text"),
            ("pair", fields.pair, is_text, "text"),
            ("label", fields.label, may_be_label, "names or numbers"),
            *(("key", name, may_be_key, "text or numbers") for name in self.spec.key),
            *(("where", name, is_flat, "text or numbers") for name in self.spec.where),
        ]
        for role, name, fits_role, wanted in roles:
            kind = None if name is None else schema.field(name).type
            if kind is not None and not fits_role(value_type(kind)) and not pa.types.is_null(kind):
                raise StageError(
                    f"{full}: column {name!r}, the reader's `{role}`, holds {kind} instead of "
                    f"{wanted}; name another column or convert it"
                )

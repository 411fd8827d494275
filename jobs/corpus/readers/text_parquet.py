"""Texts in Parquet files, also in Hugging Face's layout.

The class names of an integer label are those of the `huggingface` metadata, if the file has it; a
file whose metadata has another order is read by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from jobs.contract import StageError
from jobs.corpus.readers.columns import (
    declared_names,
    is_flat,
    is_text,
    may_be_label,
    value_type,
)
from jobs.corpus.readers.parquet_file import open_file, tables
from jobs.corpus.readers.rows import BATCH_ROWS
from jobs.corpus.readers.source import files
from jobs.corpus.readers.texts import FORM, fits
from jobs.corpus.spec import TextParquetReader


@dataclass(frozen=True)
class TextParquet:
    """The rows of Parquet files as texts."""

    spec: TextParquetReader

    def declared(self) -> Sequence[str] | None:
        """The class names of the first file's metadata."""
        for name, _ in files(self.spec.path, self.spec.files):
            with open_file(self.spec.path, name) as (opened, full):
                self._refuse_columns(opened.schema_arrow, full)
                return self._names(opened.schema_arrow, full)
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
                    kept = pc.is_in(table[column].cast(pa.string()), fits(self.spec, column))
                    table = table.filter(kept)
                if len(table):
                    yield self._in_form(table, names)

    def _in_form(self, table: pa.Table, names: Sequence[str] | None) -> pa.Table:
        fields, none = self.spec.fields, pa.nulls(len(table))
        has = table.column_names

        def bytes_of(name: str | None) -> pa.ChunkedArray | pa.Array:
            if name is None or name not in has:
                return none.cast(pa.large_binary())
            column = table[name].cast(value_type(table[name].type))
            return column.cast(pa.large_string()).cast(pa.large_binary())

        label = table[fields.label].cast(value_type(table[fields.label].type)).cast(pa.string())
        if names is not None and not is_text(table.schema.field(fields.label).type):
            at = pc.index_in(label, pa.array([str(n) for n in range(len(names))]))
            named = pa.array(names, pa.string()).take(pc.fill_null(at, 0).combine_chunks())
            label = pc.if_else(pc.is_valid(at), named, label)
        keys = [table[name].cast(pa.string()) for name in self.spec.key if name in has]
        key = pc.binary_join_element_wise(*keys, "/") if keys else none.cast(pa.string())
        columns = [bytes_of(fields.text), bytes_of(fields.pair), label, key]
        columns += [none.cast(pa.string())] * 2
        return pa.table(columns, schema=FORM)

    def _names(self, schema: pa.Schema, full: str) -> Sequence[str] | None:
        """The class names that a file declares for its integer labels."""
        label = self.spec.fields.label
        if self.spec.labels == "numbers" or is_text(schema.field(label).type):
            return None
        return declared_names(schema, label, full)

    def _refuse_columns(self, schema: pa.Schema, full: str) -> None:
        """Raise StageError when a named column is missing or has a type that its role forbids."""
        fields = self.spec.fields
        missing = [name for name in self.spec.columns_read if name not in schema.names]
        if missing:
            raise StageError(
                f"{full} has no column {missing[0]!r}; it has {', '.join(schema.names)}: correct "
                f"the reader's `fields`"
            )
        roles = [
            ("text", fields.text, is_text, "text"),
            ("pair", fields.pair, is_text, "text"),
            ("label", fields.label, may_be_label, "names or numbers"),
            *(("key", name, is_flat, "text or numbers") for name in self.spec.key),
            *(("where", name, is_flat, "text or numbers") for name in self.spec.where),
        ]
        for role, name, fits_role, wanted in roles:
            kind = None if name is None else schema.field(name).type
            if kind is not None and not fits_role(value_type(kind)) and not pa.types.is_null(kind):
                raise StageError(
                    f"{full}: column {name!r}, the reader's `{role}`, holds {kind} instead of "
                    f"{wanted}; name another column or convert it"
                )

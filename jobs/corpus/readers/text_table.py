"""Texts in CSV and TSV files, as GLUE, HANS and SciTail are distributed.

A row with too few or too many fields is a bad row. Texts may have line breaks where fields are
quoted; labels and keys may not, because such a field has swallowed rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.corpus.reader_spec import TextTableReader
from jobs.corpus.readers.csv_file import CsvFile
from jobs.corpus.readers.texts import FORM, fits

BLOCK = 16 << 20  # bytes of a row, at most


@dataclass(frozen=True)
class TextTable:
    """The rows of tables as texts."""

    spec: TextTableReader

    def declared(self) -> None:
        """None: a table declares no class names."""
        return

    def rows(self, name: str) -> Iterator[pa.Table]:
        """A file's rows that fit `where`, by FORM. Raises StageError for a stray quote."""
        spec, fields = self.spec, self.spec.fields
        texts = {fields.text} if fields.pair is None else {fields.text, fields.pair}
        file = CsvFile(spec.path, name, spec.columns, spec.delimiter, spec.quoting, BLOCK)
        file.refuse_stray_quotes(set(spec.columns_read) - texts)
        bad: list[tuple[int | None, str]] = []

        def keep(row: Any) -> str:
            bad.append((row.number, f"{row.actual_columns} fields, not {row.expected_columns}"))
            return "skip"

        others = {fields.label, *spec.key, *spec.where}
        for batch in file.batches(list(spec.columns_read), texts - others, keep):
            yield from self._bad_rows(bad)
            table = pa.Table.from_batches([batch])
            for column in spec.where:
                table = table.filter(fits(spec, column, table[column]))
            if len(table):
                yield self._in_form(table)
        yield from self._bad_rows(bad)

    def labels(self, name: str) -> Iterator[pa.Table]:
        """The same rows: a table is read in whole."""
        yield from self.rows(name)

    def _in_form(self, table: pa.Table) -> pa.Table:
        fields, none = self.spec.fields, pa.nulls(len(table))

        def bytes_of(name: str | None) -> pa.ChunkedArray | pa.Array:
            return none if name is None else table[name].cast(pa.large_binary())

        keys = [table[name] for name in self.spec.key]
        key = pc.binary_join_element_wise(*keys, "/") if keys else none
        columns = [bytes_of(fields.text), bytes_of(fields.pair), table[fields.label], key]
        return pa.table([*columns, none, none], names=FORM.names).cast(FORM)

    @staticmethod
    def _bad_rows(bad: list[tuple[int | None, str]]) -> Iterator[pa.Table]:
        """The rows with another number of fields that were met so far; empties the list."""
        if not bad:
            return
        rows: Sequence[dict[str, Any]] = [
            {"key": f"row {number}", "fault": "wrong_number_of_fields", "detail": detail}
            for number, detail in bad
        ]
        bad.clear()
        yield pa.Table.from_pylist(list(rows), schema=FORM)

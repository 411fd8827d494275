"""CSV and TSV tables of image paths, with a caption or a label each.

Paths are relative to the table (or to `root`), on the same filesystem. A row whose path is absolute
or contains `..`, or whose file does not exist, is quarantined. Tables may be compressed. In a CSV,
fields may be quoted as in RFC 4180; in a TSV, quotes have no meaning. Any other table is refused,
because a stray quote would swallow the rows up to the next quote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.contract import StageError
from jobs.corpus.reader_spec import TableReader
from jobs.corpus.readers.csv_file import CsvFile
from jobs.corpus.readers.labels import Naming, scanned_names
from jobs.corpus.readers.rows import UNKNOWN, Classes, RowBatcher, Unit, claim
from jobs.corpus.readers.source import contents, files, why_no_content
from jobs.storage.folder import Folder

UNITS = 64  # at most: every unit reads the table up to its own rows
UNIT_ROWS = 5_000  # at least
READ_ROWS = 256  # images requested at a time


@dataclass(frozen=True)
class Table:
    """Rows keyed by a column, or by the image's path as the table gives it."""

    spec: TableReader
    known: Classes | None = None  # what `classes` gave: then no label is read to know them

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
        if self.known is not None:
            return self.known
        if self.spec.label is None or self.spec.classes:
            Naming(self.spec.classes).refuse_numbers_for_others(f"{self.spec.path}, `classes`")
            return Classes.of(self.spec.classes)
        texts = {name for rows in self._batches([self.spec.label]) for (name,) in rows}
        where = f"{self.spec.path}, column {self.spec.label!r}"
        return Classes.of(scanned_names(texts, where))

    def units(self) -> Sequence[Unit]:
        """Ranges of rows. Raises StageError for a stray quote."""
        name, _ = next(self.files())
        # A line break outside captions means that a field has swallowed rows.
        spec = self.spec
        named = (spec.image, spec.label, spec.mask, spec.key)
        one_line = {name for name in named if name is not None and name != spec.caption}
        self._file.refuse_stray_quotes(one_line)
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
            masks = self._masks(root, found)
            for values, path, (image, fault), mask in zip(found, paths, images, masks, strict=True):
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
                    mask=mask,
                    claims=claim(path),
                    fault=fault if _is_safe(path) else "unsafe_path",
                    detail=detail,
                )
                yield from rows.full()
        yield from rows.rest()

    def _masks(self, root: str, rows: Sequence[dict[str, Any]]) -> Iterator[bytes | None]:
        """The masks' bytes; none for a path without a file, and in a table without masks."""
        if self.spec.mask is None:
            yield from [None] * len(rows)
            return
        paths = [row[self.spec.mask].removeprefix("./") for row in rows]
        for found in contents(root, [path if _is_safe(path) else None for path in paths]):
            yield found.data

    def _columns(self) -> list[str]:
        spec = self.spec
        wanted = [spec.image, spec.caption, spec.label, spec.mask, spec.key]
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
        """The table's rows in order, these columns as text.

        Captions are bytes: one that is not UTF-8 is then only its row's fault. A caption column
        that is also the path, label or key is text.
        """
        others = (self.spec.image, self.spec.label, self.spec.mask, self.spec.key)
        caption = self.spec.caption
        as_bytes = () if caption is None or caption in others else (caption,)
        for batch in self._file.batches(columns, as_bytes):
            values = [batch.column(c).to_pylist() for c in columns]
            yield list(zip(*values, strict=True))

    @property
    def _file(self) -> CsvFile:
        spec, (name, _) = self.spec, next(self.files())
        return CsvFile(spec.path, name, spec.columns, spec.delimiter, spec.quoting)

    def _image_root(self) -> str:
        if self.spec.root is not None:
            return self.spec.root
        return Folder.holding(Folder.of(self.spec.path).uri)[0].uri


def _is_safe(path: str) -> bool:
    return bool(path) and not path.startswith(("/", "\\")) and ".." not in path.split("/")

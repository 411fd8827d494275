"""What a corpus's reader understands of its source, before anything is built.

Takes the corpus of an experiment or of a task; gives its classes, the rows of each where they can
be counted without reading images, and its first rows. Writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from jobs.contract import StageError
from jobs.corpus.check import Checked, Rules, check, mask_numbers
from jobs.corpus.reader_spec import JsonLinesReader, TableReader, TextTableReader
from jobs.corpus.readers import Classes, Reader, reader_of
from jobs.corpus.readers.rows import RAW, why_no_rows
from jobs.corpus.readers.source import files
from jobs.corpus.spec import Corpus
from jobs.storage.folder import Folder

ROWS = 3  # shown
SHOWN = 40  # characters of a text
QUICK = 64 << 20  # bytes of files that are read to their end


@dataclass(frozen=True)
class Preview:
    """What `preview` found in a source."""

    classes: Classes
    counts: Mapping[int, int] | None  # label -> rows; None: only reading the images tells
    rows: tuple[str, ...]  # the first ones, in words
    why_none: str = ""  # words on a source without rows

    @property
    def without_rows(self) -> list[str]:
        """The classes of which the source has no row, if that can be known."""
        if self.counts is None:
            return []
        return [c for label, c in enumerate(self.classes.ids) if not self.counts.get(label)]

    def in_a_line(self) -> str:
        """The classes and the first rows."""
        return f"{self.classes_in_words()}; {'; '.join(self.rows) or self.why_none}"

    def classes_in_words(self) -> str:
        """How many classes there are, the first of them, and which have no row."""
        ids = self.classes.ids
        if not ids:
            return "no classes"
        named = f"{', '.join(ids[:ROWS])}{', ...' if len(ids) > ROWS else ''}"
        empty = self.without_rows
        lacking = f", {len(empty):,} without a row ({', '.join(empty[:ROWS])})" if empty else ""
        return f"{len(ids):,} {'class' if len(ids) == 1 else 'classes'} ({named}){lacking}"


def preview(corpus: Corpus, *, count: bool = True) -> Preview:
    """What the corpus's main reader finds; with `count`, also how many rows each class has.

    Counting reads label columns or lists folders in whole. Raises StageError when the source cannot
    be read.
    """
    corpus = corpus.with_absolute_paths()
    reader = reader_of(corpus.reader)
    classes = reader.classes()
    reader = reader_of(corpus.reader, classes)
    rules = Rules(
        form=corpus.form,
        labels=reader.labels,
        classes=len(classes.ids),
        relabel=None,
        captions=reader.captions,
        max_pixels=corpus.max_pixels,
        decode=corpus.verify == "full",
        masks=mask_numbers(corpus, corpus.reader, range(len(classes.ids))),
        shrink=corpus.shrink,
    )
    first = _first_rows(reader)
    prefix = getattr(corpus.reader, "key_prefix", "")
    shown = [_in_words(first.slice(n, 1), rules, classes, prefix) for n in range(len(first))]
    counts = reader.label_counts() if count else None
    return Preview(classes, counts, tuple(shown), "" if shown else why_no_rows(corpus.reader))


def _first_rows(reader: Reader) -> pa.Table:
    for unit in reader.units():
        for rows in reader.read(unit, Counter()):
            if len(rows):
                return rows.slice(0, ROWS)
    return RAW.empty_table()  # of any form: it has no rows


def _in_words(row: pa.Table, rules: Rules, classes: Classes, prefix: str) -> str:
    checked: Checked = check(row, rules)
    key = f"{prefix}{row['key'][0].as_py()}"
    if not len(checked.good):
        (reason,) = checked.bad["reason"].to_pylist()
        (example,) = checked.examples.values()
        return f"{prefix}{example} (bad: {reason})"
    (good,) = checked.good.to_pylist()
    parts = [f"{good['width']} x {good['height']}"] if "width" in good else []
    if good["label"] is not None:
        known = bool(classes.ids)
        parts.append(f"class {classes.ids[good['label']]}" if known else f"{good['label']:g}")
    texts = (good.get(column) for column in ("caption", "text", "pair"))
    parts += [repr(_cut(_as_text(text))) for text in texts if text is not None]
    return f"{key}: {', '.join(parts)}"


def _as_text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def is_quick(corpus: Corpus) -> bool:
    """Whether `preview` takes about a second: no bucket, no large file that is read to its end."""
    reader = corpus.with_absolute_paths().reader
    if not Folder.of(getattr(reader, "path", ".")).is_local:
        return False
    try:
        match reader:
            case TableReader():
                size = Path(reader.path).stat().st_size
            case TextTableReader() | JsonLinesReader():
                size = sum(size for _, size in files(reader.path, reader.files))
            case _:
                return True
        return size <= QUICK
    except (OSError, StageError):
        return True  # `preview` gives the reason

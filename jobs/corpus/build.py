"""Builds a corpus in pieces: survey, scan, lay out, write, finish.

A build has two phases of large, independent pieces of work. *Scanning* reads a unit of a source,
checks its rows and writes them to scratch as sorted runs, with a record of the unit. *Writing*
makes a shard from its slices of all runs. The layout is made between them. A unit that has a
record is not scanned again, so a killed build resumes. The output has the same bytes for any
units, workers and interruptions. Nothing here imports Ray.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs import records
from jobs.contract import Outcome, StageError
from jobs.corpus.check import QUARANTINE_SCHEMA, Rules, check, mask_numbers
from jobs.corpus.reader_spec import AnyReader
from jobs.corpus.readers import Classes, Unit, reader_of
from jobs.corpus.readers.rows import why_no_rows
from jobs.corpus.readers.source import Listing
from jobs.corpus.runs import PARTS, RUN_BYTES, Run, write_run
from jobs.corpus.shards import QUARANTINE, File, Index
from jobs.corpus.shrunk import NONE, Shrunk
from jobs.corpus.spec import Corpus
from jobs.storage.folder import Folder

MAIN = "reader"
"""The source that is cut into parts by share, by the name of its field."""

SURVEY = "survey.json"
FORMAT = 2  # of the records in scratch; raised when they change
_REFUSED = ".quarantine.parquet"
CLASSES_SHOWN = 3  # classes without a row that a message names
RUN_ROWS = 1_000_000  # at most in a run, for small images and texts
POSITION_BITS = 40  # of a row's position in the source: the bits for its number within its unit


@dataclass(frozen=True)
class Piece:
    """A unit of one of a corpus's sources."""

    number: int  # counted over all sources, in their order
    source: str  # MAIN, or the part that has this source
    unit: Unit

    @property
    def name(self) -> str:
        """The stem of its files' names in scratch."""
        return f"unit-{self.number:06d}"


@dataclass(frozen=True)
class Survey:
    """What is known of a corpus before any image is read."""

    classes: Classes
    own: dict[str, Classes]  # source -> its classes, as its reader gives them
    labels: bool  # every row must have one
    captions: bool
    relabel: dict[str, tuple[int, ...]]  # part with its own source -> the corpus's label of each
    sources: dict[str, Listing]
    pieces: tuple[Piece, ...]


def survey(corpus: Corpus) -> Survey:
    """List the sources, their classes and units.

    Raises StageError when a source cannot be read, or when a part's own source has other classes.
    """
    readers = {name: reader_of(spec) for name, spec in _sources(corpus).items()}
    own = {name: reader.classes() for name, reader in readers.items()}
    main = own[MAIN]
    relabel, sources, pieces = {}, {}, list[Piece]()
    for name, reader in readers.items():
        if name != MAIN:
            relabel[name] = _relabel(corpus.name, name, own[name], main)
            if reader.captions != readers[MAIN].captions:
                what = corpus.form.companion
                raise StageError(
                    f"corpus {corpus.name}: only one of corpus.reader and corpus.parts.{name} has "
                    f"{what}s; name a {what} in both or in neither"
                )
        sources[name] = Listing.of(reader.files())
        for unit in reader.units():
            pieces.append(Piece(len(pieces), name, unit))
    labels, captions = readers[MAIN].labels, readers[MAIN].captions
    return Survey(main, own, labels, captions, relabel, sources, tuple(pieces))


def _sources(corpus: Corpus) -> dict[str, AnyReader]:
    return {MAIN: corpus.reader, **corpus.parts.sources}


def _relabel(corpus: str, part: str, own: Classes, main: Classes) -> tuple[int, ...]:
    unknown = [name for name in own.ids if name not in main.ids]
    if unknown:
        raise StageError(
            f"corpus {corpus}: corpus.parts.{part} has classes that corpus.reader lacks "
            f"({', '.join(unknown[:3])}); give both the same class names"
        )
    if bool(own.ids) != bool(main.ids):
        raise StageError(
            f"corpus {corpus}: corpus.parts.{part} has no classes, but corpus.reader has some; "
            f"give both the same class names"
        )
    if own.ids == main.ids:
        return tuple(range(len(own.ids)))
    counts = Counter(own.ids) | Counter(main.ids)
    repeated = [name for name in own.ids if counts[name] > 1]
    if repeated:
        raise StageError(
            f"corpus {corpus}: two classes are called {repeated[0]!r}, so corpus.parts.{part} "
            f"cannot be matched with corpus.reader by name; give both the same classes in one order"
        )
    return tuple(main.ids.index(name) for name in own.ids)


def resume(scratch: Folder, found: Survey) -> None:
    """Keep what an interrupted build left in scratch if the sources have not changed since."""
    current = {
        "format": FORMAT,
        "sources": {name: asdict(listing) for name, listing in found.sources.items()},
        "pieces": [asdict(piece) for piece in found.pieces],
        "classes": list(found.classes.ids),
    }
    if records.find(scratch, SURVEY, dict[str, Any]) == current:
        return
    scratch.delete()
    scratch.write_json(SURVEY, current)


@dataclass(frozen=True)
class Scan:
    """The result of scanning a unit."""

    runs: tuple[Run, ...]
    read: int  # rows
    quarantined: Counter[str]  # reason -> rows
    notes: Counter[str]
    examples: dict[str, str]  # reason -> the first such row, in words
    shrunk: Shrunk = NONE

    def as_json(self) -> dict[str, Any]:
        """JSON values that `of` reads."""
        return {
            "runs": [asdict(run) for run in self.runs],
            "read": self.read,
            "quarantined": dict(self.quarantined),
            "notes": dict(self.notes),
            "examples": self.examples,
            "shrunk": asdict(self.shrunk),
        }

    @staticmethod
    def of(parsed: dict[str, Any]) -> Scan:
        """The scan that `as_json` gave, also after a round trip through JSON text."""
        return records.parse(json.dumps(parsed), Scan)


def scan(corpus: Corpus, found: Survey, piece: Piece, scratch: Folder) -> Scan:
    """Read and check a unit and write its rows as runs; a unit that has a record is not redone."""
    record = f"{piece.name}.json"
    if (recorded := records.find(scratch, record, Scan)) is not None:
        return recorded
    scratch.delete(record)
    source = _sources(corpus)[piece.source]
    own = range(len(found.classes.ids))
    rules = Rules(
        form=corpus.form,
        labels=found.labels,
        classes=len(found.classes.ids),
        relabel=found.relabel.get(piece.source),
        captions=found.captions,
        max_pixels=corpus.max_pixels,
        decode=corpus.verify == "full",
        masks=mask_numbers(corpus, source, found.relabel.get(piece.source, own)),
        shrink=corpus.shrink,
    )
    runs = _RunWriter(corpus, piece, scratch)
    bad, notes, read = [QUARANTINE_SCHEMA.empty_table()], Counter[str](), 0
    shrunk = NONE
    examples: dict[str, str] = {}
    reader = reader_of(source, found.own[piece.source])
    for rows in reader.read(piece.unit, notes):
        checked = check(_with_prefix(corpus, piece.source, rows), rules)
        examples = checked.examples | examples
        runs.add(checked.good, np.flatnonzero(checked.kept) + read)
        bad.append(checked.bad)
        notes += checked.notes
        shrunk += checked.shrunk
        read += len(rows)
    refused = pa.concat_tables(bad)
    if len(refused):
        scratch.write_table(f"{piece.name}{_REFUSED}", refused)
    reasons = Counter(refused["reason"].to_pylist())
    done = Scan(runs.close(), read, reasons, +notes, examples, shrunk)
    scratch.write_json(record, done.as_json())
    return done


def _with_prefix(corpus: Corpus, source: str, rows: pa.Table) -> pa.Table:
    """The rows, with the reader's prefix before each key."""
    prefix = getattr(_sources(corpus)[source], "key_prefix", "")
    if not prefix:
        return rows
    at = rows.schema.get_field_index("key")
    keys = pc.binary_join_element_wise(prefix, rows["key"], "")
    return rows.set_column(at, rows.schema.field(at), keys)


class _RunWriter:
    """Writes a unit's good rows as runs of a bounded size."""

    def __init__(self, corpus: Corpus, piece: Piece, scratch: Folder) -> None:
        self._corpus, self._piece, self._scratch = corpus, piece, scratch
        self._written: list[Run] = []
        self._tables: list[pa.Table] = []
        self._positions: list[npt.NDArray[np.int64]] = []  # row numbers within the unit
        self._rows = self._bytes = 0

    def add(self, rows: pa.Table, positions: npt.NDArray[np.int64]) -> None:
        """Add rows, with their row numbers within the unit, [N]."""
        if len(rows):
            self._tables.append(rows)
            self._positions.append(positions)
            self._rows += len(rows)
            self._bytes += rows[self._corpus.form.bulk].nbytes
        if self._bytes >= RUN_BYTES or self._rows >= RUN_ROWS:
            self._flush()

    def close(self) -> tuple[Run, ...]:
        """Write what is left; give all runs."""
        self._flush()
        return tuple(self._written)

    def _flush(self) -> None:
        if not self._tables:
            return
        base = np.uint64(self._piece.number << POSITION_BITS)
        positions = np.concatenate(self._positions).astype(np.uint64) + base
        name = f"{self._piece.name}-{len(self._written):03d}"
        part = None if self._piece.source == MAIN else self._piece.source
        rows = pa.concat_tables(self._tables)
        self._written.append(write_run(self._scratch, name, rows, self._corpus, part, positions))
        self._tables, self._positions, self._rows, self._bytes = [], [], 0, 0


def refuse_bad(corpus: Corpus, found: Survey, scans: Sequence[Scan]) -> None:
    """Raise StageError if the rows that were read are no corpus.

    They are none if more than `max_bad_share` of the rows, or all of them, are bad, and if a class
    has no training row (unless `allow_empty_classes`).
    """
    for name in _sources(corpus):
        own = [s for p, s in zip(found.pieces, scans, strict=True) if p.source == name]
        _refuse_useless(corpus, name, own)
    read, bad = (
        sum(scan.read for scan in scans),
        _add_up(scan.quarantined for scan in scans).total(),
    )
    if bad > corpus.max_bad_share * read:
        raise StageError(
            f"corpus {corpus.name}: {bad:,} of {read:,} rows ({bad / read:.2%}) are bad, more than "
            f"max_bad_share = {corpus.max_bad_share:.2%}: {_reasons(scans)}; repair the source, or "
            f"raise corpus.max_bad_share to leave them out"
        )
    _refuse_empty_classes(corpus, found, scans)


def _refuse_useless(corpus: Corpus, name: str, scans: Sequence[Scan]) -> None:
    """Raise StageError when a source has no good row."""
    where = "corpus.reader" if name == MAIN else f"corpus.parts.{name}"
    of = "" if name == MAIN else f" of {where}"
    read = sum(scan.read for scan in scans)
    if read == 0:
        what = why_no_rows(_sources(corpus)[name])
        raise StageError(f"corpus {corpus.name}: {what}; correct {where}")
    if _add_up(scan.quarantined for scan in scans).total() == read:
        raise StageError(
            f"corpus {corpus.name}: all {read:,} rows{of} are bad: {_reasons(scans)}; repair the "
            f"source or correct {where}"
        )


def _reasons(scans: Sequence[Scan]) -> str:
    """Why rows are bad, most frequent first, each with its first row."""
    examples: dict[str, str] = {}
    for scan in scans:
        examples = scan.examples | examples
    return ", ".join(
        f"{count:,} {reason} (first: {examples[reason]})"
        for reason, count in _add_up(scan.quarantined for scan in scans).most_common()
    )


def _refuse_empty_classes(corpus: Corpus, found: Survey, scans: Sequence[Scan]) -> None:
    if not found.classes.ids or corpus.parts.shares[0] == 0 or corpus.allow_empty_classes:
        return
    if corpus.label_kind == "masks":
        return  # a class is met in some pixels of some images
    seen = {label for scan in scans for run in scan.runs for label in run.labels}
    empty = [label for label in range(len(found.classes.ids)) if label not in seen]
    if not empty:
        return
    named = ", ".join(repr(found.classes.ids[label]) for label in empty[:CLASSES_SHOWN])
    more = f" and {len(empty) - CLASSES_SHOWN:,} more" if len(empty) > CLASSES_SHOWN else ""
    hint = "do the labels begin at 1? " if empty == [0] and found.classes.ids[0] == "0" else ""
    hint = "does `where` leave their rows out? " if getattr(corpus.reader, "where", None) else hint
    raise StageError(
        f"corpus {corpus.name}: {len(empty):,} of {len(found.classes.ids):,} classes have no row "
        f"in the training part ({named}{more}); {hint}correct the labels or the list of classes, "
        f"or set corpus.allow_empty_classes: true"
    )


def finish(
    corpus: Corpus,
    found: Survey,
    scans: Sequence[Scan],
    files: Sequence[tuple[str, File]],
    scratch: Folder,
    output: Folder,
) -> Outcome:
    """Write the quarantine and the index of the shards, given as (part, file).

    Counts: rows_read, rows_<part>, quarantined, and each `bad_<reason>` and `note_<what>` above 0;
    with `shrink`, shrunk_images, shrunk_bytes_before and shrunk_bytes_after.
    """
    refused = [QUARANTINE_SCHEMA.empty_table()]
    for piece, scanned in zip(found.pieces, scans, strict=True):
        if scanned.quarantined:
            refused.append(scratch.read_table(f"{piece.name}{_REFUSED}"))
    order: list[tuple[str, str]] = [(name, "ascending") for name in QUARANTINE_SCHEMA.names]
    table = pa.concat_tables(refused).sort_by(order).combine_chunks()
    output.write_table(QUARANTINE, table, compression="ZSTD")
    reasons, notes = _add_up(s.quarantined for s in scans), _add_up(s.notes for s in scans)
    index = Index(
        name=corpus.name,
        classes=found.classes.names,
        parts={part: tuple(file for name, file in files if name == part) for part in PARTS},
        class_ids=found.classes.ids,
        rows_read=sum(scan.read for scan in scans),
        quarantined=dict(sorted(reasons.items())),
        notes=dict(sorted(notes.items())),
        sources=found.sources,
        modality=corpus.modality,
        label_kind=corpus.label_kind,
        shrunk=sum((scan.shrunk for scan in scans), NONE) if corpus.shrink else None,
    )
    index.write(output)
    counts = {"rows_read": index.rows_read, "quarantined": reasons.total()}
    counts |= {f"rows_{part}": index.rows(part) for part in PARTS}
    counts |= {f"bad_{reason}": count for reason, count in index.quarantined.items()}
    counts |= {f"note_{what}": count for what, count in index.notes.items()}
    if index.shrunk is not None:
        counts |= {f"shrunk_{what}": count for what, count in asdict(index.shrunk).items()}
    return Outcome(counts)


def _add_up(counters: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for counter in counters:
        total += counter
    return total

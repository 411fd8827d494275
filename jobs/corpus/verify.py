"""Verifies a corpus: are its files and its source still what they were when it was built?

Takes a corpus's folder; gives one finding for each thing that is wrong. Reads every byte of the
shards once. Nothing here repairs or writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from jobs.committed import MANIFEST
from jobs.contract import StageError
from jobs.corpus.build import MAIN
from jobs.corpus.reader_spec import AnyReader
from jobs.corpus.readers import reader_of
from jobs.corpus.readers.source import Listing
from jobs.corpus.shards import INDEX, QUARANTINE, File, Index, open_shard
from jobs.corpus.spec import Corpus
from jobs.storage.folder import Folder

_NOT_SHARDS = (INDEX, QUARANTINE, MANIFEST)


@dataclass(frozen=True)
class Finding:
    """One difference from what was built."""

    file: str
    what: str  # missing, altered, unlisted, source changed, source newer, source not here
    detail: str
    harmless: bool = False  # true where something could only not be compared


def verify(folder: Folder) -> Iterator[Finding]:
    """What is wrong with the files in a corpus's folder; without a readable index, only that."""
    try:
        index = Index.read(folder)
    except FileNotFoundError:
        yield Finding(INDEX, "missing", "it lists the shards; build the corpus again")
        return
    except StageError as error:
        yield Finding(INDEX, "altered", str(error))
        return
    here = dict(folder.files())
    yield from _check_quarantine(folder, index, here)
    listed = {file.file: file for files in index.parts.values() for file in files}
    for name in sorted({*listed, *here} - set(_NOT_SHARDS)):
        if name not in here:
            yield Finding(name, "missing", f"{INDEX} lists it; build the corpus again")
        elif name not in listed:
            yield Finding(name, "unlisted", f"{INDEX} does not list it; remove it")
        else:
            yield from _check_shard(folder, listed[name], here[name])


def _check_quarantine(folder: Folder, index: Index, here: dict[str, int]) -> Iterator[Finding]:
    if QUARANTINE not in here:
        yield Finding(QUARANTINE, "missing", "it lists the refused rows; build the corpus again")
        return
    try:
        reasons = Counter(folder.read_table(QUARANTINE)["reason"].to_pylist())
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        line = " ".join(str(error).split())
        yield Finding(QUARANTINE, "altered", f"it cannot be read ({line}); build the corpus again")
        return
    if reasons != Counter(index.quarantined):
        listed = sum(index.quarantined.values())
        detail = f"its {reasons.total():,} rows or their reasons are not the {listed:,} of {INDEX}"
        yield Finding(QUARANTINE, "altered", f"{detail}; build the corpus again")


def _check_shard(folder: Folder, file: File, size: int) -> Iterator[Finding]:
    if size != file.bytes:
        detail = f"{size:,} bytes instead of {file.bytes:,}"
    elif (digest := folder.sha256(file.file)) != file.sha256:
        detail = f"sha256 {digest[:12]}... instead of {file.sha256[:12]}..."
    else:
        with open_shard(folder, file.file) as parquet:
            rows = parquet.metadata.num_rows
        if rows == file.rows:
            return
        detail = f"{rows:,} rows instead of {file.rows:,}"
    yield Finding(file.file, "altered", f"{detail}; build the corpus again")


def compare_source(corpus: Corpus, folder: Folder) -> Iterator[Finding]:
    """How the sources' files (names and sizes) differ from those that the corpus was built from.

    Local files of the same name and size that were written after the build are a harmless finding.
    Gives nothing without a readable index; `verify` reports that.
    """
    try:
        index = Index.read(folder)
    except (FileNotFoundError, StageError):
        return
    for name, spec in {MAIN: corpus.reader, **corpus.parts.sources}.items():
        path = str(getattr(spec, "path", ""))
        try:
            now = Listing.of(reader_of(spec).files())
        except StageError as error:
            yield Finding(path, "source not here", str(error), harmless=True)
            continue
        built = index.sources.get(name)
        if now == built:
            yield from _newer_files(spec, folder)
        else:
            detail = "none" if built is None else f"{built.files:,} files of {built.bytes:,} bytes"
            yield Finding(
                path,
                "source changed",
                f"built from {detail}, now {now.files:,} files of {now.bytes:,} bytes; give "
                f"the reader another `version` and build with --force, or restore the old data",
            )


def _newer_files(spec: AnyReader, folder: Folder) -> Iterator[Finding]:
    path = str(getattr(spec, "path", ""))
    if not path or not Folder.of(path).is_local or not folder.is_local:
        return
    built = (folder.local_path() / INDEX).stat().st_mtime_ns
    root = Folder.of(path).local_path()
    newer = [
        name
        for name, _ in reader_of(spec).files()
        if (root if root.is_file() else root / name).stat().st_mtime_ns > built
    ]
    if newer:
        yield Finding(
            path,
            "source newer",
            f"{len(newer):,} files were written after the build (the first: {newer[0]}); if their "
            f"content has changed, give the reader another `version` and build with --force",
            harmless=True,
        )

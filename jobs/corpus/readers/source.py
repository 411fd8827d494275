"""A source's files, on any filesystem that pyarrow knows.

Takes the path that an experiment file gives (a file or a folder, local, s3:// or gs://); gives its
files' names and sizes, and their bytes. Names are relative to the path, with forward slashes; a
path to one file has that file's own name. Nothing here writes, or knows what the bytes mean.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from jobs.contract import StageError
from jobs.place import Place

BUFFER = 4 << 20  # bytes asked of a filesystem at a time when a file is streamed
REQUESTS = 16  # small files asked of an object store at a time


@dataclass(frozen=True)
class Listing:
    """What identifies a source's content without reading it: its files' names and sizes."""

    files: int
    bytes: int
    sha256: str  # of "name<tab>size<newline>" for every file, in the reader's order

    @staticmethod
    def of(files: Iterable[tuple[str, int]]) -> Listing:
        """The listing of (name, bytes); the order is the reader's, and always the same."""
        digest, count, total = hashlib.sha256(), 0, 0
        for name, size in files:
            digest.update(f"{name}\t{size}\n".encode())
            count, total = count + 1, total + size
        return Listing(count, total, digest.hexdigest())


def files(path: str, pattern: str = "*", *, empty: bool = False) -> list[tuple[str, int]]:
    """(name, bytes) of the files at or below a path whose last name fits, by rising name.

    Raises StageError when there is nothing at the path or, unless it may be `empty`, nothing that
    fits.
    """
    place = Place.of(path)
    filesystem, root = _open(place)
    info = _info(filesystem, root, path)
    if info.type == pafs.FileType.File:
        return [(info.base_name, int(info.size))]
    found = [
        (item.path[len(root) :].lstrip("/"), int(item.size))
        for item in filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
        if item.type == pafs.FileType.File and fnmatch.fnmatchcase(item.base_name, pattern)
    ]
    if not found and not empty:
        raise StageError(f"{path} holds no file named like {pattern!r}; correct the reader's path")
    return sorted(found)


def folders(path: str) -> list[str]:
    """Names of the folders right below a path, sorted; StageError when there is none."""
    filesystem, root = _open(Place.of(path))
    _info(filesystem, root, path, folder=True)
    found = [
        item.base_name
        for item in filesystem.get_file_info(pafs.FileSelector(root))
        if item.type == pafs.FileType.Directory
    ]
    if not found:
        raise StageError(f"{path} holds no folder; it should hold one for each class")
    return sorted(found)


def locate(path: str, name: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem, and the full path within it, of a file as `files` names it."""
    filesystem, root = _open(Place.of(path))
    info = _info(filesystem, root, path)
    return filesystem, root if info.type == pafs.FileType.File else f"{root}/{name}"


def stream(path: str, name: str) -> Any:
    """A file's bytes from its start, decompressed where its name ends in .gz or .tgz."""
    filesystem, full = locate(path, name)
    compression = "gzip" if name.endswith((".gz", ".tgz")) else None
    return filesystem.open_input_stream(full, compression=compression, buffer_size=BUFFER)


def contents(path: str, names: Iterable[str | None]) -> Iterator[bytes | None]:
    """Each small file's bytes, in order; None for a file that is not there, and for no name.

    An object store is asked for several at a time, since each answer takes its while.
    """
    place = Place.of(path)
    if place.is_local:
        root = place.local_path()
        yield from (_read_local(root, name) for name in names)
        return
    filesystem, full = _open(place)

    def read(name: str | None) -> bytes | None:
        if name is None:
            return None
        try:
            with filesystem.open_input_stream(f"{full}/{name}") as opened:
                return bytes(opened.read())
        except FileNotFoundError:
            return None

    with ThreadPoolExecutor(REQUESTS) as pool:
        yield from pool.map(read, names)


def text(path: str) -> str:
    """A whole text file; StageError when it is absent or not UTF-8."""
    filesystem, root = _open(Place.of(path))
    try:
        with filesystem.open_input_stream(root) as opened:
            return bytes(opened.read()).decode("utf-8")
    except FileNotFoundError:
        raise StageError(f"{path} does not exist; correct its path") from None
    except UnicodeDecodeError:
        raise StageError(f"{path} is not UTF-8 text; convert it") from None


def _read_local(root: Path, name: str | None) -> bytes | None:
    try:
        return None if name is None else (root / name).read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return None


def _open(place: Place) -> tuple[pafs.FileSystem, str]:
    try:
        return place.open()
    except (OSError, ValueError) as error:
        raise StageError(f"{place.uri} cannot be opened ({error}); correct its path") from error


def _info(filesystem: Any, root: str, path: str, folder: bool = False) -> Any:
    info = filesystem.get_file_info(root)
    if info.type == pafs.FileType.NotFound:
        raise StageError(f"{path} does not exist; correct the reader's path")
    if folder and info.type != pafs.FileType.Directory:
        raise StageError(f"{path} is no folder; this reader wants one")
    return info

"""A source's files, on any filesystem that pyarrow knows.

Takes the path that an experiment file gives (a file or a folder, local, s3:// or gs://); gives its
files' names and sizes, and their bytes. Names are relative to the path, with forward slashes; a
path to one file has that file's own name. Nothing here writes, or knows what the bytes mean.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from jobs.contract import StageError
from jobs.storage.folder import Folder

BUFFER = 4 << 20  # bytes asked of a filesystem at a time when a file is streamed
REQUESTS = 16  # small files asked of an object store at a time

_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""What a path that leads to no file fails with; anything else is the disk's trouble."""


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


def files(
    path: str, pattern: str = "*", *, empty: bool = False, broken: bool = False
) -> list[tuple[str, int]]:
    """(name, bytes) of the files at or below a path whose last name fits, by rising name.

    Raises StageError when there is nothing at the path or, unless it may be `empty`, nothing that
    fits; and for a link that leads nowhere, unless `broken` ones are wanted: as files of no bytes.
    """
    folder = Folder.of(path)
    filesystem, root = _open(folder)
    info = _info(filesystem, root, path)
    if info.type == pafs.FileType.File:
        return [(info.base_name, int(info.size))]
    below = _walk(root) if folder.is_local else _listed(filesystem, root)
    found = []
    for name, size in below:
        if not fnmatch.fnmatchcase(name.rpartition("/")[2], pattern):
            continue
        if size is None and not broken:
            raise _leads_nowhere(root, name)
        found.append((_checked(root, name), size or 0))
    if not found and not empty:
        raise StageError(f"{path} holds no file named like {pattern!r}; correct the reader's path")
    return sorted(found)


def folders(path: str) -> list[str]:
    """Names of the folders right below a path, sorted, without the hidden ones.

    Raises StageError when there is none, and for a link that leads nowhere: it may be a folder's.
    """
    folder = Folder.of(path)
    filesystem, root = _open(folder)
    _info(filesystem, root, path, folder=True)
    if folder.is_local:
        found = [_checked(root, name) for name in _local_folders(root)]
    else:
        found = [
            item.base_name
            for item in filesystem.get_file_info(pafs.FileSelector(root))
            if item.type == pafs.FileType.Directory and not is_hidden(item.base_name)
        ]
    if not found:
        raise StageError(f"{path} holds no folder; it should hold one for each class")
    return sorted(found)


def is_hidden(name: str) -> bool:
    """Whether a file's name, or that of a folder on the way to it, begins with a dot."""
    return any(part.startswith(".") for part in name.split("/"))


def _listed(filesystem: pafs.FileSystem, root: str) -> Iterator[tuple[str, int | None]]:
    """(name, bytes) of all files below a folder."""
    for item in filesystem.get_file_info(pafs.FileSelector(root, recursive=True)):
        if item.type == pafs.FileType.File:
            yield item.path[len(root) :].lstrip("/"), int(item.size)


def _walk(folder: str, above: str = "") -> Iterator[tuple[str, int | None]]:
    """As `_listed` of a local folder; no bytes (None) for a link that leads nowhere.

    pyarrow leaves such links out without a word, and fails at a name that is not UTF-8.
    """
    for entry, found in _entries(folder):
        name = f"{above}{entry.name}"
        if found is not None and stat.S_ISDIR(found.st_mode):
            if entry.is_symlink():
                _refuse_circle(folder, entry)
            yield from _walk(entry.path, f"{name}/")
        elif found is None or stat.S_ISREG(found.st_mode):
            yield name, None if found is None else found.st_size


def _refuse_circle(folder: str, entry: os.DirEntry[str]) -> None:
    """Raise StageError for a link to a folder it lies in, whose files would come many times."""
    if f"{os.path.realpath(folder)}/".startswith(f"{os.path.realpath(entry.path)}/"):
        raise StageError(
            f"{folder}/{_printable(entry.name)} links to a folder that it lies in; remove it"
        )


def _local_folders(root: str) -> Iterator[str]:
    for entry, found in _entries(root):
        if is_hidden(entry.name):
            continue
        if found is None:
            raise _leads_nowhere(root, entry.name)
        if stat.S_ISDIR(found.st_mode):
            yield entry.name


def _entries(folder: str) -> Iterator[tuple[os.DirEntry[str], os.stat_result | None]]:
    """What is right in a local folder, links followed; None for one that leads nowhere."""
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                found = entry.stat()
            except OSError as error:
                if error.errno not in _NOWHERE:
                    raise
                found = None
            yield entry, found


def _leads_nowhere(root: str, name: str) -> StageError:
    return StageError(f"{root}/{_printable(name)} is a link that leads nowhere; mend or remove it")


def _checked(root: str, name: str) -> str:
    """The name of a local file; StageError where it is no UTF-8, as keys must be."""
    if _printable(name) != name:
        raise StageError(
            f"the name of {root}/{_printable(name)} is not UTF-8; rename it (`convmv` renames "
            f"whole trees)"
        )
    return name


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def locate(path: str, name: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem, and the full path within it, of a file as `files` names it."""
    filesystem, root = _open(Folder.of(path))
    info = _info(filesystem, root, path)
    return filesystem, root if info.type == pafs.FileType.File else f"{root}/{name}"


@contextmanager
def stream(path: str, name: str) -> Iterator[Any]:
    """A file's bytes from its start, decompressed where its name ends in .gz or .tgz.

    Raises StageError, wherever they are read, when they are no gzip or are damaged.
    """
    filesystem, full = locate(path, name)
    compression = "gzip" if name.endswith((".gz", ".tgz")) else None
    with filesystem.open_input_stream(full, compression=compression, buffer_size=BUFFER) as opened:
        try:
            yield opened
        except OSError as error:
            if compression is None or not is_damage(error):
                raise
            raise StageError(
                f"{full} is no gzip file, or a damaged one ({error}); fetch it again, or rename it "
                f"where it is not compressed"
            ) from None


def is_damage(error: OSError) -> bool:
    """Whether pyarrow could not read a file for its bytes: neither the disk nor a bucket failed."""
    return error.errno is None and not re.search("AWS Error|google::cloud", str(error))


def contents(path: str, names: Iterable[str | None]) -> Iterator[bytes | None]:
    """Each small file's bytes, in order; None for a file that is not there, and for no name.

    An object store is asked for several at a time, since each answer takes its while.
    """
    folder = Folder.of(path)
    if folder.is_local:
        root = folder.local_path()
        yield from (_read_local(root, name) for name in names)
        return
    filesystem, full = _open(folder)

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
    """A whole text file; StageError when it is absent, a folder or not UTF-8."""
    filesystem, root = _open(Folder.of(path))
    if filesystem.get_file_info(root).type == pafs.FileType.Directory:
        raise StageError(f"{path} is a folder; name a file in it")
    try:
        with filesystem.open_input_stream(root) as opened:
            return bytes(opened.read()).decode("utf-8")
    except FileNotFoundError:
        raise StageError(f"{path} does not exist; correct its path") from None
    except UnicodeDecodeError:
        raise StageError(f"{path} is not UTF-8 text; convert it") from None


def _read_local(root: Path, name: str | None) -> bytes | None:
    if name is None or "\0" in name:  # which no file's name can hold
        return None
    try:
        return (root / name).read_bytes()
    except OSError as error:
        if error.errno not in _NOWHERE:
            raise
        return None


def _open(folder: Folder) -> tuple[pafs.FileSystem, str]:
    try:
        return folder.open()
    except (OSError, ValueError) as error:
        raise StageError(f"{folder.uri} cannot be opened ({error}); correct its path") from error


def _info(filesystem: Any, root: str, path: str, folder: bool = False) -> Any:
    info = filesystem.get_file_info(root)
    if info.type == pafs.FileType.NotFound:
        raise StageError(f"{path} does not exist; correct the reader's path")
    if folder and info.type != pafs.FileType.Directory:
        raise StageError(f"{path} is no folder; this reader wants one")
    return info

"""A source's files, on any filesystem that pyarrow supports.

Takes the path in an experiment file (a file or a folder, local, s3:// or gs://); gives the names,
sizes and bytes of its files. Names are relative to the path, with forward slashes; if the path is a
file, its name is the file's own. Nothing here writes or interprets the bytes.
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
from typing import Any, NamedTuple

import pyarrow.fs as pafs

from jobs.contract import StageError
from jobs.corpus.readers.formats import other_format
from jobs.storage.bounded import IMAGE_BYTES, TEXT_BYTES, BoundedStream, TooLargeError
from jobs.storage.folder import Folder

BUFFER = 4 << 20  # bytes requested from a filesystem at a time when a file is streamed
REQUESTS = 16  # small files requested from an object store at a time

_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""The errors of a path without a file; any other error is a failure of the disk."""


@dataclass(frozen=True)
class Listing:
    """Identifies a source's content without reading it: by its files' names and sizes."""

    files: int
    bytes: int
    sha256: str  # of "name<tab>size<newline>" for every file, in the reader's order

    @staticmethod
    def of(files: Iterable[tuple[str, int]]) -> Listing:
        """The listing of (name, bytes), in the reader's order, which never varies."""
        digest, count, total = hashlib.sha256(), 0, 0
        for name, size in files:
            digest.update(f"{name}\t{size}\n".encode())
            count, total = count + 1, total + size
        return Listing(count, total, digest.hexdigest())


class Content(NamedTuple):
    """A small file's bytes, or why it has none."""

    data: bytes | None  # None where there is no file
    fault: str | None = None  # not_a_file, too_large: it is not read


def files(
    path: str,
    pattern: str = "*",
    *,
    empty: bool = False,
    broken: bool = False,
    hidden: bool = False,
) -> list[tuple[str, int]]:
    """(name, bytes) of the files at or below a path whose file name fits the pattern, sorted.

    Hidden files below it are left out, unless `hidden`.

    Raises StageError when the path does not exist, when no file fits (unless `empty`), and for a
    broken link, a FIFO, a device and a socket. With `broken`, each of these is a file of 0 bytes.
    """
    folder = Folder.of(path)
    filesystem, root = _open_folder(folder)
    info = _file_info(filesystem, root, path)
    if info.type == pafs.FileType.File:
        return [(info.base_name, int(info.size))]
    below = _list_local(root) if folder.is_local else _list_remote(filesystem, root)
    found = []
    for name, size in below:
        if not fnmatch.fnmatchcase(name.rpartition("/")[2], pattern):
            continue
        if is_hidden(name) and not hidden:
            continue
        if size is None and not broken:
            raise _no_file(root, name)
        found.append((_check_utf8(root, name), size or 0))
    if not found and not empty:
        raise StageError(f"{path} has no file named like {pattern!r}; correct the reader's path")
    return sorted(found)


def folders(path: str) -> list[str]:
    """Names of the folders directly below a path, sorted, without hidden ones.

    Raises StageError when there is none, and for a broken link, which may stand for a folder.
    """
    folder = Folder.of(path)
    filesystem, root = _open_folder(folder)
    _file_info(filesystem, root, path, folder=True)
    if folder.is_local:
        found = [_check_utf8(root, name) for name in _local_folders(root)]
    else:
        found = [
            item.base_name
            for item in filesystem.get_file_info(pafs.FileSelector(root))
            if item.type == pafs.FileType.Directory and not is_hidden(item.base_name)
        ]
    if not found:
        raise StageError(f"{path} has no folder; it needs one for each class")
    return sorted(found)


def files_beside(path: str) -> int:
    """How many files lie directly in a folder, hidden ones left out."""
    filesystem, root = _open_folder(Folder.of(path))
    below = filesystem.get_file_info(pafs.FileSelector(root))
    return sum(f.type == pafs.FileType.File and not is_hidden(f.base_name) for f in below)


def hidden_beside(path: str) -> int:
    """How many files of a folder are hidden, or lie in hidden folders directly below it."""
    filesystem, root = _open_folder(Folder.of(path))
    total = 0
    for found in filesystem.get_file_info(pafs.FileSelector(root)):
        if not is_hidden(found.base_name):
            continue
        if found.type == pafs.FileType.Directory:
            below = filesystem.get_file_info(pafs.FileSelector(found.path, recursive=True))
            total += sum(one.type == pafs.FileType.File for one in below)
        else:
            total += 1
    return total


def is_hidden(name: str) -> bool:
    """Whether a relative path is hidden: a part begins with a dot, or is macOS's `__MACOSX`."""
    parts = (part for part in name.split("/") if part not in (".", ".."))
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _list_remote(filesystem: pafs.FileSystem, root: str) -> Iterator[tuple[str, int | None]]:
    """(name, bytes) of all files below a folder of an object store."""
    for item in filesystem.get_file_info(pafs.FileSelector(root, recursive=True)):
        if item.type == pafs.FileType.File:
            yield item.path[len(root) :].lstrip("/"), int(item.size)


def _list_local(folder: str, above: str = "") -> Iterator[tuple[str, int | None]]:
    """(name, bytes) of all files below a local folder; bytes are None for what cannot be read: a
    broken link, a FIFO, a device.

    pyarrow omits broken links silently, and fails at a name that is not UTF-8.
    """
    for entry, found in _scan_folder(folder):
        name = f"{above}{entry.name}"
        if found is not None and stat.S_ISDIR(found.st_mode):
            if entry.is_symlink():
                _refuse_link_cycle(folder, entry)
            yield from _list_local(entry.path, f"{name}/")
        else:
            regular = found is not None and stat.S_ISREG(found.st_mode)
            yield name, found.st_size if found is not None and regular else None


def _refuse_link_cycle(folder: str, entry: os.DirEntry[str]) -> None:
    """Raise StageError for a link to a folder above it, whose files would be listed repeatedly."""
    if f"{os.path.realpath(folder)}/".startswith(f"{os.path.realpath(entry.path)}/"):
        raise StageError(
            f"{folder}/{_printable(entry.name)} links to a folder that contains it; remove it"
        )


def _local_folders(root: str) -> Iterator[str]:
    for entry, found in _scan_folder(root):
        if is_hidden(entry.name):
            continue
        if found is None:
            raise _no_file(root, entry.name)
        if stat.S_ISDIR(found.st_mode):
            yield entry.name


def _scan_folder(folder: str) -> Iterator[tuple[os.DirEntry[str], os.stat_result | None]]:
    """The entries of a local folder and their stat, links followed; None for a broken link."""
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                found = entry.stat()
            except OSError as error:
                if error.errno not in _NO_FILE:
                    raise
                found = None
            yield entry, found


def _no_file(root: str, name: str) -> StageError:
    there = os.path.exists(f"{root}/{name}")
    what = (
        "a FIFO, a device or a socket; remove it" if there else "a broken link; repair or remove it"
    )
    return StageError(f"{root}/{_printable(name)} is {what}")


def _check_utf8(root: str, name: str) -> str:
    """The name; StageError when it is not UTF-8, which keys must be."""
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
    filesystem, root = _open_folder(Folder.of(path))
    info = _file_info(filesystem, root, path)
    return filesystem, root if info.type == pafs.FileType.File else f"{root}/{name}"


@contextmanager
def stream(path: str, name: str) -> Iterator[Any]:
    """A file as a stream of bytes, decompressed if its name ends in .gz or .tgz.

    Raises StageError, also while the block reads, for a compressed file that is not valid gzip or
    grows too much (`jobs.storage.bounded`).
    """
    filesystem, full = locate(path, name)
    compression = "gzip" if name.endswith((".gz", ".tgz")) else None
    with filesystem.open_input_stream(full, compression=compression, buffer_size=BUFFER) as opened:
        try:
            if compression is None:
                yield opened
            else:
                yield BoundedStream(opened, int(filesystem.get_file_info(full).size))
        except TooLargeError as error:
            raise StageError(
                f"{full} is refused: {error}; if its content is right, decompress it yourself"
            ) from None
        except OSError as error:
            if compression is None or not is_damage(error):
                raise
            raise StageError(
                f"{full} is not a gzip file, or is damaged ({error}); download it again, or rename "
                f"it if it is not compressed"
            ) from None


def is_damage(error: OSError) -> bool:
    """Whether pyarrow failed because of a file's bytes, not because of a disk or a bucket."""
    return error.errno is None and not re.search("AWS Error|google::cloud", str(error))


def why_no_content(root: str, name: str, fault: str | None) -> str:
    """Words on a file that gave no bytes, for a message: the path tried."""
    where = f"{root}/{name}"
    if fault == "not_a_file":
        return f"{where} is a FIFO, a device, a socket or a folder"
    if fault == "too_large":
        return f"{where} has more than {IMAGE_BYTES >> 30} GB"
    hint = "; its path has back-slashes: write `/`" if "\\" in name else ""
    return f"no file at {where}{hint}"


def contents(path: str, names: Iterable[str | None]) -> Iterator[Content]:
    """The bytes of small files, in order; none for a file that does not exist and for no name.

    Reads only regular files of at most IMAGE_BYTES. Several files are requested from an object
    store at a time, because of its latency.
    """
    folder = Folder.of(path)
    if folder.is_local:
        root = folder.local_path()
        yield from (_read_local(root, name) for name in names)
        return
    filesystem, full = _open_folder(folder)

    def read(name: str | None) -> Content:
        if name is None:
            return Content(None)
        try:
            with filesystem.open_input_stream(f"{full}/{name}", compression=None) as opened:
                pieces, left = [], IMAGE_BYTES
                while piece := opened.read(BUFFER):
                    pieces.append(bytes(piece))
                    left -= len(piece)
                    if left < 0:
                        return Content(None, "too_large")
                return Content(b"".join(pieces))
        except FileNotFoundError:
            return Content(None)

    with ThreadPoolExecutor(REQUESTS) as pool:
        yield from pool.map(read, names)


def text(path: str) -> str:
    """The content of a text file; StageError when it is absent, a folder or not UTF-8."""
    filesystem, root = _open_folder(Folder.of(path))
    info = filesystem.get_file_info(root)
    if info.type == pafs.FileType.Directory:
        raise StageError(f"{path} is a folder; name a file in it")
    _require_regular(info, path)
    if (info.size or 0) > TEXT_BYTES:
        raise StageError(f"{path} has {info.size:,} bytes, too many for a list; correct its path")
    try:
        with filesystem.open_input_stream(root) as opened:  # decompressed, by its extension
            data = BoundedStream(opened, int(info.size or 0)).read()
        if b"\0" not in data:
            return data.decode("utf-8-sig")
        words = other_format(data[:512])
    except FileNotFoundError:
        raise StageError(f"{path} does not exist; correct its path") from None
    except TooLargeError as error:
        raise StageError(f"{path} is refused: {error}; correct its path") from None
    except OSError as error:
        if not is_damage(error):
            raise
        raise StageError(
            f"{path} cannot be decompressed ({error}); download it again, or rename it if it is "
            f"not compressed"
        ) from None
    except UnicodeDecodeError:
        words = other_format(data[:512])
    other = "is not UTF-8 text; convert it from its own encoding (`iconv -f LATIN1 -t UTF-8`, say)"
    raise StageError(f"{path} {words or other}")


def _read_local(root: Path, name: str | None) -> Content:
    if name is None or "\0" in name:  # no file name contains a null character
        return Content(None)
    try:
        # Not blocking, because to open a FIFO waits for its writer.
        with open(root / name, "rb", opener=_open_unblocked, buffering=0) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                return Content(None, "not_a_file")
            if found.st_size > IMAGE_BYTES:
                return Content(None, "too_large")
            return Content(file.read(found.st_size))
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            return Content(None, "not_a_file")
        if error.errno not in _NO_FILE:
            raise
        return Content(None)


def _open_unblocked(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _open_folder(folder: Folder) -> tuple[pafs.FileSystem, str]:
    try:
        return folder.open()
    except (OSError, ValueError) as error:
        raise StageError(f"{folder.uri} cannot be opened ({error}); correct its path") from error


def _require_regular(info: Any, path: str) -> None:
    if info.type == pafs.FileType.Unknown:
        raise StageError(f"{path} is a FIFO, a device or a socket; name a file or a folder")


def _file_info(filesystem: Any, root: str, path: str, folder: bool = False) -> Any:
    info = filesystem.get_file_info(root)
    _require_regular(info, path)
    if info.type == pafs.FileType.NotFound:
        raise StageError(f"{path} does not exist; correct the reader's path")
    if folder and info.type != pafs.FileType.Directory:
        raise StageError(f"{path} is not a folder; this reader needs one")
    return info

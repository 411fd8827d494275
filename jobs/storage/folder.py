"""A folder on any filesystem that pyarrow supports: local, s3:// or gs://.

A `Folder` is a picklable address; the process that uses it opens it. Names below it are relative
and use forward slashes. Writing a file is atomic: on a local disk by a rename, in an object store
by the PUT. Nothing here knows of steps or manifests: a subclass that knows what the files should be
overrides `check`, which every way of reading a file calls first.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import threading
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pydantic_core import to_json

from jobs.storage import s3
from jobs.storage.bounded import require_regular

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    import pyarrow.fs as pafs

HASH_CHUNK = 8 << 20  # bytes read at once
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")  # a local path may have :// further on

Stamp = tuple[int, ...]
"""What changes when a file is written: its size and times; on a local disk its inode too."""

_HASHED: dict[str, tuple[Stamp, str]] = {}  # of this process: file -> stamp and sha256 then
_LOCKS: dict[str, threading.Lock] = {}


class AlteredError(ValueError):
    """A file is not the one that was expected. The message says how it differs."""


@dataclass(frozen=True)
class Folder:
    """A folder, by absolute local path or URI."""

    uri: str

    @staticmethod
    def of(where: str | os.PathLike[str]) -> Folder:
        """The folder that a user named: a URI stays as it is, a local path becomes absolute."""
        text = os.fspath(where)
        if text.startswith("file://"):
            text = urllib.parse.unquote(text.removeprefix("file://"))
        if _SCHEME.match(text):
            return Folder(text.rstrip("/"))
        return Folder(str(Path(text).expanduser().absolute()))

    @staticmethod
    def holding(file: str) -> tuple[Folder, str]:
        """The folder of a file, given by its absolute path or URI, and the file's name in it."""
        path, mark, options = file.partition("?") if _SCHEME.match(file) else (file, "", "")
        folder, _, name = path.rpartition("/")
        return Folder(f"{folder or '/'}{mark}{options}"), name

    @property
    def is_local(self) -> bool:
        """Whether this folder is on a filesystem of this machine."""
        return _SCHEME.match(self.uri) is None

    def __truediv__(self, name: str) -> Folder:
        if self.is_local:
            return Folder(f"{self.uri.rstrip('/')}/{name}")
        path, mark, options = self.uri.partition("?")
        return Folder(f"{path.rstrip('/')}/{name}{mark}{options}")

    def open(self) -> tuple[pafs.FileSystem, str]:
        """The pyarrow filesystem and the path within it.

        `s3://bucket/folder?endpoint_override=http://host:port&region=...` names an S3 store other
        than Amazon's. Raises ValueError for other options and for credentials in the URI.
        """
        import pyarrow.fs as pafs

        if self.is_local:
            return pafs.LocalFileSystem(), self.uri
        if self.uri.startswith("s3://"):
            return s3.open_s3(self.uri)
        if self.uri.startswith(("gs://", "gcs://")):
            return s3.open_gs(self.uri)
        filesystem, path = pafs.FileSystem.from_uri(self.uri)
        return filesystem, path

    @contextmanager
    def _open_with_warning(self) -> Iterator[tuple[pafs.FileSystem, str]]:
        """As `open`; logs a warning while an object store does not answer."""
        if self.is_local:
            yield self.open()
        else:
            with s3.warn_when_slow(self.uri):
                yield self.open()

    def local_path(self) -> Path:
        """This folder as a path; ValueError when it is in an object store."""
        if not self.is_local:
            raise ValueError(f"{self.uri} is not on a local filesystem")
        return Path(self.uri)

    # -- reading ---------------------------------------------------------------------------------

    def check(self, name: str) -> None:
        """Called before a file is read. Does nothing here; see `jobs.committed.Committed`."""

    def check_bytes(self, name: str, data: bytes) -> None:
        """Called with the whole content of a file that has just been read. Does nothing here."""

    def input_file(self, name: str, *, checked: bool = True) -> pa.NativeFile:
        """A file opened for random access; FileNotFoundError when it does not exist.

        `checked=False` is for a reader that checks what it reads by itself.
        """
        if checked:
            self.check(name)
        filesystem, path = self.open()
        return filesystem.open_input_file(f"{path}/{name}")

    def expect(self, name: str, sha256: str) -> None:
        """Raise AlteredError if a file has another sha256, FileNotFoundError if there is none.

        A process hashes a file once, and again when its stamp has changed.
        """
        where = (self / name).uri
        with _LOCKS.setdefault(where, threading.Lock()):
            stamp = self.stamp(name)
            hashed, found = _HASHED.get(where, (None, ""))
            if hashed != stamp:
                found = self.sha256(name)
                _HASHED[where] = stamp, found
        _compare(found, sha256)

    def read_expected(self, name: str, sha256: str) -> bytes:
        """The whole content of a file; raises as `expect` does. Hashes what it has read, once."""
        data = self.read_bytes(name)
        _compare(hashlib.sha256(data).hexdigest(), sha256)
        return data

    def stamp(self, name: str) -> Stamp:
        """What changes when the file is written; FileNotFoundError when it does not exist."""
        if self.is_local:
            found = os.stat(f"{self.uri}/{name}")
            return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
        import pyarrow.fs as pafs

        with self._open_with_warning() as (filesystem, path):
            info = filesystem.get_file_info(f"{path}/{name}")
        if info.type != pafs.FileType.File:
            raise FileNotFoundError((self / name).uri)
        return info.size, info.mtime_ns

    def exists(self, name: str) -> bool:
        """Whether a file or folder of that name exists here."""
        import pyarrow.fs as pafs

        with self._open_with_warning() as (filesystem, path):
            info = filesystem.get_file_info(f"{path}/{name}")
        return bool(info.type != pafs.FileType.NotFound)

    def require_file(self, name: str) -> None:
        """Raise OSError for a local FIFO, device or socket: reading it may never end."""
        if self.is_local:
            require_regular(f"{self.uri}/{name}")

    def files(self) -> Iterator[tuple[str, int]]:
        """Every file below as (relative name, bytes), sorted; none if the folder does not exist."""
        import pyarrow.fs as pafs

        with self._open_with_warning() as (filesystem, path):
            selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
            found = [
                (info.path[len(path) :].lstrip("/"), int(info.size))
                for info in filesystem.get_file_info(selector)
                if info.type == pafs.FileType.File
            ]
        yield from sorted(found)

    def read_bytes(self, name: str) -> bytes:
        """The whole content of a file; FileNotFoundError when it does not exist."""
        if self.is_local:  # takes a tenth of pyarrow's time over 50,000 manifests
            require_regular(f"{self.uri}/{name}")
            with open(f"{self.uri}/{name}", "rb") as file:
                data = file.read()
        else:
            with (
                self._open_with_warning() as (filesystem, path),
                filesystem.open_input_stream(f"{path}/{name}", compression=None) as stream,
            ):
                data = bytes(stream.read())
        self.check_bytes(name, data)
        return data

    def sha256(self, name: str) -> str:
        """A file's sha256 in hex, read in chunks; FileNotFoundError when it does not exist."""
        digest = hashlib.sha256()
        self.require_file(name)
        filesystem, path = self.open()
        with filesystem.open_input_stream(f"{path}/{name}", compression=None) as stream:
            while chunk := stream.read(HASH_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def read_json(self, name: str) -> Any:
        """The value of a JSON file."""
        return json.loads(self.read_bytes(name))

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """One Parquet file as a table (all columns, or the named ones)."""
        import pyarrow.parquet as pq

        with self.input_file(name) as source:
            return pq.ParquetFile(source).read(columns=columns)

    def read_some(
        self, name: str, column: str, wanted: npt.NDArray[np.bool_]
    ) -> Iterator[pa.ChunkedArray]:
        """The values of a Parquet file's column where `wanted` ([rows]) is true, by row group.

        Row groups without a wanted row are not read.
        """
        import pyarrow.parquet as pq

        with self.input_file(name) as source:
            file = pq.ParquetFile(source)
            start = 0
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                here = wanted[start:stop]
                start = stop
                if here.all():
                    yield file.read_row_group(group, [column])[column]
                elif here.any():
                    yield file.read_row_group(group, [column])[column].filter(here)

    # -- writing ---------------------------------------------------------------------------------

    def write_bytes(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write a file, whole or not at all; missing folders are created.

        `durable=False` does not wait for the disk: for files that are useless after a power cut.
        """
        if self.is_local:
            with self._rename_at_end(name, durable=durable) as partial:
                partial.write_bytes(data)
        else:
            with (
                self._open_with_warning() as (filesystem, path),
                filesystem.open_output_stream(f"{path}/{name}", compression=None) as stream,
            ):
                stream.write(data)

    @contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """A local path to write a file to that need not fit in memory.

        When the block ends without an error, the file appears here, whole.
        """
        if self.is_local:
            with self._rename_at_end(name, durable=True) as partial:
                yield partial
            return
        with tempfile.TemporaryDirectory() as folder:
            partial = Path(folder) / "file"
            yield partial
            with (
                self._open_with_warning() as (filesystem, path),
                partial.open("rb") as written,
                filesystem.open_output_stream(f"{path}/{name}", compression=None) as stream,
            ):
                while chunk := written.read(HASH_CHUNK):
                    stream.write(chunk)

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A file of any size to write from start to end; it appears whole or not at all.

        The write does not wait for the disk: readers of such a file compare its sha256.
        """
        if self.is_local:
            with self._rename_at_end(name, durable=False) as partial, partial.open("wb") as file:
                yield file
            return
        filesystem, path = self.open()
        with filesystem.open_output_stream(f"{path}/{name}") as remote:
            yield remote

    @contextmanager
    def opening(self, name: str) -> Iterator[pa.NativeFile]:
        """A file for random access: memory-mapped when local, else read by byte ranges."""
        import pyarrow as pa

        if self.is_local:
            self.check(name)
            with pa.memory_map(f"{self.uri}/{name}") as source:
                yield source
            return
        with self.input_file(name) as source:
            yield source

    @contextmanager
    def _rename_at_end(self, name: str, *, durable: bool) -> Iterator[Path]:
        """A temporary path in this folder; renamed to `name` when the block ends without error."""
        target = f"{self.uri}/{name}"
        partial = Path(f"{target}.{uuid.uuid4().hex[:8]}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            if durable:
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file with sorted keys: equal values give equal bytes."""
        text = json.dumps(value, sort_keys=True, allow_nan=False)
        # Indenting by `json` takes ten times as long as this round trip through `to_json`.
        self.write_bytes(name, to_json(json.loads(text), indent=2) + b"\n")

    def write_table(self, name: str, table: pa.Table, **options: Any) -> None:
        """Write a Parquet file (options go to `pyarrow.parquet.write_table`)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **options)
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def delete(self, name: str = "") -> None:
        """Remove a file or folder below this one (or this folder); no error when it is absent."""
        import pyarrow.fs as pafs

        with self._open_with_warning() as (filesystem, path):
            target = f"{path}/{name}" if name else path
            info = filesystem.get_file_info(target)
            if info.type == pafs.FileType.Directory:
                filesystem.delete_dir(target)
            elif info.type == pafs.FileType.File:
                filesystem.delete_file(target)


def _compare(found: str, expected: str) -> None:
    if found != expected:
        raise AlteredError(f"sha256 {found[:12]}... instead of {expected[:12]}...")

"""A folder on any filesystem pyarrow knows: local, s3:// or gs://.

A `Folder` is a picklable address; it is opened where it is used. Names below it are relative and
use forward slashes. Writing a file is atomic: on a local disk it appears by rename, in an object
store by the PUT itself. Nothing here knows of steps or manifests.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pydantic_core import to_json

from jobs.storage import s3

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    import pyarrow.fs as pafs

HASH_CHUNK = 8 << 20  # bytes read at once


@dataclass(frozen=True)
class Folder:
    """A folder, by absolute local path or URI."""

    uri: str

    @staticmethod
    def of(where: str | os.PathLike[str]) -> Folder:
        """The place a user wrote: a URI is kept, a local path made absolute."""
        text = os.fspath(where)
        if text.startswith("file://"):
            text = text.removeprefix("file://")
        if "://" in text:
            return Folder(text.rstrip("/"))
        return Folder(str(Path(text).expanduser().absolute()))

    @staticmethod
    def holding(file: str) -> tuple[Folder, str]:
        """The folder of a file, by its absolute path or URI, and the file's name in it."""
        path, mark, options = file.partition("?") if "://" in file else (file, "", "")
        folder, _, name = path.rpartition("/")
        return Folder(f"{folder or '/'}{mark}{options}"), name

    @property
    def is_local(self) -> bool:
        """Whether this is a folder of this machine's own file tree."""
        return "://" not in self.uri

    def __truediv__(self, name: str) -> Folder:
        if self.is_local:
            return Folder(f"{self.uri.rstrip('/')}/{name}")
        path, mark, options = self.uri.partition("?")
        return Folder(f"{path.rstrip('/')}/{name}{mark}{options}")

    def open(self) -> tuple[pafs.FileSystem, str]:
        """The pyarrow filesystem and the path within it.

        `s3://bucket/folder?endpoint_override=http://host:port&region=...` names another S3 store
        than Amazon's. Raises ValueError for options and credentials that may not stand there.
        """
        import pyarrow.fs as pafs

        if self.is_local:
            return pafs.LocalFileSystem(), self.uri
        if self.uri.startswith("s3://"):
            return s3.open_s3(self.uri)
        filesystem, path = pafs.FileSystem.from_uri(self.uri)
        return filesystem, path

    @contextmanager
    def _asked(self) -> Iterator[tuple[pafs.FileSystem, str]]:
        """As `open`, for requests that should not go unanswered in silence."""
        if self.is_local:
            yield self.open()
        else:
            with s3.patience(self.uri):
                yield self.open()

    def local_path(self) -> Path:
        """This folder as a path; ValueError when it lies in an object store."""
        if not self.is_local:
            raise ValueError(f"{self.uri} is not on a local filesystem")
        return Path(self.uri)

    # -- reading ---------------------------------------------------------------------------------

    def exists(self, name: str) -> bool:
        """Whether a file or folder of that name is here."""
        import pyarrow.fs as pafs

        with self._asked() as (filesystem, path):
            info = filesystem.get_file_info(f"{path}/{name}")
        return bool(info.type != pafs.FileType.NotFound)

    def files(self) -> Iterator[tuple[str, int]]:
        """Every file below as (relative name, bytes), sorted; none if the folder is absent."""
        import pyarrow.fs as pafs

        with self._asked() as (filesystem, path):
            selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
            found = [
                (info.path[len(path) :].lstrip("/"), int(info.size))
                for info in filesystem.get_file_info(selector)
                if info.type == pafs.FileType.File
            ]
        yield from sorted(found)

    def read_bytes(self, name: str) -> bytes:
        """The whole content of a file; FileNotFoundError when it is not here."""
        if self.is_local:  # a tenth of the time, over 50,000 manifests
            with open(f"{self.uri}/{name}", "rb") as file:
                return file.read()
        with (
            self._asked() as (filesystem, path),
            filesystem.open_input_stream(f"{path}/{name}", compression=None) as stream,
        ):
            return bytes(stream.read())

    def sha256(self, name: str) -> str:
        """A file's sha256 in hex, read in chunks; FileNotFoundError when it is not here."""
        digest = hashlib.sha256()
        filesystem, path = self.open()
        with filesystem.open_input_stream(f"{path}/{name}", compression=None) as stream:
            while chunk := stream.read(HASH_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def read_json(self, name: str) -> Any:
        """A JSON file's value."""
        return json.loads(self.read_bytes(name))

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """One Parquet file as a table (all columns, or those named)."""
        import pyarrow.parquet as pq

        filesystem, path = self.open()
        with filesystem.open_input_file(f"{path}/{name}") as source:
            return pq.ParquetFile(source).read(columns=columns)

    def read_some(
        self, name: str, column: str, wanted: npt.NDArray[np.bool_]
    ) -> Iterator[pa.ChunkedArray]:
        """A Parquet file's column where `wanted` ([rows]), a row group at a time.

        Groups of which nothing is wanted are not read.
        """
        import pyarrow.parquet as pq

        filesystem, path = self.open()
        with filesystem.open_input_file(f"{path}/{name}") as source:
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
        """Put a file here, whole or not at all; folders are made as needed.

        `durable=False` spares the wait for the disk, for what means nothing after a power cut.
        """
        if self.is_local:
            with self._appearing(name, durable=durable) as partial:
                partial.write_bytes(data)
        else:
            with (
                self._asked() as (filesystem, path),
                filesystem.open_output_stream(f"{path}/{name}", compression=None) as stream,
            ):
                stream.write(data)

    @contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """A local path to write to; what is there as the block ends is put here, whole or not at
        all, so that a file need not fit in memory.
        """
        if self.is_local:
            with self._appearing(name, durable=True) as partial:
                yield partial
            return
        with tempfile.TemporaryDirectory() as folder:
            partial = Path(folder) / "file"
            yield partial
            with (
                self._asked() as (filesystem, path),
                partial.open("rb") as written,
                filesystem.open_output_stream(f"{path}/{name}", compression=None) as stream,
            ):
                while chunk := written.read(HASH_CHUNK):
                    stream.write(chunk)

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A file of any size to write from start to end; it is here whole or not at all.

        It is not forced to the disk: whoever reads such a file compares its sha256.
        """
        if self.is_local:
            with self._appearing(name, durable=False) as partial, partial.open("wb") as file:
                yield file
            return
        filesystem, path = self.open()
        with filesystem.open_output_stream(f"{path}/{name}") as remote:
            yield remote

    @contextmanager
    def opening(self, name: str) -> Iterator[pa.NativeFile]:
        """A file to read anywhere in: mapped where it is local, read by ranges where it is not."""
        import pyarrow as pa

        if self.is_local:
            with pa.memory_map(f"{self.uri}/{name}") as source:
                yield source
            return
        filesystem, path = self.open()
        with filesystem.open_input_file(f"{path}/{name}") as source:
            yield source

    @contextmanager
    def _appearing(self, name: str, *, durable: bool) -> Iterator[Path]:
        """A path in this folder, of the file's own name once the block has ended well."""
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
        """Put a JSON file here, keys sorted, so that equal values are equal bytes."""
        text = json.dumps(value, sort_keys=True, allow_nan=False)
        # json writes indents ten times slower than it writes, reads and has them written elsewhere
        self.write_bytes(name, to_json(json.loads(text), indent=2) + b"\n")

    def write_table(self, name: str, table: pa.Table, **options: Any) -> None:
        """Put a Parquet file here (options go to `pyarrow.parquet.write_table`)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **options)
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def delete(self, name: str = "") -> None:
        """Remove a file or folder below this one (or this folder itself); silent when absent."""
        import pyarrow.fs as pafs

        with self._asked() as (filesystem, path):
            target = f"{path}/{name}" if name else path
            info = filesystem.get_file_info(target)
            if info.type == pafs.FileType.Directory:
                filesystem.delete_dir(target)
            elif info.type == pafs.FileType.File:
                filesystem.delete_file(target)

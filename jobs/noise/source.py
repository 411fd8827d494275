"""The file that a noise names: read as a table or as bytes, and its digest.

Small files (groupings, matrices) are *digested* when an experiment is planned: their sha256 becomes
part of the noise, so an edited file is drift. Large tables are streamed; their sha256 is recorded
with the overlay, and checked if the experiment file gives one. Nothing here is unpickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv as arrow_csv

from jobs.contract import StageError
from jobs.noise.spec import Groups, Noise, Transition
from jobs.storage.bounded import BoundedStream, TooLargeError
from jobs.storage.folder import Folder


@dataclass(frozen=True)
class Source:
    """One file that a noise names."""

    path: str  # absolute, or a URI
    sha256: str | None  # of its expected content, if known

    @property
    def name(self) -> str:
        """The file's name in its folder; the extension gives its format."""
        return Folder.holding(self.path)[1]

    def bytes(self) -> bytes:
        """The whole file; StageError when it is absent or its sha256 is not the expected one."""
        folder, name = Folder.holding(self.path)
        try:
            data = folder.read_bytes(name)
        except OSError as error:
            raise self._unreadable(error) from None
        self._check_digest(hashlib.sha256(data).hexdigest())
        return data

    def digest(self) -> str:
        """The sha256 of the file, read in chunks; StageError as for `bytes`."""
        folder, name = Folder.holding(self.path)
        try:
            found = folder.sha256(name)
        except OSError as error:
            raise self._unreadable(error) from None
        self._check_digest(found)
        return found

    def table(self, columns: Sequence[str]) -> pa.Table:
        """The named columns of a Parquet file, or of a CSV file (maybe compressed), as bytes.

        Types are not inferred from a CSV: the key 000010021 is not 10021. Raises StageError when
        the file is not a table or lacks a column.
        """
        if self.name.endswith(".parquet"):
            with self._parquet(columns) as parquet:
                return parquet.read(columns=list(columns))
        folder, name = Folder.holding(self.path)
        filesystem, path = folder.open()
        options = arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.binary()),
            strings_can_be_null=True,
            null_values=[""],
        )
        with self._explain_errors("CSV file"):
            folder.require_file(name)
            size = filesystem.get_file_info(f"{path}/{name}").size or 0
            with filesystem.open_input_stream(f"{path}/{name}") as stream:
                bounded = BoundedStream(stream, int(size))  # it may be compressed
                table = arrow_csv.read_csv(bounded, convert_options=options)
            self._check_columns(columns, table.column_names)
            return table.select(list(columns))

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """The named columns of a Parquet file, some rows at a time; StageError as for `table`."""
        with self._parquet(columns) as parquet:
            yield from parquet.iter_batches(batch_size=rows, columns=list(columns))

    @contextmanager
    def _parquet(self, columns: Sequence[str]) -> Iterator[pq.ParquetFile]:
        folder, name = Folder.holding(self.path)
        filesystem, path = folder.open()
        with self._explain_errors("Parquet file"):
            folder.require_file(name)
        with (
            self._explain_errors("Parquet file"),
            filesystem.open_input_file(f"{path}/{name}") as stream,
        ):
            parquet = pq.ParquetFile(stream)
            self._check_columns(columns, parquet.schema_arrow.names)
            yield parquet

    @contextmanager
    def _explain_errors(self, what: str) -> Iterator[None]:
        """Turn Arrow's errors into a StageError: the file is damaged or of another format."""
        try:
            yield
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and (error.errno or isinstance(error, TooLargeError)):
                raise self._unreadable(error) from None
            raise StageError(
                f"{self.path} is not a readable {what} ({one_line(error)}); restore it, or "
                f"correct noise.file"
            ) from None

    def _check_columns(self, columns: Sequence[str], found: Sequence[str]) -> None:
        for column in columns:
            if column not in found:
                raise StageError(
                    f"{self.path} has no column {column!r}; it has {', '.join(found)}: name the "
                    f"right one in noise.key or noise.column"
                )
            if found.count(column) > 1:
                raise StageError(f"{self.path} has two columns {column!r}; give each its own name")

    def _check_digest(self, found: str) -> None:
        if self.sha256 is not None and found != self.sha256:
            raise StageError(
                f"{self.path} has the sha256 {found[:12]}..., but noise.sha256 is "
                f"{self.sha256[:12]}...; restore the file, or leave out noise.sha256 and give the "
                f"noise a new name"
            )

    def _unreadable(self, error: OSError) -> StageError:
        return StageError(
            f"{self.path} cannot be read ({error.strerror or error}); correct noise.file"
        )


def one_line(error: Exception) -> str:
    """A library's message on one line, of at most 120 characters."""
    return " ".join(str(error).split())[:120]


def digested(noise: Noise) -> Noise:
    """The noise with an absolute path and, for a small file, its sha256.

    Raises StageError when a small file cannot be read or does not have the noise's `sha256`.
    """
    noise = noise.with_absolute_paths()
    if isinstance(noise, (Groups, Transition)):
        return noise.model_copy(update={"sha256": source_of(noise).digest()})
    return noise


def source_of(noise: Noise) -> Source:
    """The file that a noise names; ValueError when it names none."""
    file = getattr(noise, "file", None)
    if file is None:
        raise ValueError(f"noise of kind {noise.kind} names no file")
    return Source(Folder.of(file).uri, getattr(noise, "sha256", None))

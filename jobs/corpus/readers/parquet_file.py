"""One Parquet file of a source: opened, and read some rows at a time.

Takes a source's path and a file's name; gives the opened file and its tables. Raises StageError for
a file that is not Parquet or is damaged; a disk's own error is passed on. Knows no column's role.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.contract import StageError
from jobs.corpus.readers.source import is_damage, locate


@contextmanager
def open_file(path: str, name: str) -> Iterator[tuple[pq.ParquetFile, str]]:
    """A file of a source and its full path, for messages."""
    filesystem, full = locate(path, name)
    with filesystem.open_input_file(full) as source:
        try:
            opened = pq.ParquetFile(source)
        except (pa.ArrowInvalid, OSError) as error:
            raise _damaged(full, error) from error
        yield opened, full


def tables(
    opened: pq.ParquetFile,
    full: str,
    rows: int,
    columns: Sequence[str],
    groups: Sequence[int] | None = None,
) -> Iterator[pa.Table]:
    """Columns of a file, or of some of its row groups, `rows` rows at a time."""
    batches = opened.iter_batches(rows, row_groups=groups, columns=list(columns))
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowInvalid, OSError) as error:
            raise _damaged(full, error) from error
        if batch is None:
            return
        yield pa.Table.from_batches([batch])


def _damaged(file: str, error: Exception) -> Exception:
    """The error to raise for a file that cannot be read; a disk's own error is passed on."""
    if isinstance(error, OSError) and not is_damage(error):
        return error
    line = " ".join(str(error).split())
    return StageError(f"{file} is not a Parquet file, or is damaged ({line}); download it again")

"""Whether a file of given features has the columns that its step reads, known from its schema.

Takes a `GivenStep`; gives nothing, or raises StageError with the column. Reads no row.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.contract import StageError
from jobs.features.spec import GivenStep
from jobs.storage.folder import Folder


def check_columns(step: GivenStep, found: Sequence[str]) -> list[str]:
    """The columns that the step names; StageError if the file lacks one."""
    named = [c for c in (step.key, step.vector, step.label, step.split) if c is not None]
    for column in named:
        if column not in found:
            raise StageError(
                f"{step.file} has no column {column!r}; it has {', '.join(found)}: name "
                f"the right one in the encoder's key, vector, label or split"
            )
    return named


def check_file(step: GivenStep) -> None:
    """Raise StageError if the file is no Parquet file or lacks a column."""
    folder, name = Folder.holding(step.file)
    filesystem, path = folder.open()
    try:
        with filesystem.open_input_file(f"{path}/{name}") as source:
            check_columns(step, pq.read_schema(source).names)
    except pa.ArrowException as error:
        raise no_parquet(step.file, error) from None


def no_parquet(file: str, error: Exception) -> StageError:
    """What to say of a file that is no Parquet file."""
    return StageError(f"{file} is no Parquet file ({error}); convert it")

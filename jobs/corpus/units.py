"""Units of work over a finished corpus: some rows of one shard each.

Takes a corpus's index; gives the units that a stage does one by one and keeps in its scratch, so
that an interrupted step continues with those that are missing. Reads no shard.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jobs.corpus.shards import Index

UNIT_ROWS = 2_048  # rows in a unit: enough for a task, and little to redo after an interruption


@dataclass(frozen=True)
class Unit:
    """Rows [start, stop) of one shard."""

    part: str
    file: str
    start: int
    stop: int
    sha256: str  # the shard's

    @property
    def name(self) -> str:
        """The file that holds what was made of the unit until the step is finished."""
        return f"{self.file.removesuffix('.parquet')}-{self.start:09d}.parquet"

    @property
    def rows(self) -> str:
        """The rows and their shard's sha256, which changes when the shard is built again."""
        return f"{self.sha256} {self.start}-{self.stop}"


def units_of(index: Index, parts: Iterable[str], rows: int = UNIT_ROWS) -> list[Unit]:
    """The units of these parts of a corpus, in training order, with at most `rows` rows each."""
    return [
        Unit(part, file.file, start, min(start + rows, file.rows), file.sha256)
        for part in parts
        for file in index.parts[part]
        for start in range(0, file.rows, rows)
    ]

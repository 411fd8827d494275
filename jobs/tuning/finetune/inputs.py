"""Prepares a task's rows once, for a cell that trains the encoder.

Takes a corpus's folder and a task; gives the task's rows as the encoder's inputs, in memory, in the
order of their keys. `jobs.tuning.rows` selects the rows (classes, fraction), as it does for
features, so a cell that trains the encoder uses the same samples as a frozen cell. What an input is
only the encoder knows.

Only `TestInputs` reads the test part. It opens the part once, for a selected encoder and head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from jobs.contract import StageError
from jobs.corpus.shards import Index, read_part, read_rows
from jobs.encoders.encoder import Encoder
from jobs.encoders.interface import Prepared
from jobs.images.spec import Shift
from jobs.storage.folder import Folder
from jobs.tasks.spec import Task
from jobs.tuning.digest import digest_of
from jobs.tuning.rows import (
    PartName,
    Samples,
    TaskClasses,
    TaskRows,
    plain_rows,
    training_rows,
    without,
)
from jobs.tuning.target import Indices
from jobs.tuning.trained import Selected


@dataclass(frozen=True)
class Inputs:
    """The rows of a part that belong to a task, as an encoder's inputs."""

    rows: TaskRows
    prepared: Prepared

    @property
    def keys(self) -> pa.Array:
        """The samples' keys, [N]."""
        return self.rows.keys

    @property
    def labels(self) -> torch.Tensor:
        """Class indices of the task, int64 [N]."""
        return self.rows.labels

    @property
    def digest(self) -> str:
        """The digest (`jobs.tuning.digest`) of the inputs and labels."""
        words = np.frombuffer(b"".join(self.prepared.digests()), "<u4").reshape(-1, 4)
        return digest_of(words, self.labels.numpy())


@dataclass(frozen=True)
class Source:
    """A corpus, and the encoder that prepares its rows."""

    corpus: Folder
    encoder: Encoder
    threads: int = 1  # for preparing
    _read_parts: dict[PartName, tuple[Samples, Indices]] = field(default_factory=dict, init=False)

    def training_rows(
        self, task: Task, classes: TaskClasses, *, percent: float, seed: int
    ) -> TaskRows:
        """The training rows of a cell. Raises what `rows.training_rows` raises."""
        samples, _ = self._samples("train")
        return training_rows(samples, classes, task, percent=percent, seed=seed)

    def plain_rows(self, part: PartName, task: Task, classes: TaskClasses) -> TaskRows:
        """The rows of a validation or test part. Raises what `rows.plain_rows` raises."""
        samples, _ = self._samples(part)
        return plain_rows(samples, classes, task)

    def _samples(self, part: PartName) -> tuple[Samples, Indices]:
        """A part's samples sorted by key, and each sample's row in the corpus [N]; read once."""
        if part in self._read_parts:
            return self._read_parts[part]
        table = read_part(self.corpus, part, ["key", "label"])
        if len(table) == 0:
            raise StageError(
                f"{self.corpus.uri} has no row in its {part} part; build one with rows"
            )
        order = pc.sort_indices(table["key"])
        keys = pa.array(table["key"].take(order).to_pylist(), pa.string())
        own = table["label"].take(order)
        kind = np.float64 if pa.types.is_floating(own.type) else np.int64
        labels = own.to_numpy().astype(kind)
        self._read_parts[part] = Samples(keys, labels), order.to_numpy().astype(np.int64)
        return self._read_parts[part]

    def prepared(self, part: PartName, rows: TaskRows, shift: Shift | None = None) -> Inputs:
        """The rows as inputs, prepared shard by shard; `shift`: applied to each.

        Raises StageError when a row cannot be read, or when the inputs do not fit in memory.
        """
        _, corpus_rows = self._samples(part)
        numbers = corpus_rows[rows.indices]
        found = self.encoder.prepared(
            self._pieces(part, numbers), len(numbers), shift, self.threads, self.corpus.uri
        )
        return Inputs(rows, found)

    def _pieces(self, part: PartName, numbers: Indices) -> Iterator[tuple[Indices, pa.Table]]:
        """(positions in `numbers`, their rows of the corpus), shard by shard."""
        start = 0
        for file in Index.read(self.corpus).parts[part]:
            here = np.flatnonzero((numbers >= start) & (numbers < start + file.rows))
            within = numbers[here] - start
            start += file.rows
            if len(here):
                columns = ["key", *self.encoder.columns]
                table = read_rows(self.corpus, file.file, 0, file.rows, columns)
                yield here, table.take(pa.array(within))


class TestInputs:
    """The test part of a task, closed until an encoder and a head have been selected."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.reads = 0

    def open(
        self,
        selected: Selected,
        task: Task,
        classes: TaskClasses,
        left_out: pa.Array | None = None,
    ) -> Inputs:
        """Prepare the part for the head `selected`, but the keys in `left_out`.

        Raises StageError when called again.
        """
        where = self._source.corpus.uri
        if not selected.state:
            raise StageError(f"{where}: the test part was opened without a head")
        if self.reads:
            raise StageError(f"{where}: the test part of a cell is read only once")
        self.reads += 1
        rows = self._source.plain_rows("test", task, classes)
        if left_out is not None:
            rows = without(rows, left_out, task)
        return self._source.prepared("test", rows, task.shift)

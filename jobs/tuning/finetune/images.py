"""Decodes a task's images once, for a cell that trains the encoder.

Takes a corpus's folder and a task; gives the pixels of the task's rows in the encoder's input
format, in memory, in the order of their keys. `jobs.tuning.rows` selects the rows (classes,
fraction), as it does for features, so a cell that trains the encoder uses the same samples as a
frozen cell.

Only `TestImages` reads the test part. It opens the part once, for a selected encoder and head.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import torch

from jobs.contract import StageError
from jobs.corpus.shards import Index, read_part, read_rows
from jobs.images.shifts import draws
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

Prepare = Callable[[bytes, str, Shift | None, np.uint64 | None], torch.Tensor]
"""An encoder's own input preparation, see `Encoder.prepare`."""

_SHARE = 0.5  # of the free memory: the most that a part's pixels may take


@dataclass(frozen=True)
class Images:
    """The images of a part that belong to a task."""

    rows: TaskRows
    pixels: torch.Tensor  # uint8 [N, *input.shape]

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
        """The digest (`jobs.tuning.digest`) of the pixels and labels."""
        marks = [hashlib.blake2b(one.numpy().tobytes(), digest_size=16) for one in self.pixels]
        words = np.frombuffer(b"".join(mark.digest() for mark in marks), "<u4").reshape(-1, 4)
        return digest_of(words, self.labels.numpy())


@dataclass(frozen=True)
class Source:
    """A corpus, and how an encoder prepares its images."""

    corpus: Folder
    prepare: Prepare
    threads: int = 1  # for decoding
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
        labels = table["label"].take(order).to_numpy().astype(np.int64)
        self._read_parts[part] = Samples(keys, labels), order.to_numpy().astype(np.int64)
        return self._read_parts[part]

    def decoded(self, part: PartName, rows: TaskRows, shift: Shift | None = None) -> Images:
        """The rows' pixels, decoded shard by shard; `shift`: applied to each image.

        Raises StageError when an image cannot be decoded, or when the pixels do not fit in memory.
        """
        _, corpus_rows = self._samples(part)
        numbers = corpus_rows[rows.indices]
        pixels: torch.Tensor | None = None
        start = 0
        with ThreadPoolExecutor(self.threads) as pool:
            for file in Index.read(self.corpus).parts[part]:
                here = np.flatnonzero((numbers >= start) & (numbers < start + file.rows))
                within = numbers[here] - start
                start += file.rows
                if len(here) == 0:
                    continue
                table = read_rows(self.corpus, file.file, 0, file.rows, ["key", "image"])
                table = table.take(pa.array(within))
                drawn = draws(table["key"], shift) if shift else [None] * len(here)
                found = pool.map(
                    lambda data, key, draw: self.prepare(
                        data.as_py(), f"sample {key}", shift, draw
                    ),
                    table["image"],
                    table["key"].to_pylist(),
                    drawn,
                )
                for row, one in zip(here, found, strict=True):
                    if pixels is None:
                        pixels = self._allocate_pixels(len(numbers), one)
                    pixels[row] = one
        if pixels is None:
            raise AssertionError("a task's part has at least one row")
        return Images(rows, pixels)

    def _allocate_pixels(self, rows: int, one: torch.Tensor) -> torch.Tensor:
        needed, free = rows * one.numel(), psutil.virtual_memory().available
        if needed > _SHARE * free:
            raise StageError(
                f"{self.corpus.uri}: {rows:,} images of {tuple(one.shape)} need "
                f"{needed / 1e9:.1f} GB, and at most {_SHARE:.0%} of the {free / 1e9:.1f} GB of "
                f"free memory may be used; train on a smaller fraction, or on a larger machine"
            )
        return torch.empty(rows, *one.shape, dtype=torch.uint8)


class TestImages:
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
    ) -> Images:
        """Decode the part for the head `selected`, but the keys in `left_out`.

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
        return self._source.decoded("test", rows, task.shift)

"""A task's images as a cell that trains the encoder sees them: decoded once, cut to the task.

Takes a corpus's folder and a task; gives the rows' pixels as the encoder takes them, in memory, in
the order of their keys. Which rows a cell has (classes, fraction) is decided by the very functions
that cut features (`jobs.tuning.data`), on row numbers in the features' place: a cell that trains
the encoder has the samples that a frozen method's cell has.

Never reads the test part except through `TestImages`, which opens it once, for what was selected.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import psutil
import pyarrow as pa
import torch
from PIL import Image

from jobs.contract import StageError
from jobs.corpus.shards import Index, read_part, read_rows
from jobs.features.shifts import decode, draws, shifted
from jobs.features.spec import Shift
from jobs.place import Place
from jobs.tasks.spec import Task
from jobs.tuning import data

Prepare = Callable[[Image.Image], torch.Tensor]
"""An encoder's own input preparation, see `Encoder.prepare`."""

_SHARE = 0.5  # of the memory that is free, at most, for a part's pixels


@dataclass(frozen=True)
class Images:
    """Rows of a part that belong to a task."""

    rows: data.TaskRows  # keys and labels; in place of features, row numbers within the part
    pixels: torch.Tensor  # uint8 [N, C, S, S]

    @property
    def keys(self) -> pa.Array:
        """The samples' keys, [N]."""
        return self.rows.keys

    @property
    def labels(self) -> torch.Tensor:
        """Class indices of the task, int64 [N]."""
        return self.rows.rows.labels


@dataclass(frozen=True)
class Source:
    """Where a task's images come from, and how an encoder wants them."""

    corpus: Place
    prepare: Prepare
    threads: int = 1  # that decode

    def index(self) -> Index:
        """The corpus's index."""
        return Index.read(self.corpus)

    def training(self, task: Task, classes: data.ClassMap, *, percent: float, seed: int) -> Images:
        """The training rows of a cell; raises as `data.training_rows` does."""
        part = self._numbered("train")
        return self._pixels(
            "train", data.training_rows(part, classes, task, percent=percent, seed=seed), None
        )

    def plain(
        self,
        part: data.PartName,
        task: Task,
        classes: data.ClassMap,
        shift: Shift | None = None,
    ) -> Images:
        """A validation or test part's rows, shifted if asked; raises as `data.plain_rows` does."""
        return self._pixels(part, data.plain_rows(self._numbered(part), classes, task), shift)

    def _numbered(self, part: data.PartName) -> data.Part:
        """A part sorted by key, each row's number in training order standing for its features."""
        table = read_part(self.corpus, part, ["key", "label"])
        if len(table) == 0:
            raise StageError(f"{self.corpus.uri} has no row in its {part} part; build one that has")
        order = np.argsort(np.array(table["key"].to_pylist()), kind="stable")
        keys = pa.array(table["key"].to_pylist(), pa.string()).take(pa.array(order))
        labels = table["label"].to_numpy().astype(np.int64)[order]
        if len(order) >= 1 << 24:
            raise StageError(
                f"{self.corpus.uri}: {len(order):,} rows in the {part} part, and lora and ft take "
                f"fewer than {1 << 24:,}; use a smaller corpus"
            )
        numbers = order.astype(np.float32)[None, :, None]  # exact, as there are fewer than 2^24
        return data.Part(keys, labels, numbers, 0)

    def _pixels(self, part: str, rows: data.TaskRows, shift: Shift | None) -> Images:
        """Decode the rows, a shard at a time."""
        numbers = rows.rows.features.reshape(-1).numpy().astype(np.int64)
        pixels: torch.Tensor | None = None
        start = 0
        with ThreadPoolExecutor(self.threads) as pool:
            for file in self.index().parts[part]:
                here = np.flatnonzero((numbers >= start) & (numbers < start + file.rows))
                start += file.rows
                if len(here) == 0:
                    continue
                table = read_rows(self.corpus, file.file, 0, file.rows, ["key", "image"])
                table = table.take(pa.array(numbers[here] - (start - file.rows)))
                jobs = [
                    pool.submit(self._one, image.as_py(), key, shift, draw)
                    for image, key, draw in zip(
                        table["image"],
                        table["key"].to_pylist(),
                        draws(table["key"], shift) if shift else [None] * len(here),
                        strict=True,
                    )
                ]
                for row, job in zip(here, jobs, strict=True):
                    found = job.result()
                    if pixels is None:
                        pixels = self._room(len(numbers), found)
                    pixels[row] = found
        if pixels is None:
            raise AssertionError("a task's part has at least one row")
        return Images(rows, pixels)

    def _one(
        self, image: bytes, key: str, shift: Shift | None, draw: np.uint64 | None
    ) -> torch.Tensor:
        decoded = decode(image, key)
        if shift is not None and draw is not None:
            decoded = shifted(decoded, shift, draw)
        return self.prepare(decoded)

    def _room(self, rows: int, one: torch.Tensor) -> torch.Tensor:
        needed, free = rows * one.numel(), psutil.virtual_memory().available
        if needed > _SHARE * free:
            raise StageError(
                f"{self.corpus.uri}: {rows:,} images of {tuple(one.shape)} need "
                f"{needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; train on a smaller "
                f"fraction, or where there is more memory"
            )
        return torch.empty(rows, *one.shape, dtype=torch.uint8)


class TestImages:
    """The test part of a task, closed until an encoder and a head have been selected."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.reads = 0

    def open(self, selected: data.Selected, task: Task, classes: data.ClassMap) -> Images:
        """Decode the part for what was `selected`. Raises StageError the second time."""
        where = self._source.corpus.uri
        if not selected.state:
            raise StageError(f"{where}: the test part was asked for without a head")
        if self.reads:
            raise StageError(f"{where}: the test part of a cell is read only once")
        self.reads += 1
        return self._source.plain("test", task, classes, task.shift)

"""Read a part's rows when they are needed, segment by segment, and check every file first.

Takes a corpus's folder and its index; gives tables of rows, and images decoded on access. Compares
a file's sha256 with the index when the file is first read, and again whenever its size or times
change, so a change during a run is noticed. Caches a few segments for later
reads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from jobs.contract import StageError
from jobs.corpus.shards import INDEX, File, Index, build_again, read_part, read_rows
from jobs.images.pixels import or_grey, prepared
from jobs.images.spec import ImageInput
from jobs.pretrain.data.order import Rows, segments
from jobs.pretrain.data.part import Part
from jobs.storage.folder import AlteredError, Folder

COLUMNS = ("key", "image", "label", "caption")

_CHUNK = 16  # images that a thread decodes at a time


class Reader:
    """The rows of one part, by number. Safe in threads."""

    def __init__(self, corpus: Folder, files: Sequence[File], *, cached: int = 2) -> None:
        """`cached`: how many segments stay in memory for later calls."""
        self._corpus, self._files, self._cache_size = corpus, tuple(files), cached
        self._first, self._count = segments(files)
        self._file_first = np.cumsum([0, *(file.rows for file in files)])
        self._cached: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def segment_of(self, row: int) -> int:
        """The number of the segment that contains a row."""
        return int(np.searchsorted(self._first, row, side="right")) - 1

    def file_of(self, row: int) -> str:
        """The name of the shard that contains a row."""
        return self._files[int(np.searchsorted(self._file_first, row, side="right")) - 1].file

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows [start, stop), of one segment. StageError when its shard is missing or altered."""
        segment = self.segment_of(start)
        with self._lock:
            table = self._cached.get(segment)
        if table is None:
            table = self._read(segment)
        with self._lock:
            self._cached[segment] = table
            self._cached.move_to_end(segment)
            while len(self._cached) > self._cache_size:
                self._cached.popitem(last=False)
        return table.slice(start - int(self._first[segment]), stop - start)

    def _read(self, segment: int) -> pa.Table:
        first, count = int(self._first[segment]), int(self._count[segment])
        at = int(np.searchsorted(self._file_first, first, side="right")) - 1
        file, before = self._files[at], int(self._file_first[at])
        self._check(file)
        start = first - before
        return read_rows(self._corpus, file.file, start, start + count, COLUMNS)

    def _check(self, file: File) -> None:
        try:
            self._corpus.expect(file.file, file.sha256)
        except FileNotFoundError:
            raise StageError(
                f"shard {file.file} of {self._corpus.uri} is missing; {build_again(self._corpus)}"
            ) from None
        except AlteredError:
            raise StageError(
                f"shard {file.file} of {self._corpus.uri} is not the one that {INDEX} lists "
                f"(other sha256); {build_again(self._corpus)}"
            ) from None


class LazyImages:
    """Images of a part, decoded on access by several threads."""

    def __init__(self, reader: Reader, rows: Rows, model_input: ImageInput, threads: int) -> None:
        """`rows`: numbers of the part's rows; image i is of row rows[i]."""
        self._reader, self._rows, self._threads = reader, rows, threads
        self._input = model_input
        self.damaged: set[str] = set()
        """Names of the images met so far that could not be decoded, and are grey."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Some images, uint8 [n, *input.shape]."""
        numbers = self._rows[rows.numpy()].tolist()
        # numpy copies: with torch, each of these threads would start OpenMP threads of its own.
        images = np.empty((len(numbers), *self._input.shape), dtype=np.uint8)

        def fill(start: int) -> None:
            for position in range(start, min(start + _CHUNK, len(numbers))):
                row = numbers[position]
                found = self._reader.read(row, row + 1)
                key, data = found["key"][0].as_py(), found["image"][0].as_py()
                file = self._reader.file_of(row)
                where = f"shard {file}: image {key!r}"
                make = partial(prepared, data, where, self._input)
                images[position] = or_grey(make, self._input, self.damaged).numpy()

        with ThreadPoolExecutor(self._threads) as pool:
            for _ in pool.map(fill, range(0, len(numbers), _CHUNK)):
                pass
        return torch.from_numpy(images)


def lazy_part(
    corpus: Folder, index: Index, part: str, model_input: ImageInput, threads: int
) -> Part:
    """A part with its labels and captions in memory and its images decoded on access."""
    files = index.parts[part]
    columns = read_part(corpus, part, ["key", "label", "caption"])
    images = LazyImages(Reader(corpus, files), np.arange(len(columns)), model_input, threads)
    return Part(
        corpus=index.name,
        classes=index.classes,
        keys=columns["key"].combine_chunks(),
        images=images,
        labels=columns["label"].combine_chunks(),
        captions=columns["caption"].combine_chunks(),
        files=files,
        damaged=images.damaged,
    )

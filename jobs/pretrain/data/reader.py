"""Reading a part's rows as they are needed: segment by segment, every file checked before use.

Takes a corpus's folder and its index; gives tables of rows, and images decoded when asked for. A
file's sha256 is compared with the index's when it is first read, and again whenever its size or
time of change is another than then: what is altered while a run goes on is noticed. A few segments
are held, for readers that come back to the one they left off in.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from jobs.contract import StageError
from jobs.corpus.shards import INDEX, File, Index, read_part, read_rows
from jobs.images.pixels import prepared
from jobs.images.spec import ImageInput
from jobs.pretrain.data.order import Rows, segments
from jobs.pretrain.data.part import Part
from jobs.storage.folder import Folder

COLUMNS = ("key", "image", "label", "caption")

_CHUNK = 16  # images that a thread decodes at a time


class Reader:
    """The rows of one part, by number. May be called from several threads."""

    def __init__(self, corpus: Folder, files: Sequence[File], *, hold: int = 2) -> None:
        """`hold`: how many segments are kept in memory for another call."""
        self._corpus, self._files, self._hold = corpus, tuple(files), hold
        self._first, self._count = segments(files)
        self._file_first = np.cumsum([0, *(file.rows for file in files)])
        self._held: OrderedDict[int, pa.Table] = OrderedDict()
        self._checked: dict[str, Any] = {}  # file -> size and time of change when it was checked
        self._locks = {file.file: threading.Lock() for file in files}
        self._lock = threading.Lock()

    def segment_of(self, row: int) -> int:
        """The number of the segment that a row lies in."""
        return int(np.searchsorted(self._first, row, side="right")) - 1

    def file_of(self, row: int) -> str:
        """The name of the shard that a row lies in."""
        return self._files[int(np.searchsorted(self._file_first, row, side="right")) - 1].file

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows [start, stop), of one segment. StageError when its shard is missing or altered."""
        segment = self.segment_of(start)
        with self._lock:
            table = self._held.get(segment)
        if table is None:
            table = self._read(segment)
        with self._lock:
            self._held[segment] = table
            self._held.move_to_end(segment)
            while len(self._held) > self._hold:
                self._held.popitem(last=False)
        return table.slice(start - int(self._first[segment]), stop - start)

    def _read(self, segment: int) -> pa.Table:
        first, count = int(self._first[segment]), int(self._count[segment])
        at = int(np.searchsorted(self._file_first, first, side="right")) - 1
        file, before = self._files[at], int(self._file_first[at])
        self._check(file)
        start = first - before
        return read_rows(self._corpus, file.file, start, start + count, COLUMNS)

    def _check(self, file: File) -> None:
        with self._locks[file.file]:
            filesystem, path = self._corpus.open()
            info = filesystem.get_file_info(f"{path}/{file.file}")
            now = (info.size, info.mtime_ns)
            if self._checked.get(file.file) == now:
                return
            try:
                digest = self._corpus.sha256(file.file)
            except FileNotFoundError:
                raise StageError(
                    f"shard {file.file} of {self._corpus.uri} is missing; build the corpus again"
                ) from None
            if digest != file.sha256:
                raise StageError(
                    f"shard {file.file} of {self._corpus.uri} is not the one that {INDEX} lists "
                    f"(other sha256); build the corpus again"
                )
            self._checked[file.file] = now


class LazyImages:
    """Images of a part that are decoded when they are asked for, by some threads."""

    def __init__(self, reader: Reader, rows: Rows, model_input: ImageInput, threads: int) -> None:
        """`rows`: which of the part's rows these are, in the order they are numbered here."""
        self._reader, self._rows, self._threads = reader, rows, threads
        self._input = model_input

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Some of them, uint8 [n, *input.shape]; StageError for one that is damaged."""
        numbers = self._rows[rows.numpy()].tolist()
        # Filled by numpy: torch splits a copy, and each of these threads would get helpers.
        images = np.empty((len(numbers), *self._input.shape), dtype=np.uint8)

        def fill(start: int) -> None:
            for place in range(start, min(start + _CHUNK, len(numbers))):
                row = numbers[place]
                found = self._reader.read(row, row + 1)
                key, data = found["key"][0].as_py(), found["image"][0].as_py()
                file = self._reader.file_of(row)
                where = f"shard {file}: image {key!r}"
                images[place] = prepared(data, where, self._input).numpy()

        with ThreadPoolExecutor(self._threads) as pool:
            for _ in pool.map(fill, range(0, len(numbers), _CHUNK)):
                pass
        return torch.from_numpy(images)


def lazy_part(
    corpus: Folder, index: Index, part: str, model_input: ImageInput, threads: int
) -> Part:
    """A part whose labels and captions are read now and whose images when they are asked for."""
    files = index.parts[part]
    columns = read_part(corpus, part, ["key", "label", "caption"])
    return Part(
        corpus=index.name,
        classes=index.classes,
        keys=columns["key"].combine_chunks(),
        images=LazyImages(Reader(corpus, files), np.arange(len(columns)), model_input, threads),
        labels=columns["label"].combine_chunks(),
        captions=columns["caption"].combine_chunks(),
        files=files,
    )

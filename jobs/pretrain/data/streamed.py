"""Streamed training data: a part that is read, decoded and augmented while training.

For a part whose decoded images do not fit in memory, or whose augmentation needs the source images.
Gives the same batches as `MemorySource`, byte for byte, wherever the augmentation allows both.
Threads read windows of the worker's lanes (`order.py`) ahead and apply the noise. Processes decode
and augment the images (`decoding.py`). Memory holds one or two windows of each lane and a few
batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from jobs.corpus.shards import Index
from jobs.images.augment import Hashes, mix
from jobs.images.spec import Augment, ImageInput
from jobs.pretrain.data.decoding import CHUNK, Encoded, concatenate_pixels, decode, prefetch
from jobs.pretrain.data.in_memory import MOST_MEMORISED
from jobs.pretrain.data.noisy import NoisyRows
from jobs.pretrain.data.order import LANES, Order, Rows, Span, shuffle
from jobs.pretrain.data.part import Batch, Encode, Field, Part, Targets, select_targets
from jobs.pretrain.data.reader import LazyImages, Reader
from jobs.pretrain.distributed import DistributedGroup
from jobs.storage.folder import Folder

_READERS = 4  # threads that read windows


@dataclass(frozen=True)
class _Read:
    """Rows as read, with their noise, in the order of the part."""

    files: list[str]
    keys: pa.Array
    images: list[pa.ChunkedArray]  # one for each span
    position: npt.NDArray[np.int64]  # [n, 2]: span, and row within it
    targets: list[Targets]  # one for each run


@dataclass(frozen=True)
class _Window:
    """A window's rows, and their order in a turn."""

    read: _Read
    hashes: Hashes  # of augmentation, in the turn
    order: Rows


@dataclass(frozen=True)
class _Share:
    """A worker's share of a batch, without its images."""

    hashes: Hashes
    targets: list[Targets]  # one for each run
    ends_segment: bool
    chunks: int


class StreamedSource:
    """A training part under each run's noise, in the order of `seed`, read while training."""

    def __init__(
        self,
        corpus: Folder,
        index: Index,
        *noises: NoisyRows,
        field: Field,
        encode: Encode,
        model_input: ImageInput,
        augment: Augment,
        seed: int,
        batch_size: int,
        processes: int = 1,
        repeats: int = 1,
        order: Order | None = None,
    ) -> None:
        """`processes`: number of decoding processes; 0: this process decodes.

        Raises StageError when the part does not fill one batch.
        """
        files = index.parts["train"]
        self._order = order or Order(
            index.name, files, seed=seed, batch_size=batch_size, repeats=repeats
        )
        self.batch_size, self.rows = batch_size, self._order.rows
        self.steps_per_epoch = self._order.steps
        self.flipped = tuple(noise.flipped for noise in noises)
        self._reader = Reader(corpus, files, cached=LANES)
        self._noises, self._field, self._encode = noises, field, encode
        self._input, self._augment, self._processes = model_input, augment, processes
        self.damaged: set[str] = set()
        none = pa.array([], pa.string())
        self._empty_part = Part(
            index.name, index.classes, none, torch.empty(0), pa.array([], pa.int32()), none, files
        )

    def order_sha256(self) -> str:
        """A hash that is equal for runs with the same order and augmentation (`Order.sha256`)."""
        return self._order.sha256()

    # -- batches ---------------------------------------------------------------------------------

    def batches(self, epoch: int, first: int, group: DistributedGroup) -> Iterator[Batch]:
        """The epoch's batches from number `first` on: worker r takes the r-th piece of each."""
        shares: deque[_Share] = deque()
        with ThreadPoolExecutor(_READERS, thread_name_prefix="read") as pool:
            try:
                # This forks, and not `prefetch`: a process that is forked in a pool's thread ends
                # with an error, because Python joins the pool's threads at its end.
                chunks = decode(
                    self._chunks(epoch, first, group, pool, shares),
                    model_input=self._input,
                    augment=self._augment,
                    share=-(-self.batch_size // group.world // CHUNK),
                    processes=self._processes,
                )
                made = self._make(chunks, shares, self.steps_per_epoch - first, group.device)
                for batch in prefetch(made) if self._processes else made:
                    yield _on_device(batch, group.device)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _make(
        self,
        chunks: Iterator[tuple[torch.Tensor, list[str]]],
        shares: deque[_Share],
        steps: int,
        device: torch.device,
    ) -> Generator[Batch]:
        """The batches on the CPU; images that are meant for a GPU are in pinned memory."""
        for _ in range(steps):
            pixels = [self._pixels(next(chunks))]
            share = shares.popleft()
            pixels += [self._pixels(next(chunks)) for _ in range(share.chunks - 1)]
            images = concatenate_pixels(pixels)
            yield Batch(
                images=images.pin_memory() if device.type == "cuda" else images,
                hashes=share.hashes,
                targets=tuple(share.targets),
                ends_segment=share.ends_segment,
            )

    def _pixels(self, chunk: tuple[torch.Tensor, list[str]]) -> torch.Tensor:
        """A chunk's pixels; its damaged images are noted."""
        pixels, damaged = chunk
        self.damaged |= set(damaged)
        return pixels

    def _chunks(
        self,
        epoch: int,
        first: int,
        group: DistributedGroup,
        pool: ThreadPoolExecutor,
        shares: deque[_Share],
    ) -> Iterator[Encoded]:
        """This worker's share of each batch in pieces; all but the images goes to `shares`."""
        order, ends = self._order, self._order.segment_ends(epoch)
        size = self.batch_size // group.world
        lanes = []
        for lane in range(order.lanes):
            low, high = (
                at - lane * order.per_step for at in (group.rank * size, (group.rank + 1) * size)
            )
            mine = (max(low, 0), min(high, order.per_step))
            if mine[0] < mine[1]:
                lanes.append(_Lane(self, order, epoch, lane, mine, first, pool))
        for step in range(first, order.steps):
            parts = [rows for lane in lanes for rows in lane.rows_of(step)]
            images = [one for part in parts for one in part.images()]
            targets = _of_each_run([part.targets() for part in parts])
            hashes = np.concatenate([part.hashes for part in parts])
            pieces = range(0, size, CHUNK)
            shares.append(_Share(hashes, targets, bool(ends[step]), len(pieces)))
            for start in pieces:
                piece = images[start : start + CHUNK]
                files, keys, data = (list(column) for column in zip(*piece, strict=True))
                yield Encoded(files, keys, data, hashes[start : start + CHUNK].tolist())

    # -- rows ------------------------------------------------------------------------------------

    def window(self, turn: int, lane: int, window: Span) -> _Window:
        """Read a window of a lane, and order its rows."""
        read = self._read(self._order.spans(turn, lane, window))
        return _Window(
            read,
            mix(self._order.augmentation_hashes(read.keys), turn),
            shuffle(self._order.key_hashes(read.keys), turn),
        )

    def _read(self, spans: list[Span]) -> _Read:
        """Read some ranges of rows (each within a segment), with their noise."""
        tables = [self._reader.read(*span) for span in spans]
        targets = [
            self._targets(start, table, self._noises)
            for (start, _), table in zip(spans, tables, strict=True)
        ]
        position = [(at, row) for at, (low, high) in enumerate(spans) for row in range(high - low)]
        return _Read(
            files=[self._reader.file_of(start) for start, _ in spans],
            keys=pa.concat_arrays([chunk for table in tables for chunk in table["key"].chunks]),
            images=[table["image"] for table in tables],
            position=np.array(position, np.int64).reshape(-1, 2),
            targets=_of_each_run(targets),
        )

    def _targets(self, start: int, table: pa.Table, noises: Sequence[NoisyRows]) -> list[Targets]:
        part, values = self._empty_part, table[self._field].combine_chunks()
        clean = self._encode(part, values)
        return [noise.targets(part, start, table["key"], values, clean) for noise in noises]

    def flipped_rows(self, run: int = 0) -> tuple[Part, Targets]:
        """A run's flipped rows, not augmented; of more than MOST_MEMORISED, a seeded sample."""
        noise = self._noises[run]
        rows = self._order.sample(noise.changed(), MOST_MEMORISED)
        segment = np.array([self._reader.segment_of(row) for row in rows], np.int64)
        kept: list[Targets] = []
        columns: list[pa.Table] = []
        for group in np.split(rows, np.flatnonzero(np.diff(segment)) + 1) if len(rows) else []:
            start, stop = int(group[0]), int(group[-1]) + 1
            table, within = self._reader.read(start, stop), torch.from_numpy(group - start)
            targets = self._targets(start, table, [noise])
            kept.append(select_targets(targets[0], within, torch.device("cpu")))
            columns.append(table.select(["key", "label", "caption"]).take(pa.array(group - start)))
        empty = self._empty_part
        if not kept:
            return empty, _concatenate_targets([])
        table = pa.concat_tables(columns)
        sample = Part(
            corpus=empty.corpus,
            classes=empty.classes,
            keys=table["key"].combine_chunks(),
            images=LazyImages(self._reader, rows, self._input, max(1, self._processes)),
            labels=table["label"].combine_chunks(),
            captions=table["caption"].combine_chunks(),
            files=empty.files,
        )
        return sample, _concatenate_targets(kept)


# -- a worker's lanes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _WindowRows:
    """Some rows of a window, in the epoch's order."""

    window: _Window
    rows: Rows
    hashes: Hashes  # that their augmentation draws from

    def images(self) -> list[tuple[str, str, bytes]]:
        """Their shards, keys and encoded images."""
        read = self.window.read
        return [
            (read.files[span], read.keys[row].as_py(), read.images[span][within].as_py())
            for row, (span, within) in zip(
                self.rows.tolist(), read.position[self.rows], strict=True
            )
        ]

    def targets(self) -> list[Targets]:
        """Their training targets, of each run."""
        rows, cpu = torch.from_numpy(self.rows), torch.device("cpu")
        return [select_targets(each, rows, cpu) for each in self.window.read.targets]


class _Lane:
    """A worker's share of a lane, step by step; reads the next window ahead."""

    def __init__(
        self,
        source: StreamedSource,
        order: Order,
        epoch: int,
        lane: int,
        mine: Span,
        first: int,
        pool: ThreadPoolExecutor,
    ) -> None:
        """`mine`: the worker's range of the lane's rows in a batch; `first`: the first step."""
        self._order, self._epoch, self._mine = order, epoch, mine
        begin = order.positions(epoch, first, first + 1, mine)[0][0]
        self._windows = deque(w for w in order.windows(lane) if w[1] > begin)
        self._source, self._lane, self._pool = source, lane, pool
        self._ahead: deque[tuple[Span, Future[_Window]]] = deque()
        self._start_next()

    def _start_next(self) -> None:
        if self._windows:
            window = self._windows.popleft()
            turn = self._order.turn(self._epoch)
            read = self._pool.submit(self._source.window, turn, self._lane, window)
            self._ahead.append((window, read))

    def rows_of(self, step: int) -> list[_WindowRows]:
        """The worker's rows of a step, which may span several windows. Call with rising steps."""
        positions, copies = self._order.positions(self._epoch, step, step + 1, self._mine)
        found = []
        while len(positions):
            (low, high), future = self._ahead[0]
            inside = int(np.searchsorted(positions, high))
            if inside == 0:
                self._ahead.popleft()
                if not self._ahead:
                    self._start_next()
                continue
            window = future.result()
            rows = window.order[positions[:inside] - low]
            hashes = self._order.copy_hashes(window.hashes[rows], copies[:inside])
            found.append(_WindowRows(window, rows, hashes))
            past_half = positions[inside - 1] >= (low + high) // 2 - 1
            positions, copies = positions[inside:], copies[inside:]
            if (past_half or len(positions)) and len(self._ahead) == 1:
                self._start_next()
        return found


def _on_device(batch: Batch, device: torch.device) -> Batch:
    every = torch.arange(len(batch.hashes))
    return replace(
        batch,
        images=batch.images.to(device, non_blocking=True),
        targets=tuple(select_targets(each, every, device) for each in batch.targets),
    )


def _of_each_run(pieces: list[list[Targets]]) -> list[Targets]:
    """Some pieces, each with the targets of all runs, as one piece."""
    return [_concatenate_targets(list(of_run)) for of_run in zip(*pieces, strict=True)]


def _concatenate_targets(targets: list[Targets]) -> Targets:
    if not targets:
        none = torch.zeros(0)
        return Targets(none, none, none.bool())
    return Targets(
        torch.cat([each.noisy for each in targets]),
        torch.cat([each.clean for each in targets]),
        torch.cat([each.flipped for each in targets]),
    )

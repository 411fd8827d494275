"""A training part that is read, decoded and augmented as it is needed.

For a corpus whose decoded images do not fit in memory, or whose augmentation must see the image as
it lies in the corpus. Gives what `MemorySource` gives, batch by batch and byte by byte, wherever
the augmentation allows both. Threads read windows of the worker's lanes (`order.py`) ahead of time
and lay the noise over them; torch's DataLoader spreads their encoded images over processes, which
decode and augment them and hand the pixels back in their order. No more is held than a window or
two of each lane and a few batches.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from jobs.contract import StageError
from jobs.corpus.shards import Index
from jobs.images.augment import Hashes, mix
from jobs.images.spec import Augment, ImageInput
from jobs.images.transforms import prepared
from jobs.noise.overlay import Changes, apply
from jobs.pretrain.data.held import MOST_MEMORISED
from jobs.pretrain.data.noisy import changed_rows, mismatched, read_overlay
from jobs.pretrain.data.order import LANES, Order, Rows, Span, shuffle
from jobs.pretrain.data.part import Batch, Encode, Field, Part, Targets, picked_targets
from jobs.pretrain.data.reader import LazyImages, Reader
from jobs.pretrain.distributed import Group
from jobs.storage.folder import Folder

CHUNK = 16  # images that a process decodes at a time
AHEAD = 2  # batches that are decoded while one is trained on

_READERS = 4  # threads that read windows


@dataclass(frozen=True)
class _Encoded:
    """Some images on their way to a process that decodes them."""

    files: list[str]
    keys: list[str]
    images: list[bytes]
    hashes: list[int]


@dataclass(frozen=True)
class _Read:
    """Some rows as read, noise and all, in the order of the part."""

    files: list[str]
    keys: pa.Array
    images: list[pa.ChunkedArray]  # one for each span
    place: npt.NDArray[np.int64]  # [n, 2]: span, and row within it
    targets: Targets


@dataclass(frozen=True)
class _Window:
    """A window's rows, and the order that a turn takes them in."""

    read: _Read
    hashes: Hashes  # of augmentation, in the turn
    order: Rows


@dataclass(frozen=True)
class _Share:
    """What is known of a worker's share of a batch before its images are decoded."""

    hashes: Hashes
    targets: Targets
    ends_segment: bool
    chunks: int


class StreamedSource:
    """A training part and its noise, in the order of `seed`, read as it is needed."""

    def __init__(
        self,
        corpus: Folder,
        index: Index,
        noise: Folder,
        *,
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
        """`processes`: that decode; 0: this one. Raises StageError as `noisy_targets` does, as far
        as that is seen before the rows are read, and when the part does not fill one batch.
        """
        files = index.parts["train"]
        overlay = read_overlay(noise, field)
        self._order = order or Order(
            index.name, files, seed=seed, batch_size=batch_size, repeats=repeats
        )
        self._changes, self._changes_lock = Changes(noise), threading.Lock()
        self.batch_size, self.rows = batch_size, self._order.rows
        self.steps_per_epoch, self.flipped = self._order.steps, overlay.changed
        if len(self._changes) != overlay.changed or overlay.rows != self.rows:
            raise mismatched(overlay, len(self._changes) if overlay.rows == self.rows else 0)
        self._reader = Reader(corpus, files, hold=LANES)
        self._noise, self._field, self._encode = noise, field, encode
        self._input, self._augment, self._processes = model_input, augment, processes
        none = pa.array([], pa.string())
        self._about = Part(
            index.name, index.classes, none, torch.empty(0), pa.array([], pa.int32()), none, files
        )

    def order_sha256(self) -> str:
        """What proves that two runs saw their rows alike (`Order.sha256`)."""
        return self._order.sha256()

    # -- batches ---------------------------------------------------------------------------------

    def batches(self, epoch: int, first: int, group: Group) -> Iterator[Batch]:
        """The epoch's batches from number `first` on: worker r takes the r-th piece of each."""
        made = self._made(epoch, first, group)
        # For a GPU, DataLoader's own pinning thread takes them out of the processes' memory.
        return _ahead(made) if self._processes and group.device.type == "cpu" else made

    def _made(self, epoch: int, first: int, group: Group) -> Generator[Batch]:
        shares: deque[_Share] = deque()
        with ThreadPoolExecutor(_READERS, thread_name_prefix="read") as pool:
            try:
                chunks = iter(self._loader(self._chunks(epoch, first, group, pool, shares), group))
                for _ in range(first, self.steps_per_epoch):
                    pixels = [_good(next(chunks), group.device)]
                    share = shares.popleft()
                    pixels += [_good(next(chunks), group.device) for _ in range(share.chunks - 1)]
                    yield Batch(
                        images=_together(pixels),
                        hashes=share.hashes,
                        targets=picked_targets(
                            share.targets, torch.arange(len(share.hashes)), group.device
                        ),
                        ends_segment=share.ends_segment,
                    )
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _loader(self, chunks: Iterator[_Encoded], group: Group) -> DataLoader[Any]:
        """The pixels of each chunk, in their order; of a damaged one, a sentence about it."""
        share = -(-self.batch_size // group.world // CHUNK)
        processes = min(self._processes, share * AHEAD)
        return DataLoader(
            _Decoder(self._input, self._augment),
            sampler=chunks,
            batch_size=None,
            num_workers=processes,
            collate_fn=_as_it_is,
            pin_memory=group.device.type == "cuda",
            prefetch_factor=max(2, -(-share * AHEAD // processes)) if processes else None,
            multiprocessing_context="fork" if processes else None,  # they import nothing again
            generator=torch.Generator(),  # the global one is the training loop's
        )

    def _chunks(
        self,
        epoch: int,
        first: int,
        group: Group,
        pool: ThreadPoolExecutor,
        shares: deque[_Share],
    ) -> Iterator[_Encoded]:
        """This worker's share of each batch in pieces, what else is known of it put to `shares`."""
        order, ends = self._order, self._order.ends(epoch)
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
            parts = [taken for lane in lanes for taken in lane.take(step)]
            images = [one for part in parts for one in part.images()]
            targets = _joined([part.targets() for part in parts])
            hashes = np.concatenate([part.drawn for part in parts])
            pieces = range(0, size, CHUNK)
            shares.append(_Share(hashes, targets, bool(ends[step]), len(pieces)))
            for start in pieces:
                piece = images[start : start + CHUNK]
                files, keys, data = (list(column) for column in zip(*piece, strict=True))
                yield _Encoded(files, keys, data, hashes[start : start + CHUNK].tolist())

    # -- rows ------------------------------------------------------------------------------------

    def window(self, turn: int, lane: int, window: Span) -> _Window:
        """Read a window of a lane and find the order of its rows."""
        read = self._read(self._order.spans(turn, lane, window))
        return _Window(
            read,
            mix(self._order.augmentation(read.keys), turn),
            shuffle(self._order.of_keys(read.keys), turn),
        )

    def _read(self, spans: list[Span]) -> _Read:
        """Rows of some ranges (each within a segment), the noise over them."""
        tables = [self._reader.read(*span) for span in spans]
        targets = [self._targets(*span, table) for span, table in zip(spans, tables, strict=True)]
        place = [(at, row) for at, (low, high) in enumerate(spans) for row in range(high - low)]
        return _Read(
            files=[self._reader.file_of(start) for start, _ in spans],
            keys=pa.concat_arrays([chunk for table in tables for chunk in table["key"].chunks]),
            images=[table["image"] for table in tables],
            place=np.array(place, np.int64).reshape(-1, 2),
            targets=_joined(targets),
        )

    def _targets(self, start: int, stop: int, table: pa.Table) -> Targets:
        values = table[self._field].combine_chunks()
        with self._changes_lock:
            changed = self._changes.rows(start, stop)
        noisy, mask = apply(changed, table["key"], values, start)
        targets = self._encode(self._about, noisy)
        clean = targets.clone()
        flipped = torch.from_numpy(mask.copy())
        if mask.any():  # the others are what they were: cutting captions into tokens costs time
            clean[flipped] = self._encode(self._about, values.filter(pa.array(mask)))
        return Targets(targets, clean, flipped)

    def flipped_rows(self) -> tuple[Part, Targets]:
        """The flipped rows, un-augmented; a seeded sample where more than MOST_MEMORISED are."""
        rows = self._order.sample(changed_rows(self._noise), MOST_MEMORISED)
        segment = np.array([self._reader.segment_of(row) for row in rows], np.int64)
        kept: list[Targets] = []
        columns: list[pa.Table] = []
        for group in np.split(rows, np.flatnonzero(np.diff(segment)) + 1) if len(rows) else []:
            start, stop = int(group[0]), int(group[-1]) + 1
            table, within = self._reader.read(start, stop), torch.from_numpy(group - start)
            targets = self._targets(start, stop, table)
            kept.append(picked_targets(targets, within, torch.device("cpu")))
            columns.append(table.select(["key", "label", "caption"]).take(pa.array(group - start)))
        about = self._about
        if not kept:
            return about, _joined([])
        table = pa.concat_tables(columns)
        sample = Part(
            corpus=about.corpus,
            classes=about.classes,
            keys=table["key"].combine_chunks(),
            images=LazyImages(self._reader, rows, self._input, max(1, self._processes)),
            labels=table["label"].combine_chunks(),
            captions=table["caption"].combine_chunks(),
            files=about.files,
        )
        return sample, _joined(kept)


# -- a worker's lanes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Taken:
    """Some rows of a window, in the epoch's order."""

    window: _Window
    rows: Rows
    drawn: Hashes  # what their augmentation draws from

    def images(self) -> list[tuple[str, str, bytes]]:
        """Their shards, keys and encoded images."""
        read = self.window.read
        return [
            (read.files[span], read.keys[row].as_py(), read.images[span][within].as_py())
            for row, (span, within) in zip(self.rows.tolist(), read.place[self.rows], strict=True)
        ]

    def targets(self) -> Targets:
        """What they are trained to answer."""
        rows = torch.from_numpy(self.rows)
        return picked_targets(self.window.read.targets, rows, torch.device("cpu"))


class _Lane:
    """A worker's share of a lane, taken from step to step; the next window is read in time."""

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
        """`mine`: which of the rows that a batch takes of the lane; `first`: the first step."""
        self._order, self._epoch, self._mine = order, epoch, mine
        begin = order.places(epoch, first, first + 1, mine)[0][0]
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

    def take(self, step: int) -> list[_Taken]:
        """The worker's rows of a step; they may lie in several windows."""
        places, copies = self._order.places(self._epoch, step, step + 1, self._mine)
        taken = []
        while len(places):
            (low, high), future = self._ahead[0]
            inside = int(np.searchsorted(places, high))
            if inside == 0:
                self._ahead.popleft()
                if not self._ahead:
                    self._start_next()
                continue
            window = future.result()
            rows = window.order[places[:inside] - low]
            drawn = self._order.of_copies(window.hashes[rows], copies[:inside])
            taken.append(_Taken(window, rows, drawn))
            past_half = places[inside - 1] >= (low + high) // 2 - 1
            places, copies = places[inside:], copies[inside:]
            if (past_half or len(places)) and len(self._ahead) == 1:
                self._start_next()
        return taken


# -- in the processes that decode ------------------------------------------------------------------


class _Decoder(Dataset[Any]):
    """Decodes and augments a piece of a batch; what is wrong with it is given back as a sentence,
    since an error would come out with a traceback in its words.
    """

    def __init__(self, model_input: ImageInput, augment: Augment) -> None:
        self._input, self._augment = model_input, augment

    def __getitem__(self, piece: _Encoded) -> Tensor | str:
        rows = zip(piece.files, piece.keys, piece.images, piece.hashes, strict=True)
        try:
            # Of torch, because in a process it stacks into the memory that is then shared.
            pixels = [self._prepared(*row) for row in rows]
            stacked: Tensor = default_collate(pixels)
            return stacked
        except StageError as error:
            return str(error)

    def _prepared(self, file: str, key: str, data: bytes, hashed: int) -> Tensor:
        where = f"shard {file}: image {key!r}"
        return prepared(data, where, self._input, self._augment, hashed)


def _as_it_is(pixels: Any) -> Any:
    return pixels


def _good(pixels: Tensor | str, device: torch.device) -> Tensor:
    if isinstance(pixels, str):
        raise StageError(pixels)
    return pixels.to(device, non_blocking=True)


def _together(pixels: list[Tensor]) -> Tensor:
    """Pieces of a batch in one. On a CPU by numpy: torch's threads are the training's."""
    if pixels[0].device.type == "cpu":
        return torch.from_numpy(np.concatenate([piece.numpy() for piece in pixels]))
    return torch.cat(pixels)


def _ahead(batches: Generator[Batch]) -> Iterator[Batch]:
    """The batches, each taken out of the processes' memory while the one before is trained on."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        try:
            coming = pool.submit(next, batches, None)
            while (batch := coming.result()) is not None:
                coming = pool.submit(next, batches, None)
                yield batch
        finally:
            with suppress(RuntimeError):  # as Python ends, and the processes with it
                pool.submit(batches.close)  # in its own thread, after what it is at


def _joined(targets: list[Targets]) -> Targets:
    if not targets:
        none = torch.zeros(0)
        return Targets(none, none, none.bool())
    return Targets(
        torch.cat([each.noisy for each in targets]),
        torch.cat([each.clean for each in targets]),
        torch.cat([each.flipped for each in targets]),
    )

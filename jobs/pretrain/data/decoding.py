"""Decoding of streamed training images in processes of torch's DataLoader.

Takes chunks of encoded images; gives their pixels, augmented, in the order of the chunks. A thread
copies the next batch from shared memory. Knows nothing of shards, noise and order.

The processes write pixels to memory that is shared and used again and again. torch would map new
memory for each chunk, in both processes.
"""

from __future__ import annotations

import mmap
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jobs.images.pixels import or_grey
from jobs.images.spec import Augment, ImageInput
from jobs.images.transforms import prepared
from jobs.pretrain.data.part import Batch

CHUNK = 16  # images that a process decodes at a time
BATCHES_AHEAD = 2  # batches that are decoded while one is trained on


@dataclass(frozen=True)
class Encoded:
    """Encoded images, to be decoded by a process."""

    files: list[str]
    keys: list[str]
    images: list[bytes]
    hashes: list[int]


@dataclass(frozen=True)
class _Placed:
    """A chunk, and the place of its pixels in the shared memory."""

    place: int
    chunk: Encoded


@dataclass(frozen=True)
class _Decoded:
    """How many images lie at a place now, and the names of the damaged ones."""

    place: int
    rows: int
    damaged: list[str]


def decode(
    chunks: Iterator[Encoded],
    *,
    model_input: ImageInput,
    augment: Augment,
    share: int,
    processes: int,
) -> Iterator[tuple[Tensor, list[str]]]:
    """Each chunk's pixels, in order, and the names of its damaged images.

    `share`: number of chunks in a batch; `processes`: number of decoding processes; 0: this process
    decodes. The pixels stay as they are until `share` further chunks have been asked for.
    """
    processes = min(processes, share * BATCHES_AHEAD)
    ahead = -(-share * BATCHES_AHEAD // processes) if processes else 1  # chunks of a process
    pixels = _shared(processes * max(2, ahead) + share, model_input)
    loader: DataLoader[Any] = DataLoader(
        _Decoder(pixels, model_input, augment),
        sampler=(_Placed(number % len(pixels), chunk) for number, chunk in enumerate(chunks)),
        batch_size=None,
        num_workers=processes,
        collate_fn=_unchanged,
        prefetch_factor=max(2, ahead) if processes else None,
        multiprocessing_context="fork" if processes else None,  # so they need no imports
        generator=torch.Generator(),  # the training loop uses the global one
    )
    return ((pixels[each.place, : each.rows], each.damaged) for each in loader)


def _shared(places: int, model_input: ImageInput) -> Tensor:
    """Memory for the pixels of so many chunks, which forked processes share with this one."""
    shape = (places, CHUNK, *model_input.shape)
    return torch.frombuffer(mmap.mmap(-1, prod(shape)), dtype=torch.uint8).view(shape)


class _Decoder(Dataset[Any]):
    """Decodes and augments a chunk. A damaged image is grey, and is not augmented."""

    def __init__(self, pixels: Tensor, model_input: ImageInput, augment: Augment) -> None:
        self._pixels, self._input, self._augment = pixels, model_input, augment

    def __getitem__(self, placed: _Placed) -> _Decoded:
        chunk, room = placed.chunk, self._pixels[placed.place]
        damaged: set[str] = set()
        rows = zip(chunk.files, chunk.keys, chunk.images, chunk.hashes, strict=True)
        for row, (file, key, data, hashed) in enumerate(rows):
            where = f"shard {file}: image {key!r}"
            make = partial(prepared, data, where, self._input, self._augment, hashed)
            room[row] = or_grey(make, self._input, damaged)
        return _Decoded(placed.place, len(chunk.keys), sorted(damaged))


def _unchanged(decoded: Any) -> Any:
    return decoded


def concatenate_pixels(pixels: list[Tensor]) -> Tensor:
    """A copy of a batch's pieces as one tensor. numpy copies: training uses torch's threads."""
    return torch.from_numpy(np.concatenate([piece.numpy() for piece in pixels]))


def prefetch(batches: Generator[Batch]) -> Iterator[Batch]:
    """The batches, each copied from shared memory while the previous one is trained on."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        try:
            coming = pool.submit(next, batches, None)
            while (batch := coming.result()) is not None:
                coming = pool.submit(next, batches, None)
                yield batch
        finally:
            with suppress(RuntimeError):  # when Python is exiting, which ends the processes too
                pool.submit(batches.close)  # in the thread that runs the generator, after its work

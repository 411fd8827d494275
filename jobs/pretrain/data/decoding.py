"""Decoding of streamed training images in processes of torch's DataLoader.

Takes chunks of encoded images; gives their pixels, augmented, in the order of the chunks. A thread
copies the next batch from shared memory. Knows nothing of shards, noise and order.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

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


def decode(
    chunks: Iterator[Encoded],
    *,
    model_input: ImageInput,
    augment: Augment,
    share: int,
    processes: int,
    device: torch.device,
) -> DataLoader[Any]:
    """A loader of each chunk's pixels, in order, and of the names of its damaged images.

    `share`: number of chunks in a batch; `processes`: their number; 0: this process decodes.
    """
    processes = min(processes, share * BATCHES_AHEAD)
    return DataLoader(
        _Decoder(model_input, augment),
        sampler=chunks,
        batch_size=None,
        num_workers=processes,
        collate_fn=_unchanged,
        pin_memory=device.type == "cuda",
        prefetch_factor=max(2, -(-share * BATCHES_AHEAD // processes)) if processes else None,
        multiprocessing_context="fork" if processes else None,  # so they need no imports
        generator=torch.Generator(),  # the training loop uses the global one
    )


class _Decoder(Dataset[Any]):
    """Decodes and augments a chunk. A damaged image is grey, and is not augmented."""

    def __init__(self, model_input: ImageInput, augment: Augment) -> None:
        self._input, self._augment = model_input, augment

    def __getitem__(self, piece: Encoded) -> tuple[Tensor, list[str]]:
        rows = zip(piece.files, piece.keys, piece.images, piece.hashes, strict=True)
        damaged: set[str] = set()
        pixels = []
        for file, key, data, hashed in rows:
            where = f"shard {file}: image {key!r}"
            make = partial(prepared, data, where, self._input, self._augment, hashed)
            pixels.append(or_grey(make, self._input, damaged))
        # torch's collate, because in a worker process it stacks straight into shared memory.
        return default_collate(pixels), sorted(damaged)


def _unchanged(pixels: Any) -> Any:
    return pixels


def concatenate_pixels(pixels: list[Tensor]) -> Tensor:
    """The pieces of a batch as one tensor. On a CPU numpy copies: training uses torch's threads."""
    if pixels[0].device.type == "cpu":
        return torch.from_numpy(np.concatenate([piece.numpy() for piece in pixels]))
    return torch.cat(pixels)


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

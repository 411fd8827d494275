"""An encoder of images: a timm model, the image tower of an open_clip model, or an extension's.

Its inputs are tensors [N, C, S, S]: uint8 pixels, or floats in [0, 1] (such as augmented views).
Rows are decoded in threads, one batch ahead of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from jobs.encoders.card import image_features
from jobs.encoders.interface import Batch, Encoder, Inputs, Precision, Rows
from jobs.images import shifts
from jobs.images.pixels import to_input, unit_range
from jobs.images.rows import ImageRows, allocate
from jobs.images.spec import ImageInput, Shift, Views
from jobs.images.views import augmented

# Of the widest layer's activations. A larger batch leaves the CPU's cache and gains nothing.
CPU_BYTES = 32 << 20
GPU_SHARE = 0.02  # of the device's memory, for the same
LEAST, MOST = 8, 1024


class ImageEncoder(Encoder):
    """An encoder of images on one device.

    A timm model gives the pooled features before its classifier, an open_clip model the image
    embedding, not normalised.
    """

    columns: ClassVar[tuple[str, ...]] = ("image",)

    @property
    def input(self) -> ImageInput:
        """How pixels become the model's input."""
        if not isinstance(self.card.input, ImageInput):
            raise TypeError(f"{self.card.model} reads no images")
        return self.card.input

    def prepare(
        self, data: bytes, where: str, shift: Shift | None = None, draw: np.uint64 | None = None
    ) -> Tensor:
        """A row's data as the input of `features`, uint8 [*input.shape], with `shift` if given.

        Raises StageError, which begins with `where`, for data that cannot be read.
        """
        return shifts.prepared(data, where, self.input, shift, draw)

    def batch_size(self, requested: int | Literal["auto"], precision: Precision) -> int:
        """The requested batch size; for `auto`, a power of two that fits model and device.

        It depends on the model and the device's memory, not on timing: all units of a step have the
        same batch size and the same bytes, whenever they are extracted.
        """
        if requested != "auto":
            return requested
        budget = float(CPU_BYTES)
        if self.device.type == "cuda":
            budget = GPU_SHARE * torch.cuda.get_device_properties(self.device).total_memory
        rows = max(1, int(budget // _bytes_per_row(self, precision)))
        return max(LEAST, min(MOST, 1 << (rows.bit_length() - 1)))

    def batches(
        self, rows: pa.Table, size: int, shift: Shift | None, threads: int
    ) -> Iterator[Batch]:
        """Batches in the rows' order, uint8 [M, *input.shape], one ahead of the caller."""
        with ThreadPoolExecutor(threads) as pool:

            def submit(start: int) -> list[Future[Tensor]]:
                batch = rows.slice(start, size)
                share = -(-len(batch) // threads)
                return [
                    pool.submit(self._prepare_rows, batch.slice(at, share), shift)
                    for at in range(0, len(batch), share)
                ]

            ahead = submit(0)
            for start in range(0, len(rows), size):
                ready = ahead
                ahead = submit(start + size) if start + size < len(rows) else []
                pixels = torch.cat([piece.result() for piece in ready])
                yield Batch(np.arange(start, start + len(pixels)), pixels)

    def _prepare_rows(self, rows: pa.Table, shift: Shift | None) -> Tensor:
        """The rows as the model's input, uint8 [N, *input.shape], with the shift.

        numpy stacks them. With torch, each of these threads would start OpenMP threads of its own;
        once there are more of those than cores, OpenMP puts the encoder's threads to sleep between
        layers.
        """
        drawn = [None] * len(rows) if shift is None else shifts.draws(rows["key"], shift)

        def prepared(data: pa.Scalar, key: str, draw: np.uint64 | None) -> npt.NDArray[np.uint8]:
            found: npt.NDArray[np.uint8]
            found = self.prepare(data.as_py(), f"sample {key}", shift, draw).numpy()
            return found

        # One at a time: a decoded source image may take hundreds of times the memory of its input.
        each = zip(rows["image"], rows["key"].to_pylist(), drawn, strict=True)
        return torch.from_numpy(np.stack([prepared(*one) for one in each]))

    def prepared(
        self,
        pieces: Iterable[tuple[Rows, pa.Table]],
        count: int,
        shift: Shift | None,
        threads: int,
        where: str,
    ) -> ImageRows:
        """The rows' pixels, decoded piece by piece."""
        pixels: Tensor | None = None
        with ThreadPoolExecutor(threads) as pool:
            for positions, table in pieces:
                drawn = shifts.draws(table["key"], shift) if shift else [None] * len(table)
                found = pool.map(
                    lambda data, key, draw: self.prepare(
                        data.as_py(), f"sample {key}", shift, draw
                    ),
                    table["image"],
                    table["key"].to_pylist(),
                    drawn,
                )
                for row, one in zip(positions, found, strict=True):
                    if pixels is None:
                        pixels = allocate(count, one, where)
                    pixels[row] = one
        if pixels is None:
            raise AssertionError("a task's part has at least one row")
        return ImageRows(pixels)

    def views(
        self, inputs: Inputs, keys: pa.Array, views: Views, numbers: Sequence[int], scope: str
    ) -> Inputs:
        """Augmented views, float32 [V * M, C, S, S] in [0, 1]; plain images in the same form."""
        pixels = inputs.to(self.device)
        if not numbers:
            return unit_range(pixels)
        found = [augmented(pixels, keys, views, number, scope) for number in numbers]
        return found[0] if len(found) == 1 else torch.cat(found)

    def forward(self, inputs: Inputs, precision: Precision = "float32") -> Tensor:
        """See `Encoder.forward`; images [N, C, S, S]."""
        images = to_input(inputs.to(self.device), self.input)
        with self.arithmetic(precision):
            return image_features(self.card.family, self.model, images).float()


@lru_cache(maxsize=2)
def _bytes_per_row(encoder: ImageEncoder, precision: Precision) -> int:
    """Bytes of the widest layer's inputs and output for one row."""
    most = 1

    def measure(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        nonlocal most
        tensors = [t for t in (*inputs, output) if torch.is_tensor(t)]
        most = max(most, sum(t.numel() * t.element_size() for t in tensors))

    leaves = [m for m in encoder.model.modules() if not any(True for _ in m.children())]
    hooks = [leaf.register_forward_hook(measure) for leaf in leaves]
    try:
        encoder.features(torch.zeros(1, *encoder.input.shape), precision)
    finally:
        for hook in hooks:
            hook.remove()
    return most

"""An encoder of images that gives a vector for each patch of the model's spatial map.

Takes a loaded `ImageEncoder` whose model has such a map: a CNN's last feature map, a vision
transformer's tokens without its prefix tokens, an earlier layer's, or what an extension's `map`
gives. Gives features [N, P * P * D], patch by patch, row by row, and the counts of the classes of
each patch's pixels. The whole image is shown, its sides made equal, so that every pixel has a
patch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from jobs.contract import StageError
from jobs.encoders.card import Family
from jobs.encoders.image import ImageEncoder
from jobs.encoders.interface import Batch, Inputs, Precision
from jobs.images import masks, shifts
from jobs.images.pixels import to_input
from jobs.images.spec import Grid, ImageInput, Shift, Views
from jobs.images.views import moved


@dataclass(frozen=True)
class Scenes:
    """A batch of images with their masks; the masks stay in the computer's own memory."""

    pixels: Tensor  # [M, C, S, S]
    masks: Tensor  # uint8 [M, S, S]
    counts: npt.NDArray[np.int32] | None  # [M, P * P * classes], of whole masks; None: of `masks`

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device: torch.device) -> Scenes:
        """The same with its pixels on a device."""
        return Scenes(self.pixels.to(device), self.masks, self.counts)


class GridEncoder(ImageEncoder):
    """An encoder of the patches of images on one device."""

    columns = ("image", "mask")

    def __init__(self, encoder: ImageEncoder, grid: Grid, classes: int) -> None:
        """Raises StageError when the model has no square map at this size or of this layer."""
        super().__init__(encoder.card, encoder.model, encoder.device)
        self._grid, self._classes = grid, classes
        size = grid.size or encoder.input.size
        self._input = encoder.input.model_copy(update={"size": size, "crop_pct": None})
        blank = torch.zeros(1, *self._input.shape)
        own = self.card.family == "extension"
        if own and grid.layer is not None:
            raise StageError(
                f"{self.card.model} is an extension's, whose encoder has one map of patches; leave "
                f"out features.grid.layer"
            )
        try:
            with torch.inference_mode():
                _, self._dim, height, width = self._map(blank.to(self.device)).shape
        except Exception as error:  # libraries raise nearly anything for a model or size without
            reason = " ".join(str(error).split())[:200]
            remedy = "choose another features.grid.layer or size"
            remedy = "correct its method map, choose another features.grid.size" if own else remedy
            raise StageError(
                f"{self.card.family} model {self.card.model!r} gives no map of patches "
                f"{_in_words(grid, size)} ({reason}); {remedy}, or another encoder"
            ) from error
        if height != width:
            remedy = "let its method map give one" if own else "choose another encoder"
            raise StageError(
                f"{self.card.family} model {self.card.model!r} gives a map of {height} x {width} "
                f"patches, and a square one is needed; {remedy}"
            )
        self.side = int(width)

    @property
    def input(self) -> ImageInput:
        """The whole image, in the grid's size."""
        return self._input

    @property
    def patches(self) -> int:
        """Patches of an image, P * P."""
        return self.side**2

    @property
    def dim(self) -> int:
        """Numbers of an image's features, P * P * D."""
        return self.patches * self._dim

    def batches(
        self, rows: pa.Table, size: int, shift: Shift | None, threads: int
    ) -> Iterator[Batch]:
        """Batches of `Scenes` in the rows' order; masks are read while the model runs."""
        drawn = [None] * len(rows) if shift is None else shifts.draws(rows["key"], shift)
        with ThreadPoolExecutor(threads) as pool:
            targets = pool.map(
                lambda data, key, draw: self._targets(data.as_py(), key, shift, draw),
                rows["mask"],
                rows["key"].to_pylist(),
                drawn,
            )
            for batch in super().batches(rows, size, shift, threads):
                found = [next(targets) for _ in batch.rows]
                small = torch.from_numpy(np.stack([mask for mask, _ in found]))
                counts = np.stack([count for _, count in found])
                yield Batch(batch.rows, Scenes(batch.inputs, small, counts))

    def _targets(
        self, data: bytes, key: str, shift: Shift | None, draw: np.uint64 | None
    ) -> tuple[masks.Mask, npt.NDArray[np.int32]]:
        """A mask at the input's size, and the counts of the whole one, flat."""
        mask = masks.read(data, f"mask of sample {key}")
        if shift is not None and draw is not None:
            mask = masks.shifted(mask, shift, draw)
        counts = masks.counts(mask, self.side, self._classes)
        return masks.resized(mask, self._input.size), counts.reshape(-1)

    def views(
        self, inputs: Inputs, keys: pa.Array, views: Views, numbers: Sequence[int], scope: str
    ) -> Inputs:
        """Augmented views of images, with masks that are moved alike."""
        pixels = super().views(inputs.pixels, keys, views, numbers, scope)
        if not numbers:
            return Scenes(pixels, inputs.masks, inputs.counts)
        found = [moved(inputs.masks, keys, views, number, scope) for number in numbers]
        return Scenes(pixels, torch.cat(found), None)

    def targets(self, inputs: Inputs) -> npt.NDArray[np.int32]:
        """The counts of each image's patches, [M, P * P * classes]."""
        scenes: Scenes = inputs
        if scenes.counts is not None:
            return scenes.counts
        each = scenes.masks.numpy()
        return np.stack([masks.counts(m, self.side, self._classes).reshape(-1) for m in each])

    def forward(self, inputs: Inputs, precision: Precision = "float32") -> Tensor:
        """Features float32 [N, P * P * D] of images."""
        pixels = inputs if isinstance(inputs, Tensor) else inputs.pixels
        images = to_input(pixels.to(self.device), self._input)
        with self.arithmetic(precision):
            found = self._map(images)
        return found.float().flatten(2).mT.flatten(1)

    def _map(self, images: Tensor) -> Tensor:
        """The map [N, D, P, P] of normalised images."""
        return spatial_map(self.card.family, self.model, images, self._grid.layer)


def spatial_map(family: Family, model: Any, images: Tensor, layer: int | None) -> Tensor:
    """A model's spatial map, [N, D, H, W], of normalised images [N, C, S, S].

    `layer`: of timm's and open_clip's `forward_intermediates`; None: the last. Raises what the
    library raises, and ValueError for features that are no map.
    """
    if family == "open_clip":
        found = model.visual.forward_intermediates(
            images,
            indices=[-1 if layer is None else layer],
            normalize_intermediates=layer is None,
            intermediates_only=True,
        )["image_intermediates"]
        return _only(found)
    if family == "extension":
        own: Tensor = model.map(images)
        return own
    if layer is not None:
        return _only(model.forward_intermediates(images, indices=[layer], intermediates_only=True))
    last: Tensor = model.forward_features(images)
    width = model.num_features
    if last.ndim == 3:  # tokens
        patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
        if isinstance(patch, tuple) and len({*patch}) > 1:  # their number may be a square
            raise ValueError(f"its patches of {' x '.join(map(str, patch))} pixels are not square")
        last = last[:, getattr(model, "num_prefix_tokens", 0) :]
        side = math.isqrt(last.shape[1])
        if side * side != last.shape[1]:
            raise ValueError(f"{last.shape[1]} tokens are no square map")
        return last.mT.reshape(len(last), -1, side, side)
    if last.ndim == 4 and last.shape[1] == width:
        return last
    if last.ndim == 4 and last.shape[3] == width:
        return last.permute(0, 3, 1, 2)
    raise ValueError(f"its features have the shape {tuple(last.shape)}")


def _only(found: list[Tensor]) -> Tensor:
    if len(found) != 1 or found[0].ndim != 4:
        raise ValueError(f"{len(found)} maps of {[tuple(one.shape) for one in found]}")
    return found[0]


def _in_words(grid: Grid, size: int) -> str:
    layer = "" if grid.layer is None else f" of layer {grid.layer}"
    return f"{layer.strip()} at {size} pixels".strip()

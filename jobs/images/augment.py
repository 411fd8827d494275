"""Augmentation: random changes of images, each a pure function of a hash.

Takes images in [0, 1] and uniform numbers drawn from 64-bit hashes (of a seed, an epoch and a
sample's key); gives the changed images. The numbers come from a counter-based generator, so a
sample's augmentation depends on its own hash alone: not on the noise level, the batch, the worker
or earlier draws. Holds no state and reads no global generator.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.images.pixels import to_device
from jobs.images.spec import Affine

Hashes = npt.NDArray[np.uint64]

DRAWS = 5
"""Numbers that an image's augmentation uses: angle, shift right, shift down, scale, flip."""

_GOLDEN = 0x9E3779B97F4A7C15


def mix(hashes: Hashes, number: int) -> Hashes:
    """An unrelated 64-bit number for each hash and each `number` (an epoch, a column): [N].

    Output `number` of the generator SplitMix64 (Steele, Lea and Flood, 2014) seeded with the hash.
    """
    z = hashes + np.uint64((number + 1) * _GOLDEN % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = z ^ (z >> np.uint64(31))
    return mixed


def draws(hashes: Hashes, n: int = DRAWS) -> Tensor:
    """Uniform float32 numbers in [0, 1), [N, n]; column j does not depend on n."""
    top = np.uint64(40)  # leaves 24 bits, which float32 holds exactly
    columns = [(mix(hashes, j) >> top).astype(np.float32) * np.float32(2**-24) for j in range(n)]
    return torch.from_numpy(np.stack(columns, axis=1))


def flips_alone(spec: Affine) -> bool:
    """Whether `augment` only flips, which keeps the values, so it may work on bytes."""
    return spec.flip and not (spec.degrees or spec.translate) and spec.scale == (1.0, 1.0)


def augment(
    images: Tensor,
    spec: Affine,
    draws: Tensor,
    mode: Literal["bilinear", "nearest"] = "bilinear",
) -> Tensor:
    """Rotate, shift, scale and flip each image by its own row of draws.

    `images` is float [N, C, H, W] in [0, 1], before normalisation: pixels from outside the image
    are 0. It may be uint8 where `flips_alone`. `draws` is at least [N, DRAWS] in [0, 1). The result
    has the images' shape; each row depends on its own image and draws alone. About the image's
    centre; the flip comes first. `mode`: how pixels are sampled.
    """
    if not spec.moves:
        return images
    u = to_device(draws, images.device)
    if flips_alone(spec):  # nothing to interpolate
        return _flipped(images, u[:, 4] < 0.5)
    angle = (2 * u[:, 0] - 1) * math.radians(spec.degrees)
    shift = (2 * u[:, 1:3] - 1) * (2 * spec.translate)  # in grid units: a side is 2 long
    low, high = spec.scale
    scale = low + (high - low) * u[:, 3]
    mirror = torch.ones_like(angle)
    if spec.flip:
        mirror.masked_fill_(u[:, 4] < 0.5, -1.0)
    grid = _source_grid(images.shape[-2:], angle, shift, scale, mirror)
    return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)


def _flipped(images: Tensor, chosen: Tensor) -> Tensor:
    """The images, the `chosen` ones [N] mirrored. On a CPU, NumPy takes a fifth of the time."""
    if images.device.type != "cpu":  # where choosing rows would wait for the device
        return torch.where(chosen.view(-1, 1, 1, 1), images.flip(-1), images)
    flipped = images.numpy().copy()
    for row in chosen.nonzero().flatten().tolist():
        flipped[row] = flipped[row, ..., ::-1]  # NumPy copies what overlaps
    return torch.from_numpy(flipped)


def _source_grid(
    size: torch.Size, angle: Tensor, shift: Tensor, scale: Tensor, mirror: Tensor
) -> Tensor:
    """The source of each output pixel, [N, H, W, 2] in grid units.

    Computed element by element, because a matrix product may round differently in another batch.
    """
    height, width = size
    device = angle.device
    ys = ((torch.arange(height, device=device) * 2 + 1) / height - 1).view(1, -1, 1)
    xs = ((torch.arange(width, device=device) * 2 + 1) / width - 1).view(1, 1, -1)
    x = xs - shift[:, 0].view(-1, 1, 1)
    y = ys - shift[:, 1].view(-1, 1, 1)
    cos = (torch.cos(angle) / scale).view(-1, 1, 1)
    sin = (torch.sin(angle) / scale).view(-1, 1, 1)
    # Rotates pixels, not grid units, which differ in x and y where the image is not square.
    aspect = width / height
    source_x = (cos * x + sin / aspect * y) * mirror.view(-1, 1, 1)
    source_y = cos * y - sin * aspect * x
    return torch.stack((source_x, source_y), dim=-1)

"""Augmentation: random changes of images, each a pure function of a hash.

Takes images in [0, 1] and uniform numbers drawn from 64-bit hashes (of a seed, an epoch and a
sample's key); gives the changed images. The numbers come from a counter-based generator, so a
sample's augmentation depends on nothing but its own hash: not on the noise level, the batch, the
worker or what was drawn before it. Holds no state and reads no global generator.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.images.spec import Affine

Hashes = npt.NDArray[np.uint64]

DRAWS = 5
"""Numbers an image's augmentation takes: angle, shift right, shift down, scale, flip."""

_GOLDEN = 0x9E3779B97F4A7C15


def mix(hashes: Hashes, number: int) -> Hashes:
    """An unrelated 64-bit number for each hash and each `number` (an epoch, a column): [N].

    The generator SplitMix64 (Steele, Lea and Flood, 2014), started at the hash, at `number`.
    """
    z = hashes + np.uint64((number + 1) * _GOLDEN % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = z ^ (z >> np.uint64(31))
    return mixed


def draws(hashes: Hashes, n: int = DRAWS) -> Tensor:
    """Uniform float32 numbers in [0, 1), [N, n]; column j is the same whatever n is."""
    top = np.uint64(40)  # 24 bits are left: every one of them is exact in float32
    columns = [(mix(hashes, j) >> top).astype(np.float32) * np.float32(2**-24) for j in range(n)]
    return torch.from_numpy(np.stack(columns, axis=1))


def flips_alone(spec: Affine) -> bool:
    """Whether `augment` does nothing but flip, which leaves values as they are: bytes will do."""
    return spec.flip and not (spec.degrees or spec.translate) and spec.scale == (1.0, 1.0)


def augment(images: Tensor, spec: Affine, draws: Tensor) -> Tensor:
    """Rotate, shift, scale and flip each image by its own row of draws.

    `images` is float [N, C, H, W] in [0, 1] (before normalisation: what comes in from outside is
    0), or uint8 where it `flips_alone`; `draws` at least [N, DRAWS] in [0, 1). The result has the
    images' shape; each row depends on its own image and draws alone. Bilinear, about the image's
    centre; the flip comes first.
    """
    if not spec.moves:
        return images
    u = draws.to(images.device)
    if flips_alone(spec):  # nothing to interpolate
        return torch.where((u[:, 4] < 0.5).view(-1, 1, 1, 1), images.flip(-1), images)
    angle = (2 * u[:, 0] - 1) * math.radians(spec.degrees)
    shift = (2 * u[:, 1:3] - 1) * (2 * spec.translate)  # in grid units: a side measures 2
    low, high = spec.scale
    scale = low + (high - low) * u[:, 3]
    mirror = torch.where(u[:, 4] < 0.5, -1.0, 1.0) if spec.flip else torch.ones_like(angle)
    grid = _source_grid(images.shape[-2:], angle, shift, scale, mirror)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _source_grid(
    size: torch.Size, angle: Tensor, shift: Tensor, scale: Tensor, mirror: Tensor
) -> Tensor:
    """Where each output pixel comes from, [N, H, W, 2] in grid units.

    Written out element by element: a matrix product may round otherwise in another batch.
    """
    height, width = size
    device = angle.device
    ys = ((torch.arange(height, device=device) * 2 + 1) / height - 1).view(1, -1, 1)
    xs = ((torch.arange(width, device=device) * 2 + 1) / width - 1).view(1, 1, -1)
    x = xs - shift[:, 0].view(-1, 1, 1)
    y = ys - shift[:, 1].view(-1, 1, 1)
    cos = (torch.cos(angle) / scale).view(-1, 1, 1)
    sin = (torch.sin(angle) / scale).view(-1, 1, 1)
    # A rotation is one of pixels, not of grid units: sides of other lengths weigh in.
    aspect = width / height
    source_x = (cos * x + sin / aspect * y) * mirror.view(-1, 1, 1)
    source_y = cos * y - sin * aspect * x
    return torch.stack((source_x, source_y), dim=-1)

"""From a decoded image to an encoder's input tensor, for training and for features alike.

Takes a PIL image and an `ImageInput`; gives uint8 pixels, and floats normalised by the input's
mean and std. The two steps are apart so that pixels are kept in memory as bytes and augmented
before they are normalised. Nothing here is random (`transforms.py` is where pixels are).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jobs.images.bit_depth import eight_bits
from jobs.images.decode import named, open_image
from jobs.images.spec import ImageInput

_PIECE = 1 << 18  # numbers: a megabyte of float32

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def to_pixels(image: Image.Image, spec: ImageInput) -> Tensor:
    """The image as uint8 [C, S, S]: grey or RGB, its sides made equal to S = size.

    With `crop_pct`, timm's evaluation transform instead: the shorter side becomes S / crop_pct and
    the S x S centre is kept.
    """
    converted = eight_bits(image).convert("L" if spec.channels == 1 else "RGB")
    if spec.crop_pct is not None:
        return pixels_of(_centre(converted, spec.size, spec.crop_pct, spec.interpolation))
    if converted.size != (spec.size, spec.size):
        converted = converted.resize((spec.size, spec.size), _FILTERS[spec.interpolation])
    return pixels_of(converted)


def prepared(data: bytes, where: str, spec: ImageInput) -> Tensor:
    """An encoded image as uint8 [C, S, S]; StageError, which begins with `where`, if damaged."""
    with named(where):
        return to_pixels(open_image(data), spec)


def pixels_of(image: Image.Image) -> Tensor:
    """A grey or RGB image as uint8 [C, H, W]."""
    array = np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, -1)
    return torch.from_numpy(array.transpose(2, 0, 1).copy())  # what PIL lends is read-only


def _centre(image: Image.Image, size: int, crop_pct: float, interpolation: str) -> Image.Image:
    """torchvision's Resize and CenterCrop, which timm evaluates with, without importing them."""
    short = math.floor(size / crop_pct)
    width, height = image.size
    if width <= height:
        scaled = (short, int(short * height / width))
    else:
        scaled = (int(short * width / height), short)
    if scaled != image.size:
        image = image.resize(scaled, _FILTERS[interpolation])
    left, top = (round((side - size) / 2.0) for side in scaled)
    return image.crop((left, top, left + size, top + size))


def unit_range(pixels: Tensor) -> Tensor:
    """Pixels as float32 in [0, 1]: uint8 is divided by 255, floats are taken to be there."""
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels.float()


def normalise(images: Tensor, spec: ImageInput) -> Tensor:
    """Images in [0, 1], [N, C, H, W], minus mean and divided by std, channel by channel."""
    mean, std = _statistics(spec, images.device)
    return images.sub(mean).div_(std)


def to_input(pixels: Tensor, spec: ImageInput, room: Tensor | None = None) -> Tensor:
    """`normalise(unit_range(pixels))`, bit for bit.

    On a CPU in pieces that stay in its cache: passes over a whole batch of 224 px cost as much as
    decoding it does. `room`: what an earlier call gave and nobody reads any more, written over
    where it has the shape; memory that the system hands out anew costs more than the arithmetic.
    """
    if pixels.device.type != "cpu" or pixels.dtype != torch.uint8:
        return normalise(unit_range(pixels), spec)
    mean, std = _statistics(spec, pixels.device)
    images = room if room is not None and room.shape == pixels.shape else torch.empty(pixels.shape)
    rows = max(1, _PIECE // max(1, pixels[:1].numel()))
    for piece, values in zip(torch.split(images, rows), torch.split(pixels, rows), strict=True):
        piece.copy_(values).div_(255).sub_(mean).div_(std)
    return images


@lru_cache(maxsize=8)
def _statistics(spec: ImageInput, device: torch.device) -> tuple[Tensor, Tensor]:
    """Kept, because a copy to a GPU would make each step wait for the one before it."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    return mean.to(device), std.to(device)

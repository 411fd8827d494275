"""From a decoded image to an encoder's input tensor, for training and for features.

Takes a PIL image and an `ImageInput`; gives uint8 pixels, and floats normalised by the input's
mean and std. These are two steps, so memory holds pixels as bytes, and augmentation comes before
normalisation. Nothing here is random; `transforms.py` has the random changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jobs.images.bit_depth import eight_bits
from jobs.images.decode import DamagedImageError, naming_errors, open_image
from jobs.images.spec import ImageInput

_GREY = 128  # of 255

_PIECE = 1 << 18  # values: a megabyte of float32

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def to_pixels(image: Image.Image, spec: ImageInput) -> Tensor:
    """The image as uint8 [C, S, S]: grey or RGB, both sides resized to S = size.

    With `crop_pct`, timm's evaluation transform instead: the shorter side becomes S / crop_pct, and
    the S x S centre is cut out.
    """
    converted = eight_bits(image).convert("L" if spec.channels == 1 else "RGB")
    if spec.crop_pct is not None:
        return pixels_of(_crop_centre(converted, spec.size, spec.crop_pct, spec.interpolation))
    if converted.size != (spec.size, spec.size):
        converted = converted.resize((spec.size, spec.size), _FILTERS[spec.interpolation])
    return pixels_of(converted)


def prepared(data: bytes, where: str, spec: ImageInput) -> Tensor:
    """An encoded image as uint8 [C, S, S].

    Raises StageError, which begins with `where`, for a damaged image.
    """
    with naming_errors(where):
        return to_pixels(open_image(data), spec)


def or_grey(make: Callable[[], Tensor], spec: ImageInput, damaged: set[str]) -> Tensor:
    """The pixels that `make` gives; for a damaged image, mid-grey ones, its name in `damaged`."""
    try:
        return make()
    except DamagedImageError as error:
        damaged.add(error.where)
        return torch.full(spec.shape, _GREY, dtype=torch.uint8)


def pixels_of(image: Image.Image) -> Tensor:
    """A grey or RGB image as uint8 [C, H, W]."""
    array = np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, -1)
    return torch.from_numpy(array.transpose(2, 0, 1).copy())  # PIL's own memory is read-only


def _crop_centre(image: Image.Image, size: int, crop_pct: float, interpolation: str) -> Image.Image:
    """The same as torchvision's Resize and CenterCrop in timm's evaluation, without its import."""
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
    """Pixels as float32 in [0, 1]: uint8 is divided by 255, floats must be in [0, 1] already."""
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels.float()


def normalise(images: Tensor, spec: ImageInput) -> Tensor:
    """Images in [0, 1], [N, C, H, W], minus mean and divided by std, channel by channel."""
    mean, std = _statistics(spec, images.device)
    return images.sub(mean).div_(std)


def to_input(pixels: Tensor, spec: ImageInput, buffer: Tensor | None = None) -> Tensor:
    """`normalise(unit_range(pixels))`, bit for bit.

    On a CPU it works in pieces that stay in the cache: passes over a whole batch of 224 px cost as
    much as decoding it. `buffer` is the result of an earlier call, no longer read; it is
    overwritten where it has the right shape, since new memory costs more than the arithmetic.
    """
    if pixels.device.type != "cpu" or pixels.dtype != torch.uint8:
        return normalise(unit_range(pixels), spec)
    mean, std = _statistics(spec, pixels.device)
    images = (
        buffer if buffer is not None and buffer.shape == pixels.shape else torch.empty(pixels.shape)
    )
    rows = max(1, _PIECE // max(1, pixels[:1].numel()))
    for piece, values in zip(torch.split(images, rows), torch.split(pixels, rows), strict=True):
        piece.copy_(values).div_(255).sub_(mean).div_(std)
    return images


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device. The host waits for nothing that a GPU still has to do."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@lru_cache(maxsize=8)
def _statistics(spec: ImageInput, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and std, cached: copying them to a GPU would make each step wait for the last one."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    return to_device(mean, device), to_device(std, device)

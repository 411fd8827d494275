"""From a decoded image to an encoder's input tensor, for training and for features alike.

Takes a PIL image and an `ImageInput`; gives uint8 pixels, and floats normalised by the input's
mean and std. The two steps are apart so that pixels are kept in memory as bytes and augmented
before they are normalised. Nothing here is random.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jobs.corpus.depth import eight_bits
from jobs.pretrain.spec import ImageInput


def to_pixels(image: Image.Image, spec: ImageInput) -> Tensor:
    """The image as uint8 [C, S, S]: grey or RGB, resized (bilinear, not cropped) to S = size."""
    converted = eight_bits(image).convert("L" if spec.channels == 1 else "RGB")
    if converted.size != (spec.size, spec.size):
        converted = converted.resize((spec.size, spec.size), Image.Resampling.BILINEAR)
    array = np.array(converted, dtype=np.uint8).reshape(spec.size, spec.size, spec.channels)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def unit_range(pixels: Tensor) -> Tensor:
    """Pixels as float32 in [0, 1]: uint8 is divided by 255, floats are taken to be there."""
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels.float()


def normalise(images: Tensor, spec: ImageInput) -> Tensor:
    """Images in [0, 1], [N, C, H, W], minus mean and divided by std, channel by channel."""
    mean = torch.tensor(spec.mean, device=images.device).view(1, -1, 1, 1)
    std = torch.tensor(spec.std, device=images.device).view(1, -1, 1, 1)
    return (images - mean) / std

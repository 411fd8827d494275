"""Turn a batch of training images into the model's input: augment, normalise, erase.

Takes uint8 images and each image's 64-bit hash; gives the model's input, on the images' device.
Erasing is timm's, which draws from Python's global generator: it is seeded here with each image's
own hash and restored afterwards.
"""

from __future__ import annotations

import random

import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from jobs.images.augment import Hashes, augment, draws, flips_alone, mix
from jobs.images.pixels import to_input, unit_range
from jobs.images.spec import Augment, ImageInput

_ERASE = 101  # the column of an image's hash for erasing; augment.py uses the first ones


def training_input(
    images: Tensor, spec: ImageInput, changes: Augment, hashes: Hashes, buffer: Tensor | None
) -> Tensor:
    """Images uint8 [n, C, S, S] and hashes [n] -> float32 [n, C, S, S], augmented by `changes`.

    `buffer` is overwritten where it has the right shape, see `to_input`. Advances torch's global
    generator where erasing fills with random colours.
    """
    if changes.moves:
        images = images if flips_alone(changes) else unit_range(images)
        images = augment(images, changes, draws(hashes))
    return erase(to_input(images, spec, buffer), changes, hashes)


def erase(images: Tensor, spec: Augment, hashes: Hashes) -> Tensor:
    """Erase a rectangle in a share of the (normalised) images, [N, C, H, W], in place.

    Each image's draws come from its own hash alone. Advances torch's global generator in the modes
    that fill with random colours: seed it afterwards where that matters.
    """
    if not spec.erase:
        return images
    device = str(images.device)
    erasing = RandomErasing(  # type: ignore[no-untyped-call]
        spec.erase, mode=spec.erase_mode, device=device
    )
    before = random.getstate()
    try:
        for image, hashed in zip(images, mix(hashes, _ERASE).tolist(), strict=True):
            random.seed(hashed)
            if spec.erase_mode != "const":
                seed_torch(hashed >> 1, images.device)
            erasing(image)
    finally:
        random.setstate(before)
    return images


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's global generators of the CPU and of this device, and no others.

    `torch.manual_seed` also records the whole call stack, for a GPU that is not in use yet, which
    is too slow for every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)

"""A batch of training images as the model takes it: augmented, normalised, erased.

Takes images as they are kept (uint8) and each one's 64-bit hash; gives the model's input. All of it
runs on the device that the images are on. Erasing is timm's. timm draws from Python's global
generator, which is seeded here by each image's own hash and put back as it was.
"""

from __future__ import annotations

import random

import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from jobs.images.augment import Hashes, augment, draws, flips_alone, mix
from jobs.images.pixels import to_input, unit_range
from jobs.images.spec import Augment, ImageInput

_ERASE = 101  # the column of an image's hash that erasing is drawn from; augment.py has the first


def training_input(
    images: Tensor, spec: ImageInput, changes: Augment, hashes: Hashes, room: Tensor | None
) -> Tensor:
    """Images uint8 [n, C, S, S], hashes [n]: float32 [n, C, S, S], changed as `changes` says.

    `room` is written over where it has the shape, see `to_input`. Moves torch's global generator
    where erasing fills with random colours.
    """
    if changes.moves:
        images = images if flips_alone(changes) else unit_range(images)
        images = augment(images, changes, draws(hashes))
    return erase(to_input(images, spec, room), changes, hashes)


def erase(images: Tensor, spec: Augment, hashes: Hashes) -> Tensor:
    """Erase a rectangle of a share of the (normalised) images, in place, [N, C, H, W].

    Each image's draws come from its own hash alone. Moves torch's global generator in the modes
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

    `torch.manual_seed` also notes down, with the whole call stack, what to do on a GPU that is
    not in use yet: too dear for every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)

"""Mixup and CutMix on (noisy) labels, and random erasing: timm's, drawn from hashes.

timm draws from numpy's and Python's global generators, batch by batch. Here the images are mixed in
fixed groups of the global batch, each group's draws seeded by (seed, update, number of the group),
and erased image by image, seeded by each one's own hash: so neither depends on the number of
workers, nor on anything drawn before. The generators are put back as they were.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from jobs.images.augment import Hashes, mix
from jobs.images.spec import Augment
from jobs.pretrain.spec import Mix

_ERASE = 101  # the column of an image's hash that erasing is drawn from; augment.py has the first


def mixed(
    images: Tensor, labels: Tensor, spec: Mix, mixup: Mixup, *, seed: int, first_group: int
) -> tuple[Tensor, Tensor]:
    """A worker's share, mixed in place: images [n, C, S, S] and soft labels float [n, classes].

    n is a whole number of groups. `seed` is of the run and the update; `first_group` is the number
    of the share's first group in the global batch.
    """
    soft = []
    for number, start in enumerate(range(0, len(images), spec.group)):
        rows = slice(start, start + spec.group)
        drawn = mix(np.array([seed], np.uint64), first_group + number)[0]
        with _numpy_seeded(int(drawn >> np.uint64(32))):
            # A view, changed in place.
            _, targets = mixup(images[rows], labels[rows])
        soft.append(targets)
    return images, torch.cat(soft)


def make_mixup(spec: Mix, classes: int, label_smoothing: float) -> Mixup:
    """timm's own, which also smooths the labels it mixes."""
    return Mixup(  # type: ignore[no-untyped-call]
        mixup_alpha=spec.mixup,
        cutmix_alpha=spec.cutmix,
        prob=spec.prob,
        switch_prob=spec.switch_prob,
        mode=spec.mode,
        label_smoothing=label_smoothing,
        num_classes=classes,
    )


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


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)

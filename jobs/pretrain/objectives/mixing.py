"""Mixup and CutMix on (noisy) labels: timm's, with draws from hashes.

timm draws from numpy's global generator, batch by batch. Here, images are mixed in fixed groups of
the global batch. Each group's draws are seeded by (seed, update, number of the group), so they
depend neither on the number of workers nor on earlier draws. The global generator is restored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import Tensor

from jobs.images.augment import mix
from jobs.pretrain.spec import Mix


def mixed(
    images: Tensor, labels: Tensor, spec: Mix, mixup: Mixup, *, seed: int, first_group: int
) -> tuple[Tensor, Tensor]:
    """A worker's share, mixed in place: images [n, ...] and soft labels, float [n, classes].

    n is a multiple of the group size. `seed` is of the run and the update; `first_group` is the
    number of the share's first group in the global batch.
    """
    soft = []
    for number, start in enumerate(range(0, len(images), spec.group)):
        rows = slice(start, start + spec.group)
        drawn = mix(np.array([seed], np.uint64), first_group + number)[0]
        with _seed_numpy(int(drawn >> np.uint64(32))):
            # Slices are views, so mixing changes `images` in place.
            _, targets = mixup(images[rows], labels[rows])
        soft.append(targets)
    return images, torch.cat(soft)


def make_mixup(spec: Mix, classes: int, label_smoothing: float) -> Mixup:
    """timm's Mixup, which also smooths the labels that it mixes."""
    return Mixup(  # type: ignore[no-untyped-call]
        mixup_alpha=spec.mixup,
        cutmix_alpha=spec.cutmix,
        prob=spec.prob,
        switch_prob=spec.switch_prob,
        mode=spec.mode,
        label_smoothing=label_smoothing,
        num_classes=classes,
    )


@contextmanager
def _seed_numpy(seed: int) -> Iterator[None]:
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)

"""Mixup and CutMix on (noisy) labels: timm's, with draws from hashes.

timm draws from numpy's global generator, batch by batch. Here, images are mixed in fixed groups of
the global batch. Each group's draws are seeded by (seed, update, number of the group), so they
depend neither on the number of workers nor on earlier draws. The global generator is restored.
Runs that train together share the mixed images; each has soft labels of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from jobs.images.augment import mix
from jobs.pretrain.spec import Mix


class ImageMixup(Mixup):
    """timm's Mixup, which mixes images and labels in two steps."""

    def mix_images(self, images: Tensor) -> Any:
        """Mix images in place; the share of its own label in each: a number, or [n, 1]."""
        by_mode: Any = {"elem": self._mix_elem, "pair": self._mix_pair}
        return by_mode.get(self.mode, self._mix_batch)(images)

    def mix_labels(self, labels: Tensor, share: Any) -> Tensor:
        """Soft labels, float [n, classes], of class numbers [n] mixed as the images were."""
        soft: Tensor = mixup_target(labels, self.num_classes, share, self.label_smoothing)  # type: ignore[no-untyped-call]
        return soft


def mixed(
    images: Tensor,
    labels: Sequence[Tensor],
    spec: Mix,
    mixup: ImageMixup,
    *,
    seed: int,
    first_group: int,
) -> tuple[Tensor, list[Tensor]]:
    """A worker's share, mixed in place: images [n, ...], and soft labels of each run.

    `labels` are each run's, [n]; soft ones are float [n, classes]. n is a multiple of the group
    size. `seed` is of the run and the update; `first_group` is the number of the share's first
    group in the global batch.
    """
    soft: list[list[Tensor]] = [[] for _ in labels]
    for number, start in enumerate(range(0, len(images), spec.group)):
        rows = slice(start, start + spec.group)
        drawn = mix(np.array([seed], np.uint64), first_group + number)[0]
        with _seed_numpy(int(drawn >> np.uint64(32))):
            # Slices are views, so mixing changes `images` in place.
            share = mixup.mix_images(images[rows])
        for own, mixed_labels in zip(labels, soft, strict=True):
            mixed_labels.append(mixup.mix_labels(own[rows], share))
    return images, [torch.cat(each) for each in soft]


def make_mixup(spec: Mix, classes: int, label_smoothing: float) -> ImageMixup:
    """timm's Mixup, which also smooths the labels that it mixes."""
    return ImageMixup(  # type: ignore[no-untyped-call]
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

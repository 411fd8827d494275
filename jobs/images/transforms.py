"""Augmentation of a source image for training: timm's transforms, one image a call.

Takes a PIL image and a 64-bit hash (of a seed, an epoch and the sample's key); gives pixels. The
crop's box, RandAugment and the colour jitter are timm's and torchvision's own, but draw from a
generator seeded with the hash: a sample's augmentation depends on nothing else, neither the noise
level nor the worker. Safe in threads: each has its own generator, and no global one is read or
changed. Changes of decoded pixels are in `augment.py`.

torch scales the crop, from Pillow's own memory: in half of Pillow's time, to within 1 of 255 of its
pixels.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import timm.data.auto_augment
import timm.data.transforms
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as tv
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from jobs.images.bit_depth import eight_bits
from jobs.images.decode import naming_errors, open_image
from jobs.images.pixels import pixels_of, to_pixels
from jobs.images.spec import Augment, ImageInput


class _Draws(threading.local):
    """Replaces `random` in timm's modules: inside a call, this thread's own generator."""

    own: random.Random | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own or random, name)


_draws = _Draws()
# timm draws from the module `random`, which all threads share: seeding it would change other draws
# of the process, and they would change timm's.
for _module in (timm.data.auto_augment, timm.data.transforms):
    setattr(_module, "random", _draws)  # noqa: B010 (their types have no such name)

Change = Callable[[Image.Image, random.Random], Image.Image]


def needs_source_image(augment: Augment) -> bool:
    """Whether it needs the source image of the corpus instead of decoded pixels."""
    return augment.crop is not None or bool(augment.rand_augment) or augment.color_jitter > 0


def training_pixels(
    image: Image.Image, image_input: ImageInput, augment: Augment, hashed: int
) -> Tensor:
    """The image as uint8 [C, S, S], augmented with draws seeded by `hashed`.

    A pure function of its arguments. The same as `to_pixels` unless `needs_source_image`.
    """
    if not needs_source_image(augment):
        return to_pixels(image, image_input)
    generator = random.Random(int(hashed))
    before, _draws.own = _draws.own, generator
    try:
        if augment.crop is None:
            rgb = image_input.model_copy(update={"channels": 3})
            pixels = to_pixels(image, rgb)
        else:
            pixels = _crop_to(_to_colour(image), image_input.size, augment)
        changes = _make_changes(image_input, augment)
        if not changes and image_input.channels == 3:
            return pixels
        changed = tv.to_pil_image(pixels)
        for change in changes:
            changed = change(changed, generator)
    finally:
        _draws.own = before
    return pixels_of(changed.convert("L") if image_input.channels == 1 else changed)


def prepared(
    data: bytes, where: str, image_input: ImageInput, augment: Augment, hashed: int
) -> Tensor:
    """`training_pixels` of an encoded image.

    Raises StageError, which begins with `where`, for a damaged image.
    """
    with naming_errors(where):
        return training_pixels(open_image(data), image_input, augment, hashed)


def _to_colour(image: Image.Image) -> Tensor:
    """The whole image, uint8 [4, H, W]: red, green, blue and an unused byte.

    Pillow holds colour images in this form, and Arrow gives access without a copy. Grey images are
    converted, because timm's operations need colour.
    """
    rgb = eight_bits(image).convert("RGB") if image.mode != "RGB" else image
    rgb.load()
    try:
        lent = from_dlpack(pa.array(rgb).flatten())
    except ValueError:  # Pillow stores a large image in several blocks of memory
        lent = torch.from_numpy(np.array(rgb.convert("RGBX")))
    return lent.view(rgb.height, rgb.width, 4).permute(2, 0, 1)


def _crop_to(pixels: Tensor, size: int, augment: Augment) -> Tensor:
    """timm's random crop of [4, H, W], scaled to [3, size, size] with Pillow's filters."""
    crop = _make_crop(size, augment)
    top, left, height, width = crop.get_params(pixels, crop.scale, crop.ratio)
    mode = crop.interpolation
    if isinstance(mode, (tuple, list)):
        mode = _draws.choice(mode)
    cut = pixels[None, :, top : top + height, left : left + width]
    scaled = F.interpolate(cut, (size, size), mode=mode.value, antialias=True)
    colours: Tensor = scaled[0, :3].contiguous()
    return colours


@lru_cache(maxsize=8)
def _make_crop(size: int, augment: Augment) -> Any:
    return RandomResizedCropAndInterpolation(  # type: ignore[no-untyped-call]
        size,
        scale=augment.crop,
        ratio=augment.crop_ratio,
        interpolation=augment.crop_interpolation,
    )


@lru_cache(maxsize=8)
def _make_changes(image_input: ImageInput, augment: Augment) -> tuple[Change, ...]:
    """The changes after the crop, in timm's order: RandAugment, colour jitter."""
    changes = []
    if augment.rand_augment:
        changes.append(_make_rand_augment(augment.rand_augment, image_input, augment))
    if augment.color_jitter:
        changes.append(_make_color_jitter(augment.color_jitter))
    return tuple(changes)


def _make_rand_augment(notation: str, image_input: ImageInput, augment: Augment) -> Change:
    """timm's RandAugment, its operations drawn here: timm would use numpy's global generator."""
    mean = image_input.mean if len(image_input.mean) == 3 else image_input.mean[:1] * 3
    settings: dict[str, Any] = {
        "translate_const": int(image_input.size * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
    }
    if augment.crop_interpolation != "random":
        filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
        settings["interpolation"] = filters[augment.crop_interpolation]
    policy = rand_augment_transform(notation, settings)

    def change(image: Image.Image, generator: random.Random) -> Image.Image:
        for operation in _draw_operations(policy, generator):
            image = operation(image)
        return image

    return change


def _draw_operations(policy: Any, generator: random.Random) -> list[Any]:
    """The drawn operations: with replacement, or without where they have weights, as timm does."""
    if policy.choice_weights is None:
        return generator.choices(policy.ops, k=policy.num_layers)
    left, weights, chosen = list(policy.ops), list(policy.choice_weights), []
    for _ in range(policy.num_layers):
        picked = generator.choices(range(len(left)), weights)[0]
        chosen.append(left.pop(picked))
        weights.pop(picked)
    return chosen


def _make_color_jitter(strength: float) -> Change:
    """torchvision's ColorJitter(strength, strength, strength), with draws from `generator`."""
    low, high = max(0.0, 1 - strength), 1 + strength

    def change(image: Image.Image, generator: random.Random) -> Image.Image:
        steps = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation]
        for step in generator.sample(steps, k=len(steps)):
            image = step(image, generator.uniform(low, high))
        return image

    return change

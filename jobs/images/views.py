"""Views: seeded augmented copies of a training image, the same for every method of every cell.

View v of a sample is drawn from the views' seed and the sample's key alone, by `augment.py`, as
pre-training does. View 0 is the plain image and is not made here.
"""

from __future__ import annotations

import pyarrow as pa
import torch
from torch import Tensor

from jobs.images.augment import augment, draws
from jobs.images.masks import IGNORED
from jobs.images.pixels import unit_range
from jobs.images.spec import Views
from jobs.keyed_hash import hash64


def augmented(images: Tensor, keys: pa.Array, views: Views, view: int, scope: str) -> Tensor:
    """View `view` (1..V) of images uint8 [N, C, H, W]: float32 [N, C, H, W] in [0, 1].

    `scope` is the corpus's name, so equal keys of two corpora have different draws.
    """
    hashes = hash64(keys, seed=views.seed, scope=scope, stream=f"view{view}")
    return augment(unit_range(images), views.augment, draws(hashes))


def moved(masks: Tensor, keys: pa.Array, views: Views, view: int, scope: str) -> Tensor:
    """The masks, uint8 [N, S, S], of the images that `augmented` gives, by the nearest pixel.

    Pixels from outside the image are IGNORED.
    """
    hashes = hash64(keys, seed=views.seed, scope=scope, stream=f"view{view}")
    # What comes from outside is 0. So 0 is to be IGNORED here, and class c is c + 1.
    classes = (masks.int() + 1).remainder(IGNORED + 1)[:, None].float()
    found = augment(classes, views.augment, draws(hashes), mode="nearest")
    return (found[:, 0].int() + IGNORED).remainder(IGNORED + 1).to(torch.uint8)

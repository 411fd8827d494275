"""Views: seeded by key, the same in any batch."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from jobs.features.spec import Features
from jobs.images.spec import Affine, Augment, Views
from jobs.images.views import augmented

VIEWS = Views(count=2, augment=Augment(degrees=15, translate=0.1, scale=(0.9, 1.1)))
KEYS = pa.array([f"k{i}" for i in range(64)])
IMAGES = torch.randint(0, 256, (64, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(
    torch.uint8
)


def test_a_view_depends_on_its_own_key_and_not_on_the_batch() -> None:
    whole = augmented(IMAGES, KEYS, VIEWS, 1, "c")
    some = torch.from_numpy(np.random.default_rng(0).permutation(64)[:9])
    part = augmented(IMAGES[some], KEYS.take(pa.array(some.numpy())), VIEWS, 1, "c")
    assert torch.equal(part, whole[some])


def test_views_seeds_and_corpora_have_different_draws() -> None:
    one = augmented(IMAGES, KEYS, VIEWS, 1, "c")
    others = [
        augmented(IMAGES, KEYS, VIEWS, 2, "c"),
        augmented(IMAGES, KEYS, VIEWS.model_copy(update={"seed": 1}), 1, "c"),
        augmented(IMAGES, KEYS, VIEWS, 1, "d"),
    ]
    for other in others:
        assert (one - other).abs().mean(dim=(1, 2, 3)).min() > 0


def test_a_view_keeps_shape_and_range_and_changes_every_image() -> None:
    view = augmented(IMAGES, KEYS, VIEWS, 1, "c")
    assert (view.shape, view.dtype) == (IMAGES.shape, torch.float32)
    assert 0 <= view.min() <= view.max() <= 1
    assert (view - IMAGES / 255).abs().mean(dim=(1, 2, 3)).min() > 0.01


def test_views_are_never_copies_of_the_plain_image() -> None:
    view = augmented(IMAGES, KEYS, Views(), 1, "c")
    assert (view - IMAGES / 255).abs().mean(dim=(1, 2, 3)).min() > 0.001
    assert Features().views.augment.moves
    with pytest.raises(ValidationError, match=r"2 views that change nothing .* set count to 0"):
        Views(augment=Augment())
    assert Views(count=0) == Views(count=0, augment=Affine())

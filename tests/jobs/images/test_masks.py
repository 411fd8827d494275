"""Masks: counts of patches score pixels exactly, and masks move as their images do."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from scenes import IGNORED, scene

from jobs.images import masks, shifts
from jobs.images.spec import Affine, Shift, Views
from jobs.images.views import augmented, moved


@pytest.mark.parametrize("size", [(40, 32), (7, 50), (3, 3)])
def test_counts_of_patches_are_those_of_the_enlarged_prediction(size: tuple[int, int]) -> None:
    width, height = size
    drawn = np.random.default_rng(0)
    mask = drawn.choice([0, 1, 2, IGNORED], (height, width)).astype(np.uint8)
    patches = drawn.integers(0, 3, (5, 5)).astype(np.uint8)
    counts = masks.counts(mask, 5, 3)
    large = masks.enlarged(patches, width, height)
    for predicted in range(3):
        for label in range(3):
            pixels = int(((large == predicted) & (mask == label)).sum())
            assert counts[patches.reshape(-1) == predicted, label].sum() == pixels


def test_the_prediction_is_enlarged_as_by_torch() -> None:
    patches = np.arange(25, dtype=np.uint8).reshape(5, 5)
    found = torch.nn.functional.interpolate(
        torch.from_numpy(patches)[None, None].float(), (32, 41), mode="nearest-exact"
    )
    assert np.array_equal(masks.enlarged(patches, 41, 32), found[0, 0].numpy().astype(np.uint8))


def of_classes(mask: np.ndarray) -> np.ndarray:
    """An image whose grey tells the class of its pixel; black: none."""
    return np.array([80, 160, 240] + [0] * 253, np.uint8)[mask]


def test_views_move_masks_as_they_move_images() -> None:
    mask = masks.resized(scene(4)[1], 48)
    mask[mask == IGNORED] = 0
    image = torch.from_numpy(of_classes(mask))[None, None]
    keys = pa.array(["k"])
    change = Affine(degrees=20, translate=0.2, scale=(0.8, 1.2), flip=True)
    for number in range(1, 5):
        views = Views(count=4, augment=change)
        shown = (augmented(image, keys, views, number, "c")[0, 0] * 255).numpy()
        found = moved(torch.from_numpy(mask)[None], keys, views, number, "c")[0].numpy()
        agree = np.abs(shown - of_classes(found)) < 40
        assert agree.mean() > 0.93, "all but the edges, which are mixed"
        assert (found == IGNORED).any()
        assert not (found == mask).all()


def test_a_rotation_turns_the_mask_with_its_image() -> None:
    mask = scene(5)[1]
    mask[mask == IGNORED] = 0
    turn = Shift(kind="rotate", strength=30)
    for draw in (np.uint64(0), np.uint64(1)):
        shown = np.asarray(shifts.shifted(Image.fromarray(of_classes(mask)), turn, draw))
        found = masks.shifted(mask, turn, draw)
        assert (np.abs(shown.astype(int) - of_classes(found)) < 40).mean() > 0.93
        assert (found == IGNORED).any()
    assert masks.shifted(mask, Shift(kind="blur"), draw) is mask

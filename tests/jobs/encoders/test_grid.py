"""Features of patches: the model's own map, patch by patch, for images and masks of one batch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scenes import png, scene

from jobs.contract import StageError
from jobs.encoders.encoder import Architecture, EncoderCard, gridded
from jobs.encoders.grid import GridEncoder
from jobs.encoders.image import ImageEncoder
from jobs.images import masks
from jobs.images.pixels import to_input
from jobs.images.spec import Grid, ImageInput, Shift

CNN = {"channels": [8, 8, 16, 24]}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}


def encoder(model: str, options: Mapping[str, Any], **image: Any) -> ImageEncoder:
    given = ImageInput(**{"size": 32, **image})
    architecture = Architecture("timm", model, options, given, 0)
    torch.manual_seed(0)
    card = EncoderCard("timm", model, options, given, (), 24, None, None, "0" * 64)
    return ImageEncoder(card, architecture.build(), torch.device("cpu"))


def patches(model: str, options: Mapping[str, Any], grid: Grid, **image: Any) -> GridEncoder:
    found = gridded(encoder(model, options, **image), grid, 3)
    assert isinstance(found, GridEncoder)
    return found


def rows(count: int) -> pa.Table:
    made = [scene(number) for number in range(count)]
    columns = [image for image, _ in made], [png(mask) for _, mask in made]
    keys = [f"k{number}" for number in range(count)]
    return pa.table({"key": keys, "image": columns[0], "mask": columns[1]})


@pytest.mark.parametrize(
    ("model", "options", "grid", "side", "dim"),
    [
        ("resnet18", CNN, Grid(size=64), 2, 24),
        ("resnet18", CNN, Grid(size=64, layer=-3), 8, 8),
        ("vit_tiny_patch16_224", VIT, Grid(), 4, 24),
        ("vit_tiny_patch16_224", VIT, Grid(layer=0), 4, 24),
    ],
)
def test_a_patch_has_the_vector_of_its_cell_in_the_models_map(
    model: str, options: Mapping[str, Any], grid: Grid, side: int, dim: int
) -> None:
    found = patches(model, options, grid, crop_pct=0.5)
    assert (found.side, found.patches, found.dim) == (side, side**2, side**2 * dim)
    assert found.input.crop_pct is None, "the whole image has patches"
    (batch,) = found.batches(rows(3), 8, None, 1)
    vectors = found.features(batch.inputs).reshape(3, side, side, dim)
    images = to_input(batch.inputs.pixels, found.input)
    with torch.inference_mode():
        if grid.layer is not None:
            own = found.model.forward_intermediates(
                images, indices=[grid.layer], intermediates_only=True
            )[0].permute(0, 2, 3, 1)
        elif model.startswith("vit"):
            own = found.model.forward_features(images)[:, 1:].reshape(3, side, side, dim)
        else:
            own = found.model.forward_features(images).permute(0, 2, 3, 1)
    assert torch.equal(vectors, own)
    counted = found.targets(batch.inputs).reshape(3, side**2, 3)
    for number in range(3):
        assert np.array_equal(counted[number], masks.counts(scene(number)[1], side, 3))


def test_a_rotated_image_has_the_counts_of_the_rotated_mask() -> None:
    found, turn = patches("resnet18", CNN, Grid(size=64)), Shift(kind="rotate", strength=40)
    (turned,) = found.batches(rows(2), 8, turn, 1)
    (plain,) = found.batches(rows(2), 8, None, 1)
    assert found.targets(turned.inputs).sum() < found.targets(plain.inputs).sum()


def test_a_model_or_size_without_a_map_is_refused() -> None:
    with pytest.raises(StageError, match=r"no map of patches at 40 pixels .*features\.grid"):
        patches("vit_tiny_patch16_224", VIT, Grid(size=40))
    with pytest.raises(StageError, match="no map of patches of layer 9 at 64 pixels"):
        patches("resnet18", CNN, Grid(size=64, layer=9))

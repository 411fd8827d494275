"""Augmentation of source images: timm's, a pure function of the hash, safe in threads."""

import io
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation

from jobs.images.bit_depth import eight_bits
from jobs.images.pixels import to_pixels
from jobs.images.spec import Augment, ImageInput
from jobs.images.transforms import needs_source_image, training_pixels

A2 = Augment(crop=(0.08, 1.0), rand_augment="rand-m7-mstd0.5-inc1", color_jitter=0.4)
INPUT = ImageInput(size=24)


def picture(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    rough = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


def test_equal_hashes_draw_equally_and_others_differently() -> None:
    first = training_pixels(picture(), INPUT, A2, 7)
    random.random(), np.random.random(), torch.rand(1)  # other draws have no effect
    assert torch.equal(training_pixels(picture(), INPUT, A2, 7), first)
    assert first.dtype == torch.uint8
    assert first.shape == (3, 24, 24)
    others = [training_pixels(picture(), INPUT, A2, hashed) for hashed in range(8, 40)]
    assert len({other.numpy().tobytes() for other in others}) > 30


def test_a_hash_may_be_any_64_bit_number() -> None:
    training_pixels(picture(), INPUT, A2, 2**64 - 1)
    numpy_hash = np.array([2**64 - 1], np.uint64)[0]
    assert torch.equal(
        training_pixels(picture(), INPUT, A2, numpy_hash),
        training_pixels(picture(), INPUT, A2, 2**64 - 1),
    )


def test_no_global_generator_is_read_or_moved() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    training_pixels(picture(), INPUT, A2, 3)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == before


def test_timm_keeps_drawing_from_the_global_generator_outside() -> None:
    crop = RandomResizedCropAndInterpolation(8)
    random.seed(5)
    first = crop(picture()).tobytes()
    training_pixels(picture(), INPUT, A2, 3)
    random.seed(5)
    assert crop(picture()).tobytes() == first


def test_threads_draw_as_a_single_thread_does() -> None:
    def pixels(hashed: int) -> bytes:
        return training_pixels(picture(seed=hashed % 3), INPUT, A2, hashed).numpy().tobytes()

    alone = [pixels(hashed) for hashed in range(120)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(pixels, range(120))) == alone


def test_the_crop_is_timms() -> None:
    spec = Augment(crop=(0.2, 0.9), crop_interpolation="bicubic")
    random.seed(11)
    direct = RandomResizedCropAndInterpolation(
        24, scale=(0.2, 0.9), ratio=(3 / 4, 4 / 3), interpolation="bicubic"
    )(picture())
    ours = training_pixels(picture(), INPUT, spec, 11)
    assert_nearly(ours, np.array(direct))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "random"])
@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB", "P", "RGBA", "I;16"])
def test_the_crop_of_any_kind_of_image_is_timms(mode: str, interpolation: str) -> None:
    image = picture(123, 77).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    spec = Augment(crop=(0.2, 0.9), crop_interpolation=interpolation)
    timms = RandomResizedCropAndInterpolation(24, (0.2, 0.9), interpolation=interpolation)
    for hashed in range(6):
        random.seed(hashed)
        direct = timms(eight_bits(image).convert("RGB"))
        assert_nearly(training_pixels(image, INPUT, spec, hashed), np.array(direct))


def test_an_image_in_several_blocks_of_memory_is_cropped_like_any_other() -> None:
    image = picture(2400, 2300)
    assert image.width * image.height * 4 > 16 << 20
    spec = Augment(crop=(0.2, 0.9))
    random.seed(3)
    direct = RandomResizedCropAndInterpolation(24, (0.2, 0.9), interpolation="bicubic")(image)
    spec = Augment(crop=(0.2, 0.9), crop_interpolation="bicubic")
    assert_nearly(training_pixels(image, INPUT, spec, 3), np.array(direct))


def test_a_file_that_is_cut_short_is_an_error() -> None:
    stream = io.BytesIO()
    picture(200, 200).save(stream, "jpeg", quality=95)
    cut = io.BytesIO(stream.getvalue()[:3000])
    with pytest.raises(OSError, match="truncated"):
        training_pixels(Image.open(cut), INPUT, A2, 3)


def assert_nearly(pixels: torch.Tensor, expected: np.ndarray[Any, Any]) -> None:
    """Compare uint8 [C, H, W] with [H, W, C], up to rounding."""
    difference = np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - expected.astype(int))
    assert difference.max() <= 2
    assert difference.mean() < 0.2


def test_rand_augment_chooses_each_operation_equally_often() -> None:
    from jobs.images.transforms import _draw_operations, rand_augment_transform

    policy = rand_augment_transform("rand-m7-mstd0.5-inc1", {})
    counts: dict[str, int] = {}
    generator = random.Random(0)
    for _ in range(3000):
        for operation in _draw_operations(policy, generator):
            counts[operation.name] = counts.get(operation.name, 0) + 1
    expected = 6000 / len(policy.ops)
    assert len(counts) == len(policy.ops)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_grey_images_are_augmented_too() -> None:
    grey = ImageInput(size=24, channels=1, mean=(0.5,), std=(0.5,))
    assert training_pixels(picture().convert("L"), grey, A2, 1).shape == (1, 24, 24)


def test_only_crop_rand_augment_and_color_jitter_need_the_source_image() -> None:
    assert not needs_source_image(Augment(degrees=10, flip=True, erase=0.5))
    for spec in (
        Augment(crop=(0.5, 1.0)),
        Augment(rand_augment="rand-m9"),
        Augment(color_jitter=0.1),
    ):
        assert needs_source_image(spec)
    plain = training_pixels(picture(), INPUT, Augment(flip=True), 3)
    assert torch.equal(plain, to_pixels(picture(), INPUT))


@pytest.mark.parametrize(
    "fields",
    [
        {"rand_augment": "rand-x9"},
        {"rand_augment": "augmix-m3"},
        {"crop": (0.9, 0.1)},
        {"crop": (0.0, 1.0)},
        {"crop": (0.5, 1.2)},
    ],
)
def test_the_spec_refuses_an_augmentation_that_timm_does_not_know(fields: Any) -> None:
    with pytest.raises(ValidationError):
        Augment.model_validate(fields)


@pytest.mark.parametrize(
    ("crop_pct", "interpolation", "shape"),
    [
        (0.875, "bilinear", (60, 40)),
        (0.95, "bicubic", (33, 51)),
        (1.0, "bicubic", (24, 24)),
        (0.5, "bilinear", (301, 17)),
    ],
)
def test_the_centre_crop_is_timms_evaluation_transform(
    crop_pct: float, interpolation: Any, shape: tuple[int, int]
) -> None:
    spec = ImageInput(size=24, crop_pct=crop_pct, interpolation=interpolation)
    theirs = create_transform(
        (3, 24, 24), interpolation=interpolation, crop_pct=crop_pct, normalize=False
    )(picture(*shape))
    assert torch.equal(to_pixels(picture(*shape), spec), theirs)

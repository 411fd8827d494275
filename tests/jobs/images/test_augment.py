"""Augmentation is a pure function of a sample's own hash."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.images.augment import DRAWS, augment, draws, flips_alone, mix
from jobs.images.pixels import normalise, to_input, unit_range
from jobs.images.spec import Augment, ImageInput
from tests import pretend

ALL = Augment(degrees=30, translate=0.2, scale=(0.7, 1.3), flip=True)


def images(count: int, size: int = 12) -> torch.Tensor:
    return torch.rand(count, 2, size, size, generator=torch.Generator().manual_seed(count))


def test_mix_is_splitmix64() -> None:
    zero = np.zeros(1, np.uint64)
    assert int(mix(zero, 0)[0]) == 0xE220A8397B1DCDAF
    assert int(mix(zero, 1)[0]) == 0x6E789E6AA1B965F4


def test_draws_are_uniform_and_their_columns_unrelated() -> None:
    u = draws(np.arange(20_000, dtype=np.uint64), 4).double()
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert torch.allclose(u.mean(dim=0), torch.full((4,), 0.5).double(), atol=0.01)
    assert torch.allclose(u.std(dim=0), torch.full((4,), 12**-0.5).double(), atol=0.01)
    off_diagonal = torch.corrcoef(u.T) - torch.eye(4)
    assert float(off_diagonal.abs().max()) < 0.03


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=9), st.integers(1, 8))
def test_a_draw_depends_on_its_hash_and_column_alone(hashes: list[int], n: int) -> None:
    array = np.array(hashes, np.uint64)
    wide = draws(array, 9)
    assert torch.equal(draws(array, n), wide[:, :n])
    assert torch.equal(draws(array[-1:], 9), wide[-1:])


@given(st.integers(2, 9), st.integers(0, 2**32))
def test_an_image_is_augmented_alike_in_any_batch(count: int, start: int) -> None:
    batch = images(count)
    u = draws(np.arange(start, start + count, dtype=np.uint64))
    together = augment(batch, ALL, u)
    for row in range(count):
        assert torch.equal(augment(batch[row : row + 1], ALL, u[row : row + 1])[0], together[row])


def test_values_stay_in_range_and_images_do_change() -> None:
    batch = images(32)
    changed = augment(batch, ALL, draws(np.arange(32, dtype=np.uint64)))
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 1 + 1e-6
    assert all(not torch.allclose(a, b) for a, b in zip(batch, changed, strict=True))


def test_without_augmentation_the_images_are_returned_unchanged() -> None:
    batch = images(3)
    assert augment(batch, Augment(), torch.rand(3, DRAWS)) is batch


def extreme(column: int, value: float) -> torch.Tensor:
    u = torch.full((1, DRAWS), 0.5)
    u[0, column] = value
    return u


def test_a_rotation_by_ninety_degrees_turns_the_pixels() -> None:
    batch = images(1)
    turned = augment(batch, Augment(degrees=90), extreme(0, 1.0))
    expected = [torch.rot90(batch, k, (2, 3)) for k in (1, 3)]
    assert any(torch.allclose(turned, other, atol=1e-5) for other in expected)


def test_a_flip_mirrors_left_and_right() -> None:
    batch = images(1)
    flipped = augment(batch, Augment(flip=True), extreme(4, 0.1))
    assert torch.allclose(flipped, batch.flip(3), atol=1e-6)
    assert torch.allclose(augment(batch, Augment(flip=True), extreme(4, 0.9)), batch, atol=1e-6)


def test_a_translation_shifts_by_its_share_of_the_side_and_fills_with_black() -> None:
    batch = images(1)
    moved = augment(batch, Augment(translate=0.25), extreme(1, 1.0))  # 3 of 12 pixels, right
    assert torch.allclose(moved[..., 3:], batch[..., :-3], atol=1e-5)
    assert float(moved[..., :3].abs().max()) == 0


def test_scaling_by_two_enlarges_the_centre() -> None:
    batch = torch.zeros(1, 1, 12, 12)
    batch[..., 4:8, 4:8] = 1
    larger = augment(batch, Augment(scale=(1.0, 2.0)), extreme(3, 1.0))
    assert float(larger[..., 3:9, 3:9].min()) > 0.99
    assert abs(float(larger.sum()) - 64) < 1e-3, "four times the area"


@given(st.integers(1, 9), st.sampled_from([8, 32, 300]), st.sampled_from([1, 3]))
def test_images_normalised_in_pieces_equal_those_normalised_at_once(
    count: int, size: int, channels: int
) -> None:
    mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
    spec = ImageInput(size=size, channels=channels, mean=mean, std=std)
    generator = torch.Generator().manual_seed(count)
    shape = (count, channels, size, size)
    pixels = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    expected = normalise(unit_range(pixels), spec)
    assert torch.equal(to_input(pixels, spec), expected)
    buffer = torch.full(shape, torch.nan)
    assert to_input(pixels, spec, buffer) is buffer
    assert torch.equal(buffer, expected)
    assert torch.equal(to_input(pixels, spec, torch.empty(1, *shape)), expected)
    floats = unit_range(pixels)
    before = floats.clone()
    assert torch.equal(to_input(floats, spec), normalise(before, spec))
    assert torch.equal(floats, before)


def test_a_cpu_flips_to_the_bytes_of_a_gpu() -> None:
    spec, u = Augment(flip=True), draws(np.arange(32, dtype=np.uint64))
    pixels = torch.arange(32 * 3 * 4 * 5, dtype=torch.int32).byte().view(32, 3, 4, 5)
    before = pixels.clone()
    with pretend.gpu():
        on_gpu = augment(pixels.to("cuda"), spec, u).cpu()
    assert torch.equal(augment(pixels, spec, u), on_gpu)
    assert not torch.equal(on_gpu, before)
    assert torch.equal(pixels, before)


def test_flipping_bytes_equals_flipping_floats() -> None:
    spec, u = Augment(flip=True), draws(np.arange(32, dtype=np.uint64))
    assert flips_alone(spec)
    assert not flips_alone(ALL)
    pixels = (images(32) * 255).to(torch.uint8)
    flipped = augment(pixels, spec, u)
    assert not torch.equal(flipped, pixels)
    assert torch.equal(unit_range(flipped), augment(unit_range(pixels), spec, u))

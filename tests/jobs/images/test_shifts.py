"""Shifts are pure functions of seed and key, of the declared strength."""

import io

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jobs.contract import StageError
from jobs.images.decode import decode
from jobs.images.shifts import draws, shifted
from jobs.images.spec import Shift

SHIFTS = [
    Shift(kind="rotate", strength=25),
    Shift(kind="blur", strength=1),
    Shift(kind="invert"),
    Shift(kind="noise", strength=0.2),
]
KEYS = pa.array([f"k{i}" for i in range(400)])


def picture(mode: str = "L", side: int = 16, seed: int = 0) -> Image.Image:
    shape = (side, side) if mode == "L" else (side, side, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def pixels(image: Image.Image) -> npt.NDArray[np.float64]:
    return np.asarray(image).astype(float)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("shift", SHIFTS, ids=lambda s: s.kind)
def test_a_shift_changes_the_picture_but_not_its_mode_and_size(shift: Shift, mode: str) -> None:
    image = picture(mode)
    result = shifted(image, shift, draws(KEYS, shift)[0])
    assert (result.mode, result.size) == (mode, image.size)
    assert np.abs(pixels(result) - pixels(image)).mean() > 1


@given(st.sampled_from(SHIFTS), st.text(max_size=10), st.lists(st.text(max_size=10), max_size=5))
def test_a_shift_depends_on_seed_and_key_alone(shift: Shift, key: str, others: list[str]) -> None:
    image = picture()
    alone = shifted(image, shift, draws(pa.array([key]), shift)[0])
    among = shifted(image, shift, draws(pa.array([*others, key]), shift)[-1])
    assert np.array_equal(pixels(alone), pixels(among))


def test_another_seed_draws_other_noise() -> None:
    shift = Shift(kind="noise", strength=0.2)
    other = shift.model_copy(update={"seed": 1})
    one, two = (shifted(picture(), s, draws(KEYS, s)[0]) for s in (shift, other))
    assert not np.array_equal(pixels(one), pixels(two))


def test_rotation_goes_either_way_by_key() -> None:
    shift = Shift(kind="rotate", strength=25)
    image = picture()
    left = pixels(image.rotate(25, resample=Image.Resampling.BILINEAR))
    right = pixels(image.rotate(-25, resample=Image.Resampling.BILINEAR))
    found = [pixels(shifted(image, shift, draw)) for draw in draws(KEYS, shift)]
    lefts = sum(np.array_equal(f, left) for f in found)
    rights = sum(np.array_equal(f, right) for f in found)
    assert lefts + rights == len(KEYS)
    assert 140 < lefts < 260


def test_inverting_twice_gives_the_picture() -> None:
    shift, image = Shift(kind="invert"), picture("RGB")
    draw = draws(KEYS, shift)[0]
    assert np.array_equal(pixels(shifted(image, shift, draw)), 255 - pixels(image))
    twice = shifted(shifted(image, shift, draw), shift, draw)
    assert np.array_equal(pixels(twice), pixels(image))


def test_inversion_goes_part_of_the_way_and_not_beyond_the_negative() -> None:
    image, draw = picture(), draws(KEYS, SHIFTS[2])[0]
    part = shifted(image, Shift(kind="invert", strength=0.25), draw)
    expected = 0.75 * pixels(image) + 0.25 * (255 - pixels(image))
    assert np.abs(pixels(part) - expected).max() <= 0.5
    with pytest.raises(ValueError, match="strength 1, not 2"):
        Shift(kind="invert", strength=2)


def test_noise_has_the_declared_deviation_and_no_bias() -> None:
    shift = Shift(kind="noise", strength=0.1)
    grey = Image.new("L", (200, 200), 128)
    added = pixels(shifted(grey, shift, draws(KEYS, shift)[3])) - 128
    assert added.std() == pytest.approx(25.5, rel=0.03)
    assert abs(added.mean()) < 0.6
    assert np.mean(np.abs(added) < 25.5) == pytest.approx(0.683, abs=0.02)


def test_a_stronger_blur_is_smoother() -> None:
    image = picture(side=64)
    deviations = [
        pixels(shifted(image, Shift(kind="blur", strength=s), draws(KEYS, SHIFTS[1])[0])).std()
        for s in (0.5, 1.0, 2.0)
    ]
    assert deviations == sorted(deviations, reverse=True)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("L", "L"), ("RGB", "RGB"), ("P", "RGB"), ("RGBA", "RGB"), ("1", "RGB"), ("LA", "RGB")],
)
def test_every_mode_is_decoded_to_grey_or_rgb(mode: str, expected: str) -> None:
    stream = io.BytesIO()
    picture().convert(mode).save(stream, "PNG")
    assert decode(stream.getvalue(), "k").mode == expected


@pytest.mark.parametrize("cut", [0, 10, 60])
def test_broken_bytes_name_the_sample(cut: int) -> None:
    stream = io.BytesIO()
    picture().save(stream, "PNG")
    with pytest.raises(StageError, match=r"sample digits/0007 cannot be decoded"):
        decode(stream.getvalue()[:cut], "sample digits/0007")


def test_images_that_cannot_be_decoded_faithfully_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    floats, large = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(floats, "TIFF")
    Image.new("L", (64, 64)).save(large, "PNG")
    with pytest.raises(StageError, match=r"sample k .*floating-point numbers"):
        decode(floats.getvalue(), "sample k")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(StageError, match=r"sample k .*exceeds limit .* another `version`"):
        decode(large.getvalue(), "sample k")

"""Headers of images agree with Pillow; bytes that are no image are refused."""

import contextlib
import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jobs.images.decode import decode_fault
from jobs.images.headers import SMALL, HeaderError, read_header

RNG = np.random.default_rng(0)
LARGE = (80, 60)
assert LARGE[0] * LARGE[1] > SMALL  # so its structure decides whether it is plain


def encode(
    kind: str, mode: str = "RGB", size: tuple[int, int] = (20, 14), **options: object
) -> bytes:
    pixels = RNG.integers(0, 256, (size[1], size[0], 4), np.uint8)
    stream = io.BytesIO()
    image = Image.fromarray(pixels).convert("RGB")
    image = (
        image.convert(mode)
        if mode != "I;16"
        else Image.fromarray(RNG.integers(0, 65536, (size[1], size[0]), np.uint16))
    )
    image.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def animated(kind: str) -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("RGB", (20, 14), colour) for colour in ("red", "green", "blue")]
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
    return stream.getvalue()


def rotated(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("size", [(1, 1), (20, 14), (300, 7)])
def test_format_and_size_agree_with_pillow(kind: str, size: tuple[int, int]) -> None:
    data = encode(kind, size=size)
    header = read_header(data)
    with Image.open(io.BytesIO(data)) as image:
        assert (header.format, header.width, header.height) == (kind.lower(), *image.size)
    assert header == read_header(memoryview(data))


@pytest.mark.parametrize("options", [{"progressive": True}, {"quality": 5}, {"optimize": True}])
def test_every_usual_jpeg_is_plain(options: dict[str, object]) -> None:
    header = read_header(encode("JPEG", size=LARGE, **options))
    assert (header.width, header.height, header.plain, header.notes) == (*LARGE, True, ())


@pytest.mark.parametrize(
    "options", [{"lossless": True}, {"quality": 50}, {"exif": b"Exif\0\0II*\0"}]
)
def test_every_kind_of_webp_has_its_size(options: dict[str, object]) -> None:
    header = read_header(encode("WEBP", size=LARGE, **options))
    assert (header.width, header.height) == LARGE


@pytest.mark.parametrize(
    ("data", "notes"),
    [
        (encode("JPEG", "CMYK"), ("cmyk",)),
        (encode("PNG", "I;16"), ("sixteen_bit",)),
        (encode("PNG", "P"), ("palette",)),
        (encode("GIF", "P"), ("palette",)),
        (animated("GIF"), ("palette", "animated")),
        (animated("WEBP"), ("animated",)),
        (animated("PNG"), ("animated",)),
        (rotated("JPEG", 6), ("exif_rotated",)),
        (rotated("JPEG", 1), ()),
        (rotated("PNG", 3), ("exif_rotated",)),
        (rotated("WEBP", 8), ("exif_rotated",)),
        (encode("PNG", "RGBA"), ()),
    ],
)
def test_unusual_features_are_noted(data: bytes, notes: tuple[str, ...]) -> None:
    assert read_header(data).notes == notes


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_image"),
        (b"hello, world", "not_an_image"),
        (b"<html>404</html>" * 50, "not_an_image"),
        (b"\xff\xd8\xff", "broken_header"),
        (b"\xff\xd8\xff\xd9", "broken_header"),
        (encode("JPEG")[:30], "broken_header"),
        (encode("PNG")[:20], "broken_header"),
        (encode("WEBP")[:20], "broken_header"),
        (encode("GIF")[:9], "broken_header"),
        (b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBB", 13, b"IHDR", 0, 5, 8, 2), "broken_header"),
    ],
)
def test_bytes_that_are_no_image_are_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(HeaderError) as caught:
        read_header(data)
    assert caught.value.reason == reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_cut_short_is_not_plain(kind: str) -> None:
    data = encode(kind, size=LARGE)
    assert read_header(data).plain
    assert decode_fault(data) is None
    cut = data[: len(data) * 2 // 3]
    assert not read_header(cut).plain
    assert decode_fault(cut) in ("truncated", "undecodable")


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a"]),
)
def test_arbitrary_bytes_raise_nothing_but_header_errors(tail: bytes, start: bytes) -> None:
    try:
        header = read_header(start + tail)
    except HeaderError:
        return
    assert header.width > 0
    assert header.height > 0


@given(st.data())
def test_a_damaged_header_raises_nothing_but_header_errors(data: st.DataObject) -> None:
    whole = bytearray(
        data.draw(st.sampled_from([encode(k) for k in ("JPEG", "PNG", "WEBP", "TIFF")]))
    )
    for _ in range(3):
        at = data.draw(st.integers(0, min(len(whole), 80) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(HeaderError):
        read_header(bytes(whole))


def test_floating_point_pixels_are_a_fault() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(stream, "TIFF")
    assert decode_fault(stream.getvalue()) == "undecodable"

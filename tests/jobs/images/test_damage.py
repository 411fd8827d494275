"""A damaged or odd image is either refused by its check, or decoded by every later stage."""

import io
import struct
import subprocess
import sys
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from jobs.images import pixels, shifts, transforms
from jobs.images.decode import decode_fault
from jobs.images.headers import HeaderError, read_header
from jobs.images.spec import MOST_PIXELS, Augment, ImageInput, Shift

SMALL, LARGE = (16, 12), (90, 70)
PNG = b"\x89PNG\r\n\x1a\n"
MOST = 1_000_000  # pixels

INPUTS = [
    ImageInput(size=8, channels=channels, mean=(0.5,), std=(0.5,), crop_pct=crop)
    for channels, crop in ((1, None), (3, 0.9))
]


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def picture(size: tuple[int, int]) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


@lru_cache
def files() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 3
    found = {}
    for size in (SMALL, LARGE):
        image, name = picture(size), f" {size[0]}"
        odd = {"exif": exif, "icc_profile": b"p" * 3000, "comment": b"words"}
        found |= {
            "jpeg" + name: saved(image, "JPEG"),
            "progressive" + name: saved(image, "JPEG", progressive=True, optimize=True),
            "grey" + name: saved(image.convert("L"), "JPEG", restart_marker_blocks=2),
            "cmyk" + name: saved(image.convert("CMYK"), "JPEG"),
            "metadata" + name: saved(image, "JPEG", **odd),
            "png" + name: saved(image, "PNG", icc_profile=b"p" * 300),
            "plain png" + name: saved(image, "PNG"),
            "palette png" + name: saved(image.convert("P"), "PNG", transparency=3),
            "gif" + name: saved(image, "GIF", save_all=True, append_images=[image.rotate(9)]),
            "webp" + name: saved(image, "WEBP", exif=exif),
            "lossless webp" + name: saved(image, "WEBP", lossless=True),
            "bmp" + name: saved(image, "BMP"),
            "tiff" + name: saved(image, "TIFF"),
            "packed tiff" + name: saved(image, "TIFF", compression="tiff_adobe_deflate"),
            "ppm" + name: saved(image, "PPM"),
        }
    return found


def refused(data: bytes, max_pixels: int = MOST) -> str | None:
    """The reason why a corpus refuses the image, found as its build does."""
    try:
        header = read_header(data)
    except HeaderError as error:
        return error.reason
    if header.width * header.height > max_pixels:
        return "too_many_pixels"
    return None if header.plain else decode_fault(data, max_pixels)


def use_everywhere(data: bytes) -> None:
    """Decode as pre-training (in memory and streamed), features and fine-tuning do."""
    for spec in INPUTS:
        assert pixels.prepared(data, "it", spec).shape == spec.shape
        crop = Augment(crop=(0.5, 1.0), rand_augment="rand-m7-n1")
        assert transforms.prepared(data, "it", spec, crop, 7).shape == spec.shape
        for shift in (None, Shift(kind="blur")):
            assert shifts.prepared(data, "it", spec, shift, np.uint64(1)).shape == spec.shape


REASONS = (
    *("empty_image", "not_an_image", "broken_header", "truncated", "undecodable"),
    "too_many_pixels",  # says a damaged header
)


@given(st.data())
def test_a_changed_byte_is_refused_or_does_no_harm_later(data: st.DataObject) -> None:
    whole = bytearray(files()[data.draw(st.sampled_from(sorted(files())))])
    # Most faults are in the headers, most bytes are not.
    at = data.draw(st.integers(0, 700) | st.integers(0, len(whole))) % len(whole)
    whole[at] = data.draw(st.integers(0, 255))
    reason = refused(bytes(whole))
    if reason is None:
        use_everywhere(bytes(whole))
    else:
        assert reason in (*REASONS, "too_many_pixels")


@given(st.data())
def test_an_image_cut_anywhere_is_refused_or_does_no_harm_later(data: st.DataObject) -> None:
    whole = files()[data.draw(st.sampled_from(sorted(files())))]
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    tail = data.draw(st.sampled_from([b"", b"\0", b"\xff\xd9", whole[-12:]]))
    reason = refused(cut + tail)
    if reason is None:
        use_everywhere(cut + tail)
    else:
        assert reason in REASONS


@pytest.mark.parametrize("name", sorted(files()))
def test_every_good_image_is_used(name: str) -> None:
    assert refused(files()[name]) is None
    use_everywhere(files()[name])


@pytest.mark.parametrize("name", [f"{kind} 90" for kind in ("jpeg", "progressive", "png", "webp")])
def test_a_quarter_of_a_photograph_is_not_used(name: str) -> None:
    whole = files()[name]
    assert refused(whole[: len(whole) // 4]) in REASONS


def chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def png_with(before: bytes = b"", after: bytes = b"", size: tuple[int, int] = LARGE) -> bytes:
    """A PNG with more chunks before and after its pixels."""
    plain = saved(picture(size), "PNG")
    at = plain.index(b"IDAT") - 4
    return plain[:at] + before + plain[at:-12] + after + plain[-12:]


CHUNKS = (
    b"IHDR PLTE tRNS gAMA cHRM sRGB pHYs tIME bKGD sBIT hIST tEXt zTXt iTXt iCCP eXIf IDAT acTL"
)


@given(
    st.sampled_from(CHUNKS.split()),
    st.binary(max_size=40) | st.sampled_from([1, 4, 9, 13, 32]).map(bytes),
    st.booleans(),
)
def test_a_png_with_an_odd_chunk_is_refused_or_does_no_harm_later(
    kind: bytes, data: bytes, first: bool
) -> None:
    odd = png_with(chunk(kind, data)) if first else png_with(after=chunk(kind, data))
    if refused(odd) is None:
        use_everywhere(odd)


def text_chunk(kind: bytes, size: int) -> bytes:
    packed = zlib.compress(b"a" * size)
    head = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0", b"tEXt": b"k\0"}[kind]
    return chunk(kind, head + (b"a" * size if kind == b"tEXt" else packed))


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_texts_and_profiles_that_pillow_refuses_are_refused_at_once(
    kind: bytes, first: bool, size: tuple[int, int]
) -> None:
    for length in (1000, PngImagePlugin.MAX_TEXT_CHUNK + 1):
        text = text_chunk(kind, length)
        odd = png_with(text, size=size) if first else png_with(after=text, size=size)
        if refused(odd) is None:
            use_everywhere(odd)
        else:
            assert length > 1000
    if kind != b"iCCP":  # a profile after the pixels is not read
        assert refused(odd) == "undecodable"


def test_many_texts_of_a_png_are_not_plain() -> None:
    few, many = (png_with(text_chunk(b"tEXt", 1 << 16) * count) for count in (2, 20))
    assert read_header(few).plain
    assert not read_header(many).plain


def gif(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    control = b"!\xf9\x04\x08\0\0\0\0"  # the frame is disposed of: Pillow fills it at once
    image = b"," + struct.pack("<4H", 0, 0, *frame) + b"\0" + b"\x02\x02\x44\x01\0"
    return b"GIF89a" + struct.pack("<HH", *screen) + b"\0\0\0" + control + image + b";"


def huge(kind: str, side: int) -> bytes:
    """An image of few bytes whose header says that it has side x side pixels."""
    if kind == "gif":
        return gif((side, side), (1, 1))
    if kind == "frame of a gif":
        return gif((1, 1), (side, side))
    if kind == "png":
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        return (
            PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        )
    if kind == "second header of a png":
        return png_with(chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)))
    if kind == "webp":
        body = b"VP8X" + struct.pack("<I", 10) + bytes(4)
        body += 2 * (min(side, 1 << 24) - 1).to_bytes(3, "little")
        return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    if kind == "ppm":
        return f"P6 {side} {side} 255\n".encode() + bytes(30)
    whole = bytearray(files()[f"{kind} 16"])
    if kind == "jpeg":
        at = whole.index(b"\xff\xc0") + 5
        whole[at : at + 4] = struct.pack(">HH", side, side)
    elif kind == "bmp":
        whole[18:26] = struct.pack("<ii", side, side)
    else:
        (at,) = struct.unpack_from("<I", whole, 4)
        for entry in range(at + 2, len(whole) - 12, 12):
            if struct.unpack_from("<H", whole, entry)[0] in (256, 257):
                struct.pack_into("<HII", whole, entry + 2, 4, 1, side)
    return bytes(whole)


HUGE = [
    "gif",
    "frame of a gif",
    "png",
    "second header of a png",
    "webp",
    "ppm",
    "jpeg",
    "bmp",
    "tiff",
]


@pytest.mark.parametrize("kind", HUGE)
@pytest.mark.parametrize("side", [1_001, 20_000, 65_535])
def test_more_pixels_than_allowed_are_refused_before_they_are_decoded(kind: str, side: int) -> None:
    assert refused(huge(kind, side)) == "too_many_pixels"


def test_the_limit_of_the_corpus_is_the_only_one() -> None:
    side = 13_400  # above both limits of Pillow itself, those of its warning and of its error
    large = saved(Image.new("1", (side, side)), "PNG")
    assert side * side < MOST_PIXELS
    assert refused(large, max_pixels=side * side - 1) == "too_many_pixels"
    assert refused(large, max_pixels=side * side) is None


def test_pillows_warnings_are_not_printed(tmp_path: Path) -> None:
    """In a process of its own, because pytest collects warnings."""
    tiff = files()["tiff 16"]
    odd = [tiff[:at] + b"\xff" + tiff[at + 1 :] for at in range(len(tiff) - 200, len(tiff))]
    for number, data in enumerate([saved(Image.new("1", (9_600, 9_600)), "PNG"), *odd]):
        (tmp_path / str(number)).write_bytes(data)
    code = """
import sys, pathlib
from jobs.images.headers import HeaderError, read_header
from jobs.images.decode import decode_fault
for file in pathlib.Path(sys.argv[1]).iterdir():
    try:
        read_header(file.read_bytes())
    except HeaderError:
        continue
    decode_fault(file.read_bytes(), 100_000_000)
"""
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

"""Headers: read an encoded image's format, size and structure without decoding it.

Own code, because Pillow has to decode a photograph to find damage in it, which takes some 40 times
as long (`benchmarks/own_code.py`). Every row of every corpus is read here.

Takes encoded bytes; gives format, size, notes (CMYK, 16 bits, palette, several frames, EXIF
rotation) and whether the image is plain: all its parts are in place and none is unusual, as
`structure.py` finds for JPEG and PNG. Reads JPEG, PNG, GIF and WebP itself, in some microseconds;
BMP, TIFF and PPM with Pillow. An image that is not plain must be decoded. Never changes a byte.
"""

from __future__ import annotations

import io
import struct
from typing import NamedTuple, TypeAlias

from PIL import Image

from jobs.images.structure import jpeg_is_plain, png_is_plain

Bytes: TypeAlias = "bytes | memoryview"

EXTENSIONS = {
    "jpg": "jpeg",
    "jpeg": "jpeg",
    "jpe": "jpeg",
    "png": "png",
    "gif": "gif",
    "webp": "webp",
    "bmp": "bmp",
    "tif": "tiff",
    "tiff": "tiff",
    "ppm": "ppm",
    "pgm": "ppm",
    "pbm": "ppm",
}
"""File name extension -> image format."""

SMALL = 64 * 64
"""Pixels up to which an image is always decoded: it costs no more than to look at its structure."""

_PILLOW_FORMATS = ("BMP", "TIFF", "PPM")
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_COMMON_SOF = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended, progressive
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112


class HeaderError(ValueError):
    """The bytes are not a readable image; `reason` is one word for the quarantine."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Header(NamedTuple):  # a tuple for speed: every row of every corpus has one
    """The header of an image."""

    format: str  # jpeg, png, gif, webp, bmp, tiff, ppm
    width: int  # pixels, before any EXIF rotation
    height: int
    plain: bool  # nothing is missing or unusual; if not, only decoding can tell
    notes: tuple[str, ...] = ()  # cmyk, sixteen_bit, palette, animated, exif_rotated


def read_header(data: Bytes) -> Header:
    """The header of an encoded image.

    Raises HeaderError with reason `empty_image` (no bytes), `not_an_image` (no known format) or
    `broken_header` (a known format whose size cannot be found, or is 0). Pillow's limit on the size
    of an image gives `too_many_pixels`.
    """
    if not len(data):
        raise HeaderError("empty_image")
    start = bytes(data[:12])
    try:
        if start.startswith(b"\xff\xd8\xff"):
            header = _read_jpeg(data)
        elif start.startswith(_PNG):
            header = _read_png(data)
        elif start[:6] in (b"GIF87a", b"GIF89a"):
            header = _read_gif(data)
        elif start[:4] == b"RIFF" and start[8:] == b"WEBP":
            header = _read_webp(data)
        else:
            header = _read_with_pillow(data)
    except (IndexError, struct.error):
        raise HeaderError("broken_header") from None
    if header.width < 1 or header.height < 1:
        raise HeaderError("broken_header")
    return header


def _read_jpeg(data: Bytes) -> Header:
    at, notes = 2, []
    while True:
        if data[at] != 0xFF:
            raise HeaderError("broken_header")
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a length
            at += 2
            continue
        if marker in (0xD9, 0xDA):  # the end, or pixels, before any size
            raise HeaderError("broken_header")
        if marker in _SOF:
            break
        length = data[at + 2] << 8 | data[at + 3]
        if marker == 0xE1 and bytes(data[at + 4 : at + 10]) == b"Exif\x00\x00":
            notes += _exif_rotation(data[at + 10 : at + 2 + length])
        at += 2 + length
    precision, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
    notes += ["cmyk"] * (components == 4) + ["sixteen_bit"] * (precision > 8)
    plain = (
        width * height > SMALL and marker in _COMMON_SOF and precision == 8 and jpeg_is_plain(data)
    )
    return Header("jpeg", width, height, plain, tuple(notes))


def _read_png(data: Bytes) -> Header:
    width, height, bit_depth, colour = struct.unpack_from(">IIBB", data, 16)
    if bytes(data[12:16]) != b"IHDR":
        raise HeaderError("broken_header")
    notes = ["sixteen_bit"] * (bit_depth == 16) + ["palette"] * (colour == 3)
    at = 33
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in (b"IDAT", b"IEND"):
            break
        if kind == b"acTL":
            notes.append("animated")
        if kind == b"eXIf":
            notes += _exif_rotation(data[at + 8 : at + 8 + length])
        at += 12 + length
    plain = width * height > SMALL and png_is_plain(data)
    return Header("png", width, height, plain, tuple(notes))


def _read_gif(data: Bytes) -> Header:
    """The size that Pillow gives: the screen, or the first frame where that is larger."""
    width, height = struct.unpack_from("<HH", data, 6)
    right, bottom, after = _gif_frame(data, _after_colours(data, 10, 13))
    try:
        _gif_frame(data, after)
        notes = ["palette", "animated"]
    except (IndexError, struct.error):  # no second frame
        notes = ["palette"]
    return Header("gif", max(width, right), max(height, bottom), False, tuple(notes))


def _gif_frame(data: Bytes, at: int) -> tuple[int, int, int]:
    """The next frame's right and bottom edge, and the position after it.

    Raises IndexError or struct.error where there is none.
    """
    while (kind := data[at]) != 0x2C:  # an image
        if kind == 0x3B:  # the end
            raise IndexError
        at = _after_blocks(data, at + 2) if kind == 0x21 else at + 1  # an extension
    left, top, width, height = struct.unpack_from("<4H", data, at + 1)
    pixels = _after_colours(data, at + 9, at + 10)
    return left + width, top + height, _after_blocks(data, pixels + 1)


def _after_colours(data: Bytes, flags: int, at: int) -> int:
    """The position after a table of colours at `at`, if the byte at `flags` announces one."""
    return at + (3 << (data[flags] & 7) + 1) if data[flags] & 0x80 else at


def _after_blocks(data: Bytes, at: int) -> int:
    while at < len(data) and data[at]:
        at += 1 + data[at]
    return at + 1


def _read_webp(data: Bytes) -> Header:
    kind, notes = bytes(data[12:16]), []
    if kind == b"VP8 ":
        if bytes(data[23:26]) != b"\x9d\x01\x2a":
            raise HeaderError("broken_header")
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8X":
        flags = data[20]
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        notes = ["animated"] * bool(flags & 0x02)
        notes += _webp_rotation(data) if flags & 0x08 else []
    else:
        raise HeaderError("broken_header")
    return Header("webp", width, height, False, tuple(notes))


def _webp_rotation(data: Bytes) -> list[str]:
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            block = data[at + 8 : at + 8 + length]
            return _exif_rotation(block[6:] if bytes(block[:6]) == b"Exif\x00\x00" else block)
        at += 8 + length + length % 2
    return []


def _exif_rotation(tiff: Bytes) -> list[str]:
    """`[exif_rotated]` where an EXIF block rotates or mirrors the image, else empty."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(tiff[:2]))
    if order is None or len(tiff) < 8:
        return []
    (first,) = struct.unpack_from(f"{order}I", tiff, 4)
    if first + 2 > len(tiff):
        return []
    (count,) = struct.unpack_from(f"{order}H", tiff, first)
    for at in range(first + 2, min(first + 2 + 12 * count, len(tiff) - 11), 12):
        tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, at)
        if tag == _ORIENTATION:
            return ["exif_rotated"] if 2 <= value <= 8 else []
    return []


def _read_with_pillow(data: Bytes) -> Header:
    try:
        with Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as image:
            kind = str(image.format).lower()
            notes = ["cmyk"] * (image.mode == "CMYK") + ["palette"] * (image.mode == "P")
            notes += ["sixteen_bit"] * image.mode.startswith("I")
            notes += ["animated"] * bool(getattr(image, "is_animated", False))
            return Header(kind, image.width, image.height, False, tuple(notes))
    except Image.DecompressionBombError:
        raise HeaderError("too_many_pixels") from None
    except MemoryError:
        raise
    except Exception:  # decoders of broken bytes raise nearly any exception
        raise HeaderError("not_an_image") from None

"""Structure: whether a JPEG or PNG has every part that its format asks for, and nothing unusual.

Takes encoded bytes; says whether they are *plain*. A plain image is taken to be decodable; any
other must be decoded to be sure. To decode a photograph takes some 40 times as long.

A PNG is plain if all its checksums are right. A JPEG has none, but its decoders make do with any
pixels: only its tables and its headers can stop them. So these are decoded without their pixels.
Nothing here raises.
"""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache

import numpy as np

from jobs.images.decode import decode_fault

_START, _END = b"\xff\xd8", b"\xff\xd9"
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended, progressive
_SCAN, _COMMENT = 0xDA, 0xFE
_BETWEEN_SCANS = frozenset((_SCAN, _COMMENT, 0xC4, 0xDB, 0xDD))  # also tables, restart interval
_JFIF = b"\xff\xe0\x00\x10JFIF\x00"
_SIDES = struct.pack(">HH", 16, 16)  # pixels

_ANY_LENGTH = range(1 << 31)
_PNG_CHUNKS = {
    b"IHDR": (13,),
    b"PLTE": range(3, 769, 3),
    b"IDAT": _ANY_LENGTH,
    b"IEND": (0,),
    b"gAMA": (4,),
    b"cHRM": (32,),
    b"sRGB": (1,),
    b"pHYs": (9,),
    **dict.fromkeys((b"tIME", b"bKGD", b"sBIT", b"tEXt"), _ANY_LENGTH),
}
"""The usual chunks of a PNG, and how many bytes each may have."""

_BEGINNING = 1 << 10  # bytes of a PNG's pixels that are decompressed
_MOST_TEXT = 1 << 20  # bytes of all chunks of a PNG other than pixels
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""PNG colour type -> its bit depths."""
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""The passes of an interlaced PNG: first column and row, and the steps between its pixels."""


def jpeg_is_plain(data: bytes | memoryview) -> bool:
    """Whether a baseline or progressive JPEG of 8 bits is plain.

    Nothing but scans and their tables lies between the first scan and the end mark, which is the
    last thing in the file, and what is left without the pixels can be decoded.
    """
    left = _without_pixels(data)
    return left is not None and _decodes(left)


@lru_cache(maxsize=64)  # most images of a corpus have the same tables
def _decodes(data: bytes) -> bool:
    return decode_fault(data) is None


def _without_pixels(data: bytes | memoryview) -> bytes | None:
    """A JPEG of 16 x 16 pixels with the same segments and empty scans; None for odd structure.

    Without comments and JFIF's segment, which do no harm and would be different in each image.
    """
    values = np.frombuffer(data, np.uint8)
    marks = np.flatnonzero(values[:-1] == 0xFF)
    kinds = values[marks + 1]
    # Among pixels, 0xFF is followed by 0 or by a restart's number; before a mark, by a fill byte.
    marks = marks[(kinds != 0) & (kinds >> 3 != 0xD0 >> 3) & (kinds != 0xFF)]
    kept, at, scanning = [_START], 2, False
    for mark in marks.tolist():
        if mark < at:  # inside a segment
            continue
        marker = data[mark + 1]
        if marker == _END[1]:
            return b"".join((*kept, _END)) if scanning and mark + 2 == len(data) else None
        if mark + 4 > len(data) or (marker not in _BETWEEN_SCANS if scanning else mark > at):
            return None
        at = mark + 2 + (data[mark + 2] << 8 | data[mark + 3])
        segment = bytes(data[mark:at])
        if marker in _FRAMES:
            segment = segment[:5] + _SIDES + segment[9:]
        if marker != _COMMENT and not segment.startswith(_JFIF):
            kept.append(segment)
        scanning |= marker == _SCAN
    return None


def png_is_plain(data: bytes | memoryview) -> bool:
    """Whether a PNG is plain: usual chunks with right checksums, up to the end.

    Compressed texts and profiles are not usual: Pillow refuses some of them.
    """
    view, at, kinds, text = memoryview(data), 8, list[bytes](), 0
    while at + 12 <= len(view):
        length, kind = struct.unpack_from(">I4s", view, at)
        stop = at + 8 + length
        if length not in _PNG_CHUNKS.get(kind, ()) or stop + 4 > len(view):
            return False
        if zlib.crc32(view[at + 4 : stop]) != struct.unpack_from(">I", view, stop)[0]:
            return False
        text += 0 if kind == b"IDAT" else length
        if kind == b"IDAT" and kind not in kinds and not _inflates(view[at + 8 : stop]):
            return False
        if not (kind == b"IDAT" and kinds[-1:] == [kind]):  # many chunks of pixels are as one
            kinds.append(kind)
        at = stop + 4
    if at != len(view) or text > _MOST_TEXT or kinds[:1] != [b"IHDR"] or kinds[-1] != b"IEND":
        return False
    depth, colour, *methods = view[24:29]
    once = [kinds.count(kind) for kind in (b"IHDR", b"IDAT", b"IEND")] == [1, 1, 1]
    palette = b"PLTE" in kinds[: kinds.index(b"IDAT")] if once else False
    return (
        once
        and depth in _DEPTHS.get(colour, ())
        and (colour != 3 or palette)
        and methods in ([0, 0, 0], [0, 0, 1])
    )


def _inflates(packed: memoryview) -> bool:
    """Whether the beginning of a PNG's pixels is a zlib stream: checksums may be of any bytes."""
    try:
        return bool(zlib.decompressobj().decompress(packed[:_BEGINNING], _BEGINNING))
    except zlib.error:
        return False


def png_pixels_are_whole(data: bytes | memoryview) -> bool:
    """Whether a PNG with a sound header has all its rows of pixels, and right checksums up to them.

    Pillow compares no checksum of pixels, and fills missing rows with zeros. In a photograph that
    is seen; in a mask it would be a class.
    """
    view, at, packed = memoryview(data), 8, list[memoryview]()
    while at + 12 <= len(view):
        length, kind = struct.unpack_from(">I4s", view, at)
        stop = at + 8 + length
        if kind == b"IDAT" or not packed:
            if stop + 4 > len(view):
                return False
            if zlib.crc32(view[at + 4 : stop]) != struct.unpack_from(">I", view, stop)[0]:
                return False
        if kind == b"IDAT":
            packed.append(view[at + 8 : stop])
        elif packed:
            break
        at = stop + 4
    wanted = _pixel_bytes(view)
    try:
        return len(zlib.decompressobj().decompress(b"".join(packed), wanted)) == wanted
    except zlib.error:
        return False


def _pixel_bytes(view: memoryview) -> int:
    """How many bytes the header of a PNG asks for, with one filter byte for each row."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", view, 16)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    total = 0
    for x, y, dx, dy in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-max(width - x, 0) // dx), -(-max(height - y, 0) // dy)
        total += rows * (1 + (columns * bits + 7) // 8) if columns else 0
    return total

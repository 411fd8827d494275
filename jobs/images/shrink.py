"""Shrinking: large images stored smaller, so that training has fewer pixels to decode.

Takes an image's encoded bytes and a `Shrink`; gives a JPEG whose shorter side is as asked for. What
training sees is what it would see of the original, at another size: the pixels as they are decoded,
in mode L if they are grey and in RGB otherwise, without alpha, in the orientation of the file. Of
the metadata, only an EXIF orientation is kept; colour profiles are applied nowhere, so none is
stored. Never enlarges, and knows no corpus.
"""

from __future__ import annotations

import io

from PIL import Image

from jobs.images.decode import open_image
from jobs.images.spec import Shrink

_MOST_SIDE = 65_500  # pixels of a JPEG
_ORIENTATION = 0x0112


def smaller_size(width: int, height: int, shrink: Shrink) -> tuple[int, int] | None:
    """The size at which an image of width x height is stored; None: it is small enough.

    An image that would be too long for a JPEG stays as it is, too.
    """
    shorter, longer = min(width, height), max(width, height)
    if shorter <= shrink.shorter_side:
        return None
    longer = round(longer * shrink.shorter_side / shorter)
    if longer > _MOST_SIDE:
        return None
    return (shrink.shorter_side, longer) if width <= height else (longer, shrink.shorter_side)


def shrunk(
    data: bytes | memoryview, shrink: Shrink, max_pixels: int
) -> tuple[bytes, tuple[int, int]] | None:
    """The image as it is stored, and its (width, height); None: it is small enough.

    Resampled by Pillow's Lanczos filter: on photographs it stays closer to what training sees of
    the original than the other filters (`benchmarks/shrink.py`). Chroma has half the resolution, as
    in most photographs. Raises as `open_image` does.
    """
    image = open_image(data, max_pixels)
    size = smaller_size(*image.size, shrink)
    if size is None:
        return None
    kept = _exif(image)
    converted = image if image.mode in ("L", "RGB") else image.convert("RGB")
    small = converted.resize(size, Image.Resampling.LANCZOS)
    small.info = {}  # else the original's comment is written again
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=shrink.quality, subsampling="4:2:0", exif=kept)
    return stream.getvalue(), size


def _exif(image: Image.Image) -> bytes:
    """The image's EXIF orientation as EXIF of its own; empty if the image is upright."""
    kept = Image.Exif()
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises nearly anything for damaged EXIF, which no decoder reads
        return b""
    if orientation not in range(2, 9):
        return b""
    kept[_ORIENTATION] = orientation
    return kept.tobytes()

"""The one decoder: encoded bytes to an 8-bit image, or a sentence that names the sample."""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image
from torch import Tensor

from jobs.contract import StageError
from jobs.images.bit_depth import eight_bits


def decoded(file: str, key: str, data: bytes, pixels: Callable[[Image.Image], Tensor]) -> Tensor:
    """An encoded image's pixels; StageError, naming shard and key, when it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return pixels(opened)
    except (StageError, MemoryError):
        raise
    except Exception as error:  # decoders of broken bytes raise nearly anything
        raise StageError(
            f"shard {file}: image {key!r} cannot be decoded ({error}); remove it from the source "
            f"and build the corpus again"
        ) from error


def decode(data: bytes, key: str) -> Image.Image:
    """An encoded image as grey (mode L) or, whatever else it is, as RGB.

    Raises StageError naming the sample when the bytes are not a whole image.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        image.load()
        image = eight_bits(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise StageError(
            f"sample {key}: its {len(data)} bytes cannot be decoded as an image ({error}); "
            f"remove it from the source, and give the corpus's reader another `version`"
        ) from None
    return image if image.mode in ("L", "RGB") else image.convert("RGB")

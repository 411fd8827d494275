"""The one decoder of images: encoded bytes to an image of 8 bits a channel.

Takes the bytes of a shard. `open_image` raises Pillow's own errors; `decode` and `naming_errors`
turn them into one sentence with the image's name. Nothing here resizes or augments.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from jobs.contract import StageError
from jobs.images.bit_depth import eight_bits


def open_image(data: bytes | memoryview) -> Image.Image:
    """The fully decoded image, in its file's mode (16 bits become 8).

    Raises nearly any exception for broken bytes, as Pillow's decoders do.
    """
    image: Image.Image = Image.open(io.BytesIO(data))
    image.load()
    return eight_bits(image)


@contextmanager
def naming_errors(where: str) -> Iterator[None]:
    """Turn errors of decoding inside into a StageError that begins with `where`."""
    try:
        yield
    except (StageError, MemoryError):
        raise
    except Exception as error:  # decoders of broken bytes raise nearly anything
        raise StageError(
            f"{where} cannot be decoded as an image ({error}); remove it from the source, and give "
            f"the corpus's reader another `version`"
        ) from error


def decode(data: bytes, where: str) -> Image.Image:
    """An encoded image, decoded to mode L if it is grey and to RGB otherwise.

    `where` names the image in errors. Raises StageError when the bytes are not a whole image.
    """
    with naming_errors(where):
        image = open_image(data)
        return image if image.mode in ("L", "RGB") else image.convert("RGB")

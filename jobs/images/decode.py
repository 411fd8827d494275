"""The one decoder of images: encoded bytes to an image of eight bits a channel.

Takes the bytes as they lie in a shard. `open_image` raises whatever Pillow raises; `decode` and
`named` turn that into a sentence which names the image. Nothing here resizes or augments.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from jobs.contract import StageError
from jobs.images.bit_depth import eight_bits


def open_image(data: bytes | memoryview) -> Image.Image:
    """The image, read to its end, in the mode that its file has (16 bits become 8).

    Raises nearly anything for broken bytes, as Pillow's decoders do.
    """
    image: Image.Image = Image.open(io.BytesIO(data))
    image.load()
    return eight_bits(image)


@contextmanager
def named(where: str) -> Iterator[None]:
    """Inside, a fault of an image is a StageError that begins with `where`."""
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
    """An encoded image as grey (mode L) or, whatever else it is, as RGB.

    `where` names the image in errors. Raises StageError when the bytes are not a whole image.
    """
    with named(where):
        image = open_image(data)
        return image if image.mode in ("L", "RGB") else image.convert("RGB")

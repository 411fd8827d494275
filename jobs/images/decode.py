"""The one decoder of images: encoded bytes to an image of 8 bits a channel.

Takes the bytes of a shard. `open_image` raises Pillow's own errors; `decode` and `naming_errors`
turn them into one sentence with the image's name. Nothing here resizes or augments.

JPEGs are decoded in full. libjpeg could decode large ones at a half, a quarter or an eighth of
their size (Pillow's `draft`), but their pixels would not be the same: on photographs the mean
difference after resizing is up to 9 of 255, 3 if the image stays twice as large as asked for, and
still 1 at four times, where little time is saved (`benchmarks/scaled_decoding.py`).

Pillow's limits are settings of a process. They are set here and nowhere else, so every process
decodes the same images: what the build of a corpus could decode, each later stage can decode too.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from jobs.contract import StageError
from jobs.images.bit_depth import eight_bits
from jobs.images.spec import MOST_PIXELS

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
"""The formats that are decoded. Pillow knows more, and starts other programs for some of them."""

# Pillow refuses an image above twice this number: the last defence behind a corpus's `max_pixels`,
# which no longer has a second, smaller limit beside it.
Image.MAX_IMAGE_PIXELS = MOST_PIXELS
# Pillow's own values, so that no other library's setting decides which images a corpus has.
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 20  # bytes of one decompressed text or profile
PngImagePlugin.MAX_TEXT_MEMORY = 1 << 26  # bytes of all texts of an image
ImageFile.LOAD_TRUNCATED_IMAGES = False
# Pillow warns of odd metadata and large images. A corpus counts or refuses such images itself.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class TooManyPixelsError(ValueError):
    """The image has more pixels than allowed; it was not decoded."""


def open_image(data: bytes | memoryview, max_pixels: int = MOST_PIXELS) -> Image.Image:
    """The fully decoded image, in its file's mode (16 bits become 8).

    Raises TooManyPixelsError before it decodes an image of more than `max_pixels`, and nearly any
    exception for broken bytes, as Pillow's decoders do.
    """
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > max_pixels:
        raise TooManyPixelsError(f"{image.width} x {image.height} pixels, above {max_pixels:,}")
    image.load()
    return eight_bits(image)


def decode_fault(data: bytes | memoryview, max_pixels: int = MOST_PIXELS) -> str | None:
    """Why the image (of several frames, the first) cannot be used: a word for the quarantine.

    None for an image that decodes, and converts to the grey and to the RGB that encoders take.
    """
    try:
        image = open_image(data, max_pixels)
        if image.mode not in ("L", "RGB"):  # those two always convert
            image.convert("L")
            image.convert("RGB")
    except Exception as error:
        return fault_of(error)
    return None


def fault_of(error: Exception) -> str:
    """The word for an error of decoding. Raises a MemoryError again.

    Decoders of broken bytes raise nearly any exception; all others are faults of the image.
    """
    if isinstance(error, MemoryError):  # of this machine, not of the image: its pixels are limited
        raise error
    if isinstance(error, (TooManyPixelsError, Image.DecompressionBombError)):
        return "too_many_pixels"
    return "truncated" if "truncated" in str(error) else "undecodable"


class DamagedImageError(StageError):
    """An image that cannot be decoded, called `where`."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(
            f"{where} cannot be decoded as an image ({reason}); remove it from the source, give "
            f"the corpus's reader another `version`, and run the same command with --force"
        )
        self.where = where


@contextmanager
def naming_errors(where: str) -> Iterator[None]:
    """Turn errors of decoding inside into a DamagedImageError that begins with `where`."""
    try:
        yield
    except (StageError, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its message has an address in memory
        raise DamagedImageError(where, "it has no known format") from error
    except Exception as error:  # decoders of broken bytes raise nearly anything
        raise DamagedImageError(where, str(error)) from error


def decode(data: bytes, where: str) -> Image.Image:
    """An encoded image, decoded to mode L if it is grey and to RGB otherwise.

    `where` names the image in errors. Raises StageError when the bytes are not a whole image.
    """
    with naming_errors(where):
        image = open_image(data)
        return image if image.mode in ("L", "RGB") else image.convert("RGB")

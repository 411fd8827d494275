"""Masks: the class of each pixel of an image, from a PNG of class numbers to counts in patches.

Takes encoded masks; gives arrays of class indices, in which `IGNORED` stands for no class. The
target of a patch, in a grid of P x P, is how many of its pixels belong to each class: pixel (x, y)
of a mask of W x H belongs to column floor((x + 0.5) P / W), and so for rows. So a class for each
patch, enlarged to the mask's size by the nearest patch, is scored exactly from these counts. A
shift that moves pixels moves masks alike, by the nearest pixel. Nothing here knows encoders.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from jobs.images.decode import naming_errors
from jobs.images.spec import MOST_PIXELS, Shift
from jobs.images.structure import png_pixels_are_whole

IGNORED = 255
"""The number of pixels that count for nothing, in every mask of a corpus."""

Mask = npt.NDArray[np.uint8]  # [H, W], class indices or IGNORED
_STEPS: dict[tuple[int, ...], int] = {(2, 0): 85, (4, 0): 17}
"""Bits and colour type of a grey PNG -> the factor by which Pillow spreads its numbers over 0..255.
"""

Numbers = npt.NDArray[np.int16]
"""What each number of a source's masks stands for, [n]: a class, IGNORED, or -1 for nothing."""


def numbers_of(first: int, ignored: tuple[int, ...], classes: list[int]) -> Numbers:
    """The meaning of a source's numbers: from `first` on its classes, as these of the corpus."""
    size = max((first + len(classes), *(number + 1 for number in ignored)))
    found = np.full(size, -1, np.int16)
    found[first : first + len(classes)] = classes
    found[list(ignored)] = IGNORED
    return found


def read(data: bytes | memoryview, where: str) -> Mask:
    """A corpus's mask, [H, W]. Raises StageError, which begins with `where`, if it is damaged."""
    with naming_errors(where):
        return np.asarray(_opened(data), np.uint8)


def checked(
    data: bytes | memoryview, size: tuple[int, int], numbers: Numbers
) -> tuple[bytes, bool] | str:
    """A source's mask as the corpus keeps it, and whether any of its pixels has a class.

    `size` (width, height) is the image's. The bytes stay as they are where their numbers are the
    corpus's own. For a mask that cannot be used, the reason instead: mask_not_png,
    mask_undecodable, mask_not_numbers (its pixels are colours), mask_other_size,
    mask_number_unknown.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
    except Exception:  # no PNG, or a header that Pillow cannot read
        return "mask_not_png"
    if image.size != size:
        return "mask_other_size"
    if image.mode not in ("1", "L", "P", "I;16", "I"):
        return "mask_not_numbers"
    try:
        found = np.asarray(image).astype(np.int64)
    except MemoryError:  # of this machine, not of the mask: its size is its image's
        raise
    except Exception:  # decoders of broken bytes raise nearly anything
        return "mask_undecodable"
    if not png_pixels_are_whole(data):  # Pillow makes up what is missing
        return "mask_undecodable"
    kept = image.mode in ("L", "P")
    if (step := _STEPS.get(tuple(data[24:26]))) is not None:
        found, kept = found // step, False
    if found.min() < 0 or found.max() >= len(numbers):
        return "mask_number_unknown"
    meant = numbers[found]
    if (meant < 0).any():
        return "mask_number_unknown"
    kept = kept and np.array_equal(meant, found)
    return bytes(data) if kept else encoded(meant.astype(np.uint8)), bool((meant != IGNORED).any())


def encoded(mask: Mask) -> bytes:
    """A mask as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, format="PNG")
    return stream.getvalue()


def shifted(mask: Mask, shift: Shift, draw: np.uint64) -> Mask:
    """The mask of an image after a shift (`shifts.shifted`). Outside a rotated one: IGNORED."""
    if shift.kind != "rotate":
        return mask
    sign = 1 if draw & np.uint64(1) else -1
    turned = Image.fromarray(mask).rotate(
        sign * shift.strength, resample=Image.Resampling.NEAREST, fillcolor=IGNORED
    )
    return np.asarray(turned, np.uint8)


def renumbered(mask: Mask, numbers: npt.ArrayLike) -> Mask:
    """The mask with `numbers[c]` for class c, IGNORED where that is negative."""
    found = np.asarray(numbers)
    meant = np.full(256, IGNORED, np.uint8)
    inside = np.flatnonzero(found >= 0)
    meant[inside] = found[inside]
    renamed: Mask = meant[mask]
    return renamed


def resized(mask: Mask, size: int) -> Mask:
    """The mask with both sides `size`, by the nearest pixel."""
    height, width = mask.shape
    return mask[_nearest(size, height)[:, None], _nearest(size, width)]


def counts(mask: Mask, side: int, classes: int) -> npt.NDArray[np.int32]:
    """How many pixels of each class each patch has, [side * side, classes], row by row."""
    height, width = mask.shape
    patch = _nearest(height, side)[:, None] * side + _nearest(width, side)
    inside = mask != IGNORED
    cells = patch[inside] * classes + mask[inside]
    found = np.bincount(cells, minlength=side * side * classes).astype(np.int32)
    return found.reshape(side * side, classes)


def enlarged(patches: Mask, width: int, height: int) -> Mask:
    """A class for each patch [P, P] as a mask of this size, by the nearest patch."""
    side = len(patches)
    return patches[_nearest(height, side)[:, None], _nearest(width, side)]


def _nearest(count: int, sources: int) -> npt.NDArray[np.int64]:
    """Which of `sources` equal cells has the centre of each of `count` ones, [count]."""
    return (2 * np.arange(count) + 1) * sources // (2 * count)


def _opened(data: bytes | memoryview) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(data), formats=("PNG",))
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels")
    return image

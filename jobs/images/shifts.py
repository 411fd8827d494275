"""Shifts: declared changes that make a test part out-of-domain (OOD).

Takes a decoded image at its source's resolution, a `Shift` and the image's own random number;
gives the changed image. Draws (a rotation's sign, a pixel's noise) come from the seed and the
sample's key alone. Nothing here knows encoders, tasks or labels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, ImageFilter
from torch import Tensor

from jobs.images.decode import decode, naming_errors
from jobs.images.pixels import to_pixels
from jobs.images.spec import ImageInput, Shift
from jobs.keyed_hash import Hashes, expand, hash64, unit


def draws(keys: pa.Array | pa.ChunkedArray, shift: Shift) -> Hashes:
    """Each sample's random number for this shift, [N]."""
    return hash64(keys, seed=shift.seed, scope="shift", stream=shift.kind)


def shifted(image: Image.Image, shift: Shift, draw: np.uint64) -> Image.Image:
    """The image, mode L or RGB, after the shift, in the same size and mode.

    rotate: by `strength` degrees about the centre, bilinear, black outside the image; the draw's
    lowest bit is the direction. blur: Gaussian of sigma `strength` pixels. invert: `strength` of
    the way from the image to its negative. noise: Gaussian of standard deviation 255 * `strength`
    added to every channel of every pixel. Sums are clipped to 0..255.
    """
    if shift.kind == "rotate":
        sign = 1 if draw & np.uint64(1) else -1
        return image.rotate(sign * shift.strength, resample=Image.Resampling.BILINEAR)
    if shift.kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(shift.strength))
    pixels = np.asarray(image).astype(np.float64)
    if shift.kind == "invert":
        changed = (1 - shift.strength) * pixels + shift.strength * (255 - pixels)
    else:
        changed = pixels + 255 * shift.strength * _gaussian(draw, pixels.size).reshape(pixels.shape)
    return Image.fromarray(np.rint(np.clip(changed, 0, 255)).astype(np.uint8))


def prepared(
    data: bytes, where: str, spec: ImageInput, shift: Shift | None, draw: np.uint64 | None
) -> Tensor:
    """An encoded image, shifted at the source's resolution, as uint8 [C, S, S].

    `draw` is the sample's number from `draws`. Raises StageError, which begins with `where`, for a
    damaged image.
    """
    image = decode(data, where)
    with naming_errors(where):
        if shift is not None and draw is not None:
            image = shifted(image, shift, draw)
        return to_pixels(image, spec)


def _gaussian(draw: np.uint64, count: int) -> npt.NDArray[np.float64]:
    """Standard normal numbers, [count], from one draw, by the Box-Muller transform."""
    u = unit(expand(np.array([draw]), 2 * count)[0])
    radius = np.sqrt(-2 * np.log1p(-u[:count]))
    normal: npt.NDArray[np.float64] = radius * np.cos(2 * np.pi * u[count:])
    return normal

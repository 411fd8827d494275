"""Bit depth: convert images of 16 bits a channel to the 8 bits that encoders take.

Pillow's own conversion clips: every value above 255 of 65,535 turns white. Shards keep the source's
bytes, so every decoder calls this.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits (mode I;16, or I from TIFF) as mode L; others unchanged.

    0..65535 becomes 0..255, rounded to the nearest: 257 v becomes v. Values outside are clipped.
    Raises ValueError for an image of floating-point numbers, whose range is unknown.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, of no known range")
    if not image.mode.startswith("I"):
        return image
    deep = np.clip(np.asarray(image).astype(np.int64), 0, 65_535)
    return Image.fromarray(((deep + 128) // 257).astype(np.uint8))

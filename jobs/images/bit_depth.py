"""Depth: images of sixteen bits a channel as eight, which is what encoders take.

Pillow's own conversion clips: all that is above 255 of 65,535 turns white. Shards keep the source's
bytes; whoever decodes them calls this first.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of sixteen bits (mode I;16, or I as TIFF has it) as mode L; others untouched.

    0..65535 becomes 0..255, to the nearest: 257 v becomes v. What lies outside is clipped. Raises
    ValueError for an image of floating-point numbers, whose black and white nobody knows.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, of no known range")
    if not image.mode.startswith("I"):
        return image
    deep = np.clip(np.asarray(image).astype(np.int64), 0, 65_535)
    return Image.fromarray(((deep + 128) // 257).astype(np.uint8))

"""Small generated scenes with masks: a sky above a ground, and a box that stands on it."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("sky", "ground", "box")
IGNORED = 255
COLOURS = np.array([[90, 140, 230], [70, 110, 60], [200, 60, 50]], np.float64)

Mask = npt.NDArray[np.uint8]


def scene(seed: int, width: int = 40, height: int = 32) -> tuple[bytes, Mask]:
    """An image (PNG) and its mask [H, W]; a line of the mask is ignored."""
    drawn = np.random.default_rng(seed)
    horizon = int(drawn.integers(height // 3, 2 * height // 3))
    left, side = int(drawn.integers(2, width // 2)), int(drawn.integers(8, 14))
    mask = np.zeros((height, width), np.uint8)
    mask[horizon:] = 1
    mask[max(0, horizon - side // 2) : horizon + side // 2, left : left + side] = 2
    pixels = COLOURS[mask] + drawn.normal(0, 12, (height, width, 3))
    mask[horizon - 1] = IGNORED
    return png(np.clip(pixels, 0, 255).astype(np.uint8)), mask


def png(array: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def parquet(path: Path, rows: int, first: int = 0) -> Path:
    """A file of scenes with the columns image, mask, key, sequence."""
    made = [scene(first + number) for number in range(rows)]
    table = pa.table(
        {
            "image": [image for image, _ in made],
            "mask": [png(mask) for _, mask in made],
            "key": [f"scene-{first + number:03d}" for number in range(rows)],
            "sequence": [f"s{number % 3}" for number in range(rows)],
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path

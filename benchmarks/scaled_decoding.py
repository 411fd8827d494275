"""Does decoding a JPEG at a fraction of its size keep its pixels? It does not, so nothing does it.

libjpeg decodes at a half, a quarter or an eighth of the size (Pillow's `draft`). Compares an image
that is then resized with the same image decoded in full and resized: the mean difference of the
values, of 255, and the processor time. `kept`: how many times larger than asked for the drafted
image is at least. On two photographs that come with scikit-learn:
`python benchmarks/scaled_decoding.py [more.jpg ...]`. Ends with one line of JSON: the largest mean
difference for each `kept`, and the least saving of time where it stays within 1.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sklearn
from PIL import Image

SIZES = (224, 112, 64, 32)
KEPT = (1, 2, 4)
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
REPEATS = 5


def timed(make: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """What `make` gives, and the least processor time of some calls."""
    times = []
    for _ in range(REPEATS):
        begun = time.process_time()
        made = make()
        times.append(time.process_time() - begun)
    return made, min(times)


def resized(data: bytes, size: int, kind: str, kept: int | None) -> np.ndarray:
    """The pixels at `size`, from an image decoded in full or at `kept` times the size or more."""
    image = Image.open(io.BytesIO(data))
    if kept is not None:
        image.draft("RGB", (kept * size, kept * size))
    scaled = image.convert("RGB").resize((size, size), FILTERS[kind])
    return np.asarray(scaled, np.int64)


def main() -> None:
    folder = Path(sklearn.__file__).parent / "datasets/images"
    files = [*sorted(folder.glob("*.jpg")), *map(Path, sys.argv[1:])]
    drift: dict[int, list[float]] = {kept: [] for kept in KEPT}
    saving: list[float] = []
    for file in files:
        data = file.read_bytes()
        width, height = Image.open(io.BytesIO(data)).size
        for size in SIZES:
            for kind in FILTERS:
                whole, seconds = timed(lambda: resized(data, size, kind, None))  # noqa: B023
                for kept in KEPT:
                    if 2 * kept * size > min(width, height):
                        continue  # decoded in full
                    draft, less = timed(lambda: resized(data, size, kind, kept))  # noqa: B023
                    mean = float(np.abs(draft - whole).mean())
                    drift[kept].append(mean)
                    saving += [seconds / less] if mean <= 1 else []
                    print(
                        f"  {file.name} {width} x {height} to {size}, {kind}, {kept} times kept: "
                        f"{mean:.2f} of 255, {seconds / less:.2f} times as fast",
                        flush=True,
                    )
    result = {f"drift_kept_{kept}": max(means) for kept, means in drift.items() if means}
    print(json.dumps({n: round(v, 2) for n, v in (result | {"saving": min(saving)}).items()}))


if __name__ == "__main__":
    main()

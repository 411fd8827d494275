"""`corpus.shrink` against the originals: bytes, images a processor-second, what training sees.

Run it with the project installed: `python benchmarks/shrink.py [photograph.jpg ...]` (some minutes
on two cores). Ends with one line of JSON:

- bytes_500, bytes_2000: bytes of JPEGs of 500 x 375 and 2000 x 1500 over those of the same shrunk
  to a shorter side of 256 in quality 92.
- images_500, images_2000: images a processor-second of a streamed epoch (random crops of 224, flip,
  normalised; children, which decode, included) of the shrunk corpus over the original one. The two
  alternate, after an epoch that checks the shards; the median.
- shrinking_500, shrinking_2000: images that a processor shrinks in a second, once, at the build.
- drift_<filter>: on two photographs that come with scikit-learn, and those named, the mean
  difference of the values (of 255) between the whole image resized to 224 (bilinear) and the same
  from the shrunk one, for each filter that could shrink; the largest. `drift_444` is
  `drift_lanczos` with chroma at full resolution, which takes `bytes_444` times the bytes.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import sklearn
import torch
from PIL import Image
from pretrain import source, streamed

from jobs.images.shrink import shrunk, smaller_size
from jobs.images.spec import MOST_PIXELS, Shrink
from synthetic_corpus import jpegs, write_corpus

SHRINK = Shrink(shorter_side=256, quality=92)
SIZES = {500: (500, 375, 256), 2000: (2000, 1500, 64)}  # width, height, images
REPEATS = 3
BATCH = 32
SIDE = 224


def smaller(data: bytes) -> bytes:
    found = shrunk(data, SHRINK, MOST_PIXELS)
    assert found is not None, "an image of the benchmark is larger than the shorter side"
    return found[0]


def training(root: Path) -> dict[str, float]:
    """Bytes and speed of the shrunk corpora over the originals."""
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    for name, (width, height, count) in SIZES.items():
        images = list(jpegs(count, width, height, 90))
        begun = time.process_time()
        small = [smaller(data) for data in images]
        found[f"shrinking_{name}"] = count / (time.process_time() - begun)
        found[f"bytes_{name}"] = sum(map(len, images)) / sum(map(len, small))
        shards = []
        for kind, rows in (("original", images), ("shrunk", small)):
            write_corpus(root / f"{name}-{kind}", rows, 64)
            shards.append(source(root / f"{name}-{kind}", BATCH))
        ratios = []
        for turn in range(1 + REPEATS):
            original, less = (streamed(each, turn) for each in shards)
            print(f"  {name}: {original} an epoch, shrunk {less}", flush=True)
            ratios.append(original.cpu / less.cpu)
        found[f"images_{name}"] = median(ratios[1:])
    return found


def difference(image: Image.Image, resampling: Image.Resampling, chroma: str) -> tuple[float, int]:
    """How far a shrunk image is from the whole one in training, and its bytes."""
    size = smaller_size(*image.size, SHRINK)
    assert size is not None
    stream = io.BytesIO()
    image.resize(size, resampling).save(stream, "JPEG", quality=SHRINK.quality, subsampling=chroma)
    small = Image.open(stream).convert("RGB")
    sides = (i.resize((SIDE, SIDE), Image.Resampling.BILINEAR) for i in (image, small))
    before, after = (np.asarray(side).astype(int) for side in sides)
    return float(np.abs(before - after).mean()), len(stream.getvalue())


def drift(files: list[Path]) -> dict[str, float]:
    """The largest difference for each filter, and what full chroma gains and costs."""
    photographs = [Image.open(file).convert("RGB") for file in files]
    found, sizes = {}, {}
    for name, kind in Image.Resampling.__members__.items():
        if name in ("BOX", "BILINEAR", "BICUBIC", "LANCZOS"):
            made = [difference(image, kind, "4:2:0") for image in photographs]
            found[f"drift_{name.lower()}"], sizes[name] = max(d for d, _ in made), made
    full = [difference(image, Image.Resampling.LANCZOS, "4:4:4") for image in photographs]
    found["drift_444"] = max(d for d, _ in full)
    found["bytes_444"] = sum(b for _, b in full) / sum(b for _, b in sizes["LANCZOS"])
    return found


def main() -> None:
    folder = Path(sklearn.__file__).parent / "datasets/images"
    with tempfile.TemporaryDirectory() as name:
        result = training(Path(name))
    result |= drift([*sorted(folder.glob("*.jpg")), *map(Path, sys.argv[1:])])
    print(json.dumps({name: round(value, 2) for name, value in result.items()}))


if __name__ == "__main__":
    main()

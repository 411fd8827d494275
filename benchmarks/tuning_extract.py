"""Extraction against the bare forward pass, and against the decoder.

Run it with the project installed: `python benchmarks/tuning_extract.py` (a minute or two on two
cores). Ends with one line of JSON:

- extract_vs_forward: rows a second (wall time) of `jobs.features.extract.extract` over those of the
  slower of its two necessary parts, each alone and with the same threads: the encoder's bare
  forward pass on tensors that are already decoded and augmented, in the same batches; and decoding
  (to the encoder's input) alone. The sides alternate in one process, in short turns. Their order
  changes from round to round, so that a slower machine affects both. The figure is the median of
  the rounds' ratios. `_cpu`: the same by processor time, which a busy machine affects less.
- bound_by: the slower part; forward_rows_per_s, decode_rows_per_s, extract_rows_per_s.
- batch_size: the choice of `auto`.
- features_of_five_vs_five: processor time of five encoders that extract one after another, over
  that of the same five fed from one decoding, with one thread; both sides alternate, the median.
  JPEGs of 500 x 375, and a vision transformer with few tokens, whose forward pass takes
  `encoder_share` of the time of decoding.

The images are JPEGs of 160 x 160 (as smooth as photographs, about 5 kB), the encoder a ResNet-50 at
160 pixels with random weights; the training part has two augmented views, so three passes a row.
On a CPU, decoding and forward pass share the cores: decoding and augmenting take time from the
forward pass, and the ratio shows how much.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageFilter

from jobs.corpus.form import IMAGES
from jobs.corpus.shards import write_rows
from jobs.corpus.units import Unit
from jobs.encoders.encoder import Architecture, EncoderCard
from jobs.encoders.image import ImageEncoder
from jobs.features.extract import Member, extract, extract_each
from jobs.features.spec import FeaturesStep
from jobs.images.pixels import unit_range
from jobs.images.spec import Augment, ImageInput, Views
from jobs.images.views import augmented
from jobs.storage.folder import Folder
from synthetic_corpus import jpegs

SIDE = 160
ROWS = 16
REPEATS = 15
VIEWS = Views(count=2, augment=Augment(degrees=10, translate=0.08, flip=True))
STEP = FeaturesStep(images="b", parts=("train",), views=VIEWS)
SHARD = "train-00000.parquet"


def images(folder: Folder) -> list[bytes]:
    """ROWS JPEGs in one shard of `folder`."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(ROWS):
        noise = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        sink = io.BytesIO()
        noise.filter(ImageFilter.GaussianBlur(2)).save(sink, "JPEG", quality=90)
        encoded.append(sink.getvalue())
    write_images(folder, encoded, (SIDE, SIDE))
    return encoded


def write_images(folder: Folder, encoded: list[bytes], size: tuple[int, int]) -> None:
    """Write one shard of images."""
    rows = len(encoded)
    columns = {
        "key": [f"b/{n:04d}" for n in range(rows)],
        "image": encoded,
        "label": [n % 10 for n in range(rows)],
        "caption": [None] * rows,
        "width": [size[0]] * rows,
        "height": [size[1]] * rows,
    }
    write_rows(folder, SHARD, pa.table(columns, schema=IMAGES))


def encoder() -> ImageEncoder:
    """A ResNet-50 with random weights, on the GPU where there is one."""
    image = ImageInput(size=SIDE, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    architecture = Architecture("timm", "resnet50", {}, image, 10)
    torch.manual_seed(0)
    model = architecture.build()
    digest = hashlib.sha256(b"random").hexdigest()
    classes = tuple(map(str, range(10)))
    card = EncoderCard("timm", "resnet50", {}, image, classes, 2048, digest, digest, digest)
    return ImageEncoder(card, model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def timed(do: Callable[[], object]) -> tuple[float, float]:
    """(seconds of wall time, seconds of processor time)."""
    began, spent = time.perf_counter(), time.process_time()
    do()
    return time.perf_counter() - began, time.process_time() - spent


def measure() -> dict[str, float | str]:
    """All figures of the module's docstring."""
    torch.set_num_threads(os.cpu_count() or 1)
    opened = encoder()
    step = STEP.model_copy(update={"cpus_per_worker": os.cpu_count() or 1})
    size = opened.batch_size(step.batch_size, step.precision)
    with tempfile.TemporaryDirectory() as folder:
        place = Folder.of(folder)
        encoded = images(place)
        unit = Unit("train", SHARD, 0, ROWS, sha256="")
        pixels = torch.stack([opened.prepare(data, "b") for data in encoded])
        keys = pa.array([f"b/{n:04d}" for n in range(ROWS)])
        views = [unit_range(pixels)]
        views += [augmented(pixels, keys, VIEWS, view, "b") for view in (1, 2)]
        ready = [view[start : start + size] for view in views for start in range(0, ROWS, size)]

        def forward() -> None:
            for batch in ready:
                opened.features(batch)

        def decoding() -> None:
            for data in encoded:
                opened.prepare(data, "b")

        sides: dict[str, Callable[[], object]] = {
            "forward": forward,
            "decode": decoding,
            "extract": lambda: extract(unit, place, "b", opened, step),
        }
        forward()  # warm-up
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for number in range(REPEATS):
            turn = list(sides.items())
            for name, do in turn if number % 2 == 0 else reversed(turn):
                taken[name].append(timed(do))
    seconds = {name: median(wall for wall, _ in values) for name, values in taken.items()}
    bound = max(("forward", "decode"), key=seconds.__getitem__)
    rounds = list(zip(taken[bound], taken["extract"], strict=True))
    return {
        "extract_vs_forward": round(median(b[0] / e[0] for b, e in rounds), 3),
        "extract_vs_forward_cpu": round(median(b[1] / e[1] for b, e in rounds), 3),
        "bound_by": bound,
        **{f"{name}_rows_per_s": round(ROWS / s, 1) for name, s in seconds.items()},
        "batch_size": size,
    }


FIVE = 5
FIVE_ROWS = 32
FIVE_REPEATS = 5
TINY = {"patch_size": 32, "embed_dim": 64, "depth": 2, "num_heads": 1}


def five() -> list[ImageEncoder]:
    """Five encoders with different weights and the same input, 224 x 224."""
    name, image = "vit_tiny_patch16_224", ImageInput(size=224)
    architecture = Architecture("timm", name, TINY, image, 10)
    classes, found = tuple(map(str, range(10))), []
    for seed in range(FIVE):
        torch.manual_seed(seed)
        built = architecture.build()
        digest, dim = str(seed) * 64, architecture.feature_dim(built)
        card = EncoderCard("timm", name, TINY, image, classes, dim, digest, digest, digest)
        found.append(ImageEncoder(card, built, torch.device("cpu")))
    return found


def features_of_five_vs_five() -> dict[str, float]:
    """Processor seconds of five extractions, over those of one that feeds five encoders."""
    torch.set_num_threads(1)
    step = FeaturesStep(images="b", parts=("test",))
    unit = Unit("test", SHARD, 0, FIVE_ROWS, sha256="")
    members = [Member(encoder, step) for encoder in five()]
    one = members[0].encoder
    with tempfile.TemporaryDirectory() as name:
        folder, encoded = Folder.of(name), list(jpegs(FIVE_ROWS, 500, 375, 90))
        write_images(folder, encoded, (500, 375))
        pixels = torch.stack([one.prepare(data, "b") for data in encoded])

        def alone() -> None:
            for member in members:
                extract(unit, folder, "b", member.encoder, step)

        sides: dict[str, Callable[[], object]] = {
            "apart": alone,
            "together": lambda: extract_each(unit, folder, "b", members),
            "forward": lambda: one.features(pixels),
            "decode": lambda: [one.prepare(data, "b") for data in encoded],
        }
        for do in sides.values():
            do()  # warm-up
        taken = [{side: timed(do)[1] for side, do in sides.items()} for _ in range(FIVE_REPEATS)]
    return {
        "features_of_five_vs_five": round(median(t["apart"] / t["together"] for t in taken), 2),
        "encoder_share": round(median(t["forward"] / t["decode"] for t in taken), 2),
    }


def extract_vs_forward() -> float:
    """Only the ratio."""
    return float(measure()["extract_vs_forward"])


if __name__ == "__main__":
    print(json.dumps(measure() | features_of_five_vs_five()))

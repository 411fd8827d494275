"""Features of patches: extraction, tuning, and the memory of a cell that reads them from a file.

Run it with the project installed: `python benchmarks/dense.py` (about two minutes on two cores).
Ends with one line of JSON:

- extract_vs_forward: rows a second of `jobs.features.extract.extract` for images with masks (test
  part, no views) over those of the same model's bare forward pass on prepared tensors, in the same
  batches. The sides alternate in one process; their order changes from round to round. The figure
  is the median of the rounds' ratios. `_cpu`: the same by processor time, which a busy machine
  affects less.
- tuning_vs_plain_<head>: rows that the stacked engine trains on in a second, from patches in a
  mapped file with soft labels, over those of the same engine on the same features in memory with
  class labels. Two members, batches of 256 rows; `_cpu` as above.
- memory_bytes_per_patch: what a cell keeps in memory for each patch (keys, indices, counts) when
  its rows are selected. The pages of mapped files, which the system takes back, are not counted;
  plain_bytes_per_patch: what the features alone would take as float32 in memory.
- gb_for_10000_images: the former for 10,000 images of 24 x 24 patches with 768 dimensions and 21
  classes; file_gb_float16: their file of features.
"""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from jobs.corpus.form import MASKED, form_of
from jobs.corpus.shards import write_rows
from jobs.corpus.units import Unit
from jobs.encoders.encoder import Architecture, EncoderCard, gridded
from jobs.encoders.grid import GridEncoder, Scenes
from jobs.encoders.image import ImageEncoder
from jobs.features.extract import extract
from jobs.features.spec import FeaturesStep
from jobs.images.masks import encoded
from jobs.images.spec import Grid, ImageInput, Views
from jobs.storage.folder import Folder
from jobs.tasks.spec import Task
from jobs.tuning.budget import Budget
from jobs.tuning.frozen.patches import PatchRows, read_part
from jobs.tuning.frozen.stack import Group, Stack
from jobs.tuning.heads import HeadKind, Shape
from jobs.tuning.mask_target import MaskTarget
from jobs.tuning.rows import Labelled, TaskClasses, training_rows
from jobs.tuning.target import ClassTarget
from jobs.tuning.trained import Configuration

IMAGES, SIZE = 16, 224
CLASSES = tuple(f"class-{n}" for n in range(21))
DIM, SIDE = 768, 24
PATCHES = 40 * SIDE**2
MEMBERS, BATCH, STEPS = 2, 256, 6
ROUNDS = 5
SHARD = "test-00000.parquet"


def timed(do: Callable[[], object]) -> tuple[float, float]:
    """(seconds of wall time, seconds of processor time)."""
    began, spent = time.perf_counter(), time.process_time()
    do()
    return time.perf_counter() - began, time.process_time() - spent


def ratios(base: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """The medians of base's time over other's, by wall and by processor time, in turns."""
    base()
    other()
    found = []
    for number in range(ROUNDS):
        first, second = (base, other) if number % 2 else (other, base)
        times = {first: timed(first), second: timed(second)}
        found.append([a / b for a, b in zip(times[base], times[other], strict=True)])
    return median(wall for wall, _ in found), median(cpu for _, cpu in found)


# -- extraction ------------------------------------------------------------------------------------


def vit() -> GridEncoder:
    """The patches of a ViT-S/16 with random weights."""
    image = ImageInput(size=SIZE)
    torch.manual_seed(0)
    model = Architecture("timm", "vit_small_patch16_224", {}, image, 0).build()
    card = EncoderCard("timm", "vit_small_patch16_224", {}, image, (), 384, None, None, "0" * 64)
    found = gridded(ImageEncoder(card, model, torch.device("cpu")), Grid(), len(CLASSES))
    assert isinstance(found, GridEncoder)
    return found


def extraction(folder: Folder) -> dict[str, float]:
    """Extraction against the forward pass."""
    drawn = np.random.default_rng(0)
    images, labels = [], []
    for _ in range(IMAGES):
        small = Image.fromarray(drawn.integers(0, 256, (30, 40, 3), np.uint8))
        stream = io.BytesIO()
        small.resize((480, 360), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        images.append(stream.getvalue())
        blocks = np.kron(drawn.integers(0, 21, (9, 12)), np.ones((40, 40)))
        labels.append(encoded(blocks.astype(np.uint8)))
    rows = {
        "key": [f"{n:04d}" for n in range(IMAGES)],
        "image": images,
        "label": [None] * IMAGES,
        "caption": [None] * IMAGES,
        "width": [480] * IMAGES,
        "height": [360] * IMAGES,
        "mask": labels,
    }
    write_rows(folder, SHARD, pa.table(rows, schema=MASKED), form_of("image", "masks"))
    encoder = vit()
    step = FeaturesStep(images="b", parts=("test",), views=Views(count=0), grid=Grid())
    unit = Unit("test", SHARD, 0, IMAGES, sha256="")
    size = encoder.batch_size(step.batch_size, step.precision)
    prepared = [b.inputs for b in encoder.batches(pa.table(rows), size, None, 1)]

    def forward() -> None:
        for scenes in prepared:
            assert isinstance(scenes, Scenes)
            encoder.features(scenes.pixels)

    wall, cpu = ratios(forward, lambda: extract(unit, folder, "b", encoder, step))
    return {"extract_vs_forward": wall, "extract_vs_forward_cpu": cpu}


# -- tuning ----------------------------------------------------------------------------------------


def write_part(folder: Path, part: str, images: int) -> None:
    """Random features and counts of 20 pixels in a part's files."""
    drawn = np.random.default_rng(0)
    shape = 1, images, SIDE**2
    features = np.lib.format.open_memmap(
        folder / f"features-{part}.npy", mode="w+", dtype=np.float16, shape=(*shape, DIM)
    )
    counts = np.lib.format.open_memmap(
        folder / f"counts-{part}.npy", mode="w+", dtype=np.int32, shape=(*shape, len(CLASSES))
    )
    for image in range(images):
        features[0, image] = drawn.normal(size=(SIDE**2, DIM))
        counts[0, image] = drawn.multinomial(20, [1 / len(CLASSES)] * len(CLASSES), SIDE**2)
    features.flush()
    counts.flush()
    keys = pa.table({"key": [f"image-{n:06d}" for n in range(images)]})
    Folder.of(folder).write_table(f"keys-{part}.parquet", keys)


def stack(kind: HeadKind, labelled: Labelled, target: MaskTarget | ClassTarget) -> Stack:
    """Two members of one kind, validated on a few rows."""
    tried = [Configuration(0.001 * (n + 1)) for n in range(MEMBERS)]
    few = labelled.features[0, torch.arange(64)]
    own = labelled.labels[:64, 0] if labelled.labels.dim() == 3 else labelled.labels[:64]
    group = Group(labelled, tried, 0)
    return Stack(Shape(kind, DIM, target), [group], Labelled(few, own), Budget(1, BATCH))


def tuning(folder: Path) -> dict[str, float]:
    """The engine on patches in a file against the same features in memory."""
    part = read_part(Folder.of(folder), "train")
    rows = np.arange(STEPS * BATCH) * 7  # not side by side in the file
    counts = torch.from_numpy(np.ascontiguousarray(part.labels[rows]))
    dense = Labelled(PatchRows(part.views, rows), counts)
    features = torch.from_numpy(part.views[:, rows].astype(np.float32))
    plain = Labelled(features, counts[:, 0].argmax(1))
    figures: dict[str, float] = {}
    kinds: tuple[HeadKind, ...] = ("linear", "released")
    for kind in kinds:
        target = ClassTarget(len(CLASSES)), MaskTarget(len(CLASSES))
        wall, cpu = ratios(
            lambda kind=kind, of=target[0]: stack(kind, plain, of).run_epoch(),
            lambda kind=kind, of=target[1]: stack(kind, dense, of).run_epoch(),
        )
        figures |= {f"tuning_vs_plain_{kind}": wall, f"tuning_vs_plain_{kind}_cpu": cpu}
    return figures


# -- memory ----------------------------------------------------------------------------------------


def memory(folder: Path) -> dict[str, float]:
    """Bytes that a cell keeps for each patch, the engine's aside."""
    task = Task.model_validate(
        {
            "name": "b",
            "title": "b",
            "domain": "id",
            "target": "mask",
            "metric": "miou",
            "corpus": {
                "name": "b",
                "reader": {"kind": "parquet", "path": "b", "mask": "mask", "classes": CLASSES},
            },
        }
    )
    part = read_part(Folder.of(folder), "train")
    rows = training_rows(part, TaskClasses.of(task, CLASSES), task, percent=100, seed=0)
    running = stack("linear", part.training(rows), MaskTarget(len(CLASSES)))
    assert running.steps_per_epoch > 0, "its labels are those of the rows: no second copy"
    kept = part.keys.nbytes + rows.keys.nbytes + rows.indices.nbytes + rows.labels.nbytes
    each = kept / PATCHES
    patches = 10_000 * SIDE**2
    return {
        "memory_bytes_per_patch": each,
        "plain_bytes_per_patch": 4 * DIM,
        "gb_for_10000_images": each * patches / 1e9,
        "file_gb_float16": 2 * DIM * patches / 1e9,
    }


def main() -> None:
    """Print the figures."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_part(folder, "train", PATCHES // SIDE**2)
        found = extraction(Folder.of(folder / "corpus")) | memory(folder) | tuning(folder)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()

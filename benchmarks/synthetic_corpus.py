"""A synthetic corpus and pre-training runs over it, for the benchmarks of pre-training."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from jobs.contract import Work
from jobs.corpus.form import IMAGES
from jobs.corpus.shards import PARTS, Index, write_rows
from jobs.noise.overlay import Overlay
from jobs.pretrain.spec import Contrastive, PretrainStep, Resources, Supervised
from jobs.storage.folder import Folder

CLASSES = 10


def jpegs(count: int, width: int, height: int, quality: int) -> Iterator[bytes]:
    """Images with structure and noise, no two alike."""
    rng = np.random.default_rng(0)
    noises = [rng.integers(-60, 60, (height, width, 3)) for _ in range(16)]
    for number in range(count):
        coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        pixels = (np.asarray(smooth) + noises[number % 16]).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
        yield stream.getvalue()


def write_corpus(root: Path, images: list[bytes], per_shard: int, folders: bool = False) -> None:
    """Write image shards (a tenth again for validation), noise, and a folder tree if asked."""
    corpus = Folder.of(root / "corpus")
    parts = {}
    for part in PARTS:
        taken = images if part == "train" else images[: max(1, len(images) // 10)]
        rows = pa.table(
            {
                "key": [f"{part}/{n:06d}" for n in range(len(taken))],
                "image": taken,
                "label": pa.array([n % CLASSES for n in range(len(taken))], pa.int32()),
                "caption": [f"a thing of kind {n % CLASSES}" for n in range(len(taken))],
                "width": pa.array([0] * len(taken), pa.int32()),
                "height": pa.array([0] * len(taken), pa.int32()),
            },
            schema=IMAGES,
        )
        parts[part] = tuple(
            write_rows(corpus, f"{part}-{i:05d}.parquet", rows.slice(start, per_shard))
            for i, start in enumerate(range(0, len(rows), per_shard))
        )
    Index("bench", tuple(f"c{i}" for i in range(CLASSES)), parts).write(corpus)
    for field in ("label", "caption"):
        write_noise(root, len(images), field)
    for number, image in enumerate(images if folders else []):
        folder = root / "tree" / f"c{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06d}.jpg").write_bytes(image)


def write_noise(root: Path, rows: int, field: Literal["label", "caption"]) -> None:
    """Write noise: every tenth label or caption is that of the next class."""
    changed = list(range(0, rows, 10))
    value = pa.int32() if field == "label" else pa.string()
    kinds = [[(n + by) % CLASSES for n in changed] for by in (0, 1)]
    clean, noisy = (
        pa.array([kind if field == "label" else f"a thing of kind {kind}" for kind in side], value)
        for side in kinds
    )
    table = pa.table(
        {
            "row": pa.array(changed, pa.int64()),
            "key": [f"train/{n:06d}" for n in changed],
            "clean": clean,
            "noisy": noisy,
        }
    )
    share = 100 * len(changed) / rows
    kind = "symmetric" if field == "label" else "caption_swap"
    Overlay(kind, field, 10, "corpus", 0, "bench", rows, rows, len(changed), share, share).write(
        Folder.of(root / f"noise-{field}"), table
    )


def work(
    root: Path,
    name: str,
    model: str,
    fields: dict[str, Any],
    resources: Resources,
    objective: str = "supervised",
) -> Work:
    """A pre-training run on that corpus; `fields`: of the recipe."""
    kind: Any = Supervised if objective == "supervised" else Contrastive
    recipe = kind.model_validate({"name": "bench", "model": model} | fields)
    noise = Folder.of(root / f"noise-{'label' if objective == 'supervised' else 'caption'}")
    return Work(
        address=f"pretrain/{name}",
        fingerprint=name,
        spec=PretrainStep(recipe=recipe, seed=0, checkpoint_minutes=60, resources=resources),
        inputs={"corpus": Folder.of(root / "corpus"), "noise": noise},
        output=Folder.of(root / "runs" / name / "output"),
        scratch=Folder.of(root / "runs" / name / "scratch"),
    )

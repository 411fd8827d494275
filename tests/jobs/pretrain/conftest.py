"""A tiny corpus with three levels of two kinds of noise, and recipes small enough for it."""

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from jobs.contract import Work
from jobs.corpus.form import IMAGES
from jobs.corpus.shards import File, Index
from jobs.images.spec import ImageInput
from jobs.noise.overlay import Overlay
from jobs.pretrain.spec import Contrastive, PretrainStep, Recipe, Resources, Schedule, Supervised
from jobs.storage.folder import Folder

CLASSES = ("bar", "dot", "edge")
ROWS = {"train": 100, "validation": 30, "test": 12}
LEVELS = (0, 10, 30)

IMAGE = ImageInput(size=16, channels=1, mean=(0.5,), std=(0.5,))
SMALL = {"channels": [8, 8, 8, 8]}
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def png(label: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 120, (10, 8), dtype=np.uint8)
    pixels[[slice(0, 3), slice(4, 6), slice(8, 10)][label]] += 120
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_part(folder: Folder, part: str, rows_per_shard: int) -> tuple[File, ...]:
    first = 1000 * (1 + list(ROWS).index(part))
    numbers = range(first, first + ROWS[part])
    labels = [number % len(CLASSES) for number in numbers]
    rows = pa.table(
        {
            "key": [f"toy/{number}" for number in numbers],
            "image": [png(label, number) for label, number in zip(labels, numbers, strict=True)],
            "label": pa.array(labels, pa.int32()),
            "caption": [caption(label) for label in labels],
            "width": pa.array([8] * len(labels), pa.int32()),
            "height": pa.array([10] * len(labels), pa.int32()),
        },
        schema=IMAGES,
    )
    files = []
    for shard, start in enumerate(range(0, len(rows), rows_per_shard)):
        cut = rows.slice(start, rows_per_shard)
        name = f"{part}-{shard:05d}.parquet"
        folder.write_table(name, cut)
        data = folder.read_bytes(name)
        files.append(File(name, len(cut), len(data), hashlib.sha256(data).hexdigest()))
    return tuple(files)


def write_noise(folder: Folder, field: str, level: int) -> None:
    """Change `level` of 100 training rows, spread over classes and shards; levels are nested."""
    rows = sorted((37 * i) % 100 for i in range(level))
    clean = [(1000 + row) % len(CLASSES) for row in rows]
    noisy = [(label + 1 + row % 2) % len(CLASSES) for label, row in zip(clean, rows, strict=True)]
    value = pa.int32() if field == "label" else pa.string()
    value_of = (lambda label: label) if field == "label" else caption
    changed = pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "key": pa.array([f"toy/{1000 + row}" for row in rows], pa.string()),
            "clean": pa.array([value_of(label) for label in clean], value),
            "noisy": pa.array([value_of(label) for label in noisy], value),
        }
    )
    Overlay(
        kind="symmetric" if field == "label" else "caption_swap",
        field="label" if field == "label" else "caption",
        level=level,
        of="corpus",
        seed=0,
        corpus="toy",
        rows=100,
        eligible=100,
        changed=level,
        realised_percent=level,
        realised_percent_of_subset=level,
    ).write(folder, changed)


def caption(label: int) -> str:
    return f"a drawing of a {CLASSES[label]}"


@dataclass(frozen=True)
class Toy:
    root: Path

    @property
    def corpus(self) -> Folder:
        return Folder.of(self.root / "corpus")

    def noise(self, field: str, level: int) -> Folder:
        return Folder.of(self.root / f"noise-{field}-{level}")


def write_toy(root: Path) -> Toy:
    toy = Toy(root)
    parts = {part: write_part(toy.corpus, part, 40) for part in ROWS}
    Index("toy", CLASSES, parts).write(toy.corpus)
    for level in LEVELS:
        for field in ("label", "caption"):
            write_noise(toy.noise(field, level), field, level)
    return toy


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """100 training rows in three segments, three classes, captions that name the class."""
    return write_toy(tmp_path_factory.mktemp("toy"))


def damage(corpus: Folder, part: str, rows: Callable[[str], bytes]) -> None:
    """Replace images of a part: `rows` gives the bytes for a key, or none to keep its image."""
    index = Index.read(corpus)
    files = []
    for file in index.parts[part]:
        table = corpus.read_table(file.file)
        pairs = zip(table["key"].to_pylist(), table["image"].to_pylist(), strict=True)
        images = pa.array([rows(key) or image for key, image in pairs], pa.binary())
        corpus.write_table(file.file, table.set_column(1, IMAGES.field("image"), images))
        data = corpus.read_bytes(file.file)
        digest = hashlib.sha256(data).hexdigest()
        files.append(File(file.file, file.rows, len(data), digest))
    Index(index.name, index.classes, {**index.parts, part: tuple(files)}).write(corpus)


@pytest.fixture(scope="session")
def damaged_toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A toy with three training images and one validation image that cannot be decoded."""
    toy = write_toy(tmp_path_factory.mktemp("damaged"))
    broken = {
        "toy/1007": png(0, 7)[:50],
        "toy/1040": b"<html>",
        "toy/1083": png(0, 7)[:40],
        "toy/2004": b"\x89PNG\r\n\x1a\n",
    }
    for part in ("train", "validation"):
        damage(toy.corpus, part, lambda key: broken.get(key, b""))
    return toy


@pytest.fixture
def own_toy(tmp_path: Path) -> Toy:
    """Another one, for a test that damages it."""
    return write_toy(tmp_path / "own")


def with_step(work: Work, **fields: Any) -> Work:
    """The work with changed fields of its step."""
    assert isinstance(work.spec, PretrainStep)
    return replace(work, spec=work.spec.model_copy(update=fields))


def schedule(**changes: object) -> Schedule:
    base: dict[str, object] = {
        "epochs": 2,
        "batch_size": 16,
        "optimizer": "adamw",
        "lr": 0.01,
        "warmup_epochs": 0.5,
    }
    return Schedule.model_validate(base | changes)


@pytest.fixture(scope="session")
def supervised() -> Callable[..., Supervised]:
    def make(**changes: object) -> Supervised:
        base: dict[str, object] = {
            "name": "small",
            "model": "resnet18",
            "model_options": SMALL,
            "image": IMAGE,
        }
        fields = {k: changes.pop(k) for k in list(changes) if k in Supervised.model_fields}
        return Supervised.model_validate(base | fields | {"schedule": schedule(**changes)})

    return make


@pytest.fixture(scope="session")
def contrastive() -> Callable[..., Contrastive]:
    def make(**changes: object) -> Contrastive:
        base: dict[str, object] = {
            "name": "tiny",
            "model": "tiny-clip",
            "model_options": TINY_CLIP,
            "image": ImageInput(size=16),
            "templates": ("a drawing of a {}",),
        }
        fields = {k: changes.pop(k) for k in list(changes) if k in Contrastive.model_fields}
        return Contrastive.model_validate(base | fields | {"schedule": schedule(**changes)})

    return make


def works_in(root: Path, toy: Toy) -> Callable[..., Work]:
    """A function that makes runs on a toy, with all that they write below a folder."""

    def make(
        recipe: Recipe,
        name: str = "run",
        *,
        level: int = 30,
        seed: int = 0,
        field: str | None = None,
        **resources: object,
    ) -> Work:
        field = field or ("label" if isinstance(recipe, Supervised) else "caption")
        return Work(
            address=f"pretrain/{name}",
            fingerprint=f"fingerprint-{name}",
            spec=PretrainStep(
                recipe=recipe, seed=seed, resources=Resources.model_validate(resources)
            ),
            inputs={"corpus": toy.corpus, "noise": toy.noise(field, level)},
            output=Folder.of(root / name / "output"),
            scratch=Folder.of(root / name / "scratch"),
        )

    return make


@pytest.fixture
def make_work(toy: Toy, tmp_path: Path) -> Callable[..., Work]:
    return works_in(tmp_path, toy)

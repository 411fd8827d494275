"""Real digits, small untrained encoders of both families, and cells on them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from jobs.contract import Outcome, Work
from jobs.corpus.reader_spec import DigitsReader
from jobs.corpus.spec import Corpus
from jobs.encoders.encoder import Architecture, EncoderCard, Family, save, weights_bytes
from jobs.images.spec import Augment, ImageInput, Shift, Views
from jobs.storage.folder import Folder
from jobs.tasks.spec import Task
from jobs.tuning.finetune.cell import Cell, close
from jobs.tuning.methods import Method
from jobs.tuning.search_space import Space
from jobs.tuning.spec import EncoderTuning, TuneStep
from jobs.tuning.trained import Configuration
from tests.jobs.tuning.blobs import nested

CLASSES = tuple(map(str, range(10)))
VIEWS = Views(count=2, augment=Augment(degrees=10, translate=0.1))
CORPUS = Corpus(name="digits", reader=DigitsReader(), rows_per_shard=300)
TASK = Task(name="digits", title="Digits", domain="id", corpus=CORPUS)
INVERTED = Task(
    name="digits-inverted",
    title="Inverted digits",
    domain="ood",
    corpus=CORPUS,
    shift=Shift(kind="invert"),
    trained_on="digits",
)
SPACE = Space.model_validate({"lr": {"loguniform": [0.003, 0.01]}, "weight_decay": 0.0001})
REGULARISED = SPACE.model_copy(update={"cov": 0.04, "svd": 0.001})
METHODS = {
    "ft": Method(head="linear", adapt="ft", space=SPACE),
    "lora": Method(head="linear", adapt="lora", rank=2, space=SPACE),
    "ft-nmtune": Method(head="linear", adapt="ft", space=REGULARISED),
}

MODELS: dict[str, tuple[Family, str, dict[str, Any], int]] = {
    "resnet": ("timm", "resnet18", {"channels": [8, 8, 16, 24]}, 1),
    "vit": (
        "timm",
        "vit_tiny_patch16_224",
        {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2},
        1,
    ),
    "clip": (
        "open_clip",
        "clip-small",
        {
            "embed_dim": 24,
            "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 4},
            "text_cfg": {
                "context_length": 8,
                "vocab_size": 49408,
                "width": 16,
                "heads": 2,
                "layers": 1,
            },
        },
        3,
    ),
}


def put_encoder(folder: Folder, kind: str = "resnet", seed: int = 0, **more: Any) -> Folder:
    """Write an encoder to a folder; its weights are drawn from the seed. `more`: model options."""
    family, name, options, channels = MODELS[kind]
    options = options | more
    image = ImageInput(size=16, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    classes = CLASSES if family == "timm" else ()
    architecture = Architecture(family, name, options, image, len(classes))
    torch.manual_seed(seed)
    model = architecture.build()
    weights = weights_bytes(model)
    digest = hashlib.sha256(weights).hexdigest()
    dim = architecture.feature_dim(model)
    save(
        folder,
        EncoderCard(family, name, options, image, classes, dim, digest, "order", digest),
        weights,
    )
    return folder


def step(method: str | Method = "ft", **changes: object) -> TuneStep:
    named = METHODS[method] if isinstance(method, str) else method
    fields: dict[str, object] = {
        "task": TASK,
        "method_name": method if isinstance(method, str) else named.adapt,
        "method": named,
        "fraction": 30.0,
        "seed": 0,
        "encoder": EncoderTuning(views=VIEWS),
    }
    return nested(fields, {"configurations": 2, "epochs": 2, "batch_size": 64}, changes)


def work(folder: Path, address: str, spec: TuneStep, **inputs: Folder) -> Work:
    return Work(
        address,
        "0" * 64,
        spec,
        inputs,
        Folder.of(folder / "out" / address),
        Folder.of(folder / "scratch" / address),
    )


CONFIGURATIONS = (Configuration(lr=0.003, weight_decay=1e-4), Configuration(lr=0.01))


def train_all(cell: Work, configurations: tuple[Configuration, ...] = CONFIGURATIONS) -> Outcome:
    """Train and close a cell in this process."""
    opened = Cell.open(cell)
    for number, configuration in enumerate(configurations):
        tuning = opened.start(number, configuration)
        while len(tuning.history) < opened.step.settings.epochs and tuning.failure is None:
            tuning.run_epoch()
        opened.keep(number, tuning)
    return close(cell, configurations)

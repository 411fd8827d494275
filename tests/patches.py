"""A features folder of patches of small scenes, made by the real stages without Ray."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from scenes import CLASSES, parquet

from jobs.contract import Outcome
from jobs.corpus.shards import Index
from jobs.corpus.spec import Corpus
from jobs.corpus.units import Unit, units_of
from jobs.encoders.encoder import Architecture, EncoderCard, gridded, opened, weights_bytes
from jobs.features.extract import extract
from jobs.features.identity import identity
from jobs.features.parts import finish, save_unit
from jobs.features.spec import FeaturesStep
from jobs.images.spec import Affine, Grid, ImageInput, Shift, Views
from jobs.storage.folder import Folder
from tests.jobs.corpus.conftest import built

ROWS, SIDE = 40, 4


@dataclass(frozen=True)
class Extracted:
    """What a features step has left."""

    step: FeaturesStep
    card: EncoderCard
    units: Sequence[Unit]
    scratch: Folder
    folder: Folder
    corpus: Folder
    outcome: Outcome

    def identity(self, step: FeaturesStep) -> str:
        return identity(step, self.card, "cpu")


def corpus(path: Path, name: str = "scenes") -> Corpus:
    reader = {"kind": "parquet", "path": str(path), "mask": "mask", "classes": CLASSES}
    parts = {"train": 0.5, "validation": 0.2, "test": 0.3}
    given = {"name": name, "reader": {**reader, "key": ["key"]}, "parts": parts}
    return Corpus.model_validate(given)


def extracted(root: Path, shift: Shift | None = None) -> Extracted:
    """Patches of ROWS scenes by an untrained CNN: SIDE x SIDE of 16 dimensions, two views."""
    spec = corpus(parquet(root / "scenes.parquet", ROWS))
    (folder, _), scratch = built(spec, root), Folder.of(root / "units")
    options = {"channels": [8, 8, 16, 24]}
    image = ImageInput(size=64, mean=(0.5,), std=(0.25,))
    torch.manual_seed(0)
    model = Architecture("timm", "resnet18", options, image, 0).build()
    sha256 = hashlib.sha256(weights_bytes(model)).hexdigest()
    card = EncoderCard("timm", "resnet18", options, image, (), 24, None, None, sha256)
    step = FeaturesStep(
        images="scenes",
        parts=("train", "validation", "test"),
        views=Views(count=2, augment=Affine(translate=0.2)),
        dtype="float16",
        grid=Grid(layer=-2),
        shift=shift,
    )
    index = Index.read(folder)
    units = units_of(index, step.parts, 7)
    encoder = gridded(opened(card, model, torch.device("cpu"), {}), step.grid or Grid(), 3)
    for unit in units:
        save_unit(scratch, unit, extract(unit, folder, index.name, encoder, step))
    output = Folder.of(root / "features")
    return Extracted(
        step,
        card,
        units,
        scratch,
        output,
        folder,
        finish(step, index, units, scratch, output),
    )

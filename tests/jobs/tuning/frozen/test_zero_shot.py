"""A zero-shot cell is like any other cell, with a head that is not trained."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from jobs.contract import StageError
from jobs.encoders.encoder import Architecture, EncoderCard, load, save, weights_bytes
from jobs.images.spec import ImageInput
from jobs.storage.folder import Folder
from jobs.tuning import schema
from jobs.tuning.draw import draw
from jobs.tuning.frozen.cell import adapt, transfer
from jobs.tuning.frozen.features import FeatureCache
from jobs.tuning.frozen.zero_shot import class_words, classifier
from jobs.tuning.methods import Method
from jobs.tuning.spec import Tuning
from tests.jobs.tuning.blobs import CLASSES, id_task, ood_task, step
from tests.jobs.tuning.conftest import MakeWork
from tests.jobs.tuning.frozen.test_frozen_cell import read_cell

DIM = 16
TEMPLATES = ("a drawing of {}", "{}, by hand")
METHOD = Method.model_validate({"head": "zero_shot", "templates": TEMPLATES})
TINY = {
    "embed_dim": DIM,
    "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 1,
    },
}


def write_encoder(folder: Path, architecture: Architecture) -> Folder:
    features = Folder.of(folder)
    torch.manual_seed(0)
    model = architecture.build()
    card = EncoderCard(
        family=architecture.family,
        model=architecture.model,
        model_options=architecture.model_options,
        input=architecture.input,
        classes=("a", "b") if architecture.classes else (),
        feature_dim=architecture.feature_dim(model),
        initial_weights_sha256=None,
        order_sha256=None,
        weights_sha256=hashlib.sha256(weights_bytes(model)).hexdigest(),
    )
    save(features, card, weights_bytes(model))
    return features


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    architecture = Architecture("open_clip", "tiny", TINY, ImageInput(size=16), 0)
    return write_encoder(tmp_path_factory.mktemp("clip"), architecture)


def write_features(folder: Path, weights: torch.Tensor) -> Folder:
    """Write features of two lengths in the direction of their class's text embedding."""
    features = Folder.of(folder)
    for part in ("train", "validation", "test"):
        labels = np.arange(40) % len(CLASSES)
        noise = np.random.default_rng(len(part)).normal(size=(40, DIM))
        vectors = weights.numpy()[labels] + 0.01 * noise
        vectors *= np.where(np.arange(40) % 3 == 0, 10, 0.1)[:, None]
        table = {
            "key": [f"{part}-{row:02d}" for row in range(40)],
            "view": pa.array([0] * 40, pa.int16()),
            "label": pa.array(labels, pa.int32()),
            "vector": pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.astype(np.float32).ravel()), DIM
            ),
        }
        features.write_table(f"features-{part}.parquet", pa.table(table))
    features.write_json("classes.json", list(CLASSES))
    return features


def test_the_head_is_the_mean_over_the_templates(clip: Folder) -> None:
    model, tokenizer = load(clip).model, open_clip.SimpleTokenizer(context_length=16)
    with torch.no_grad():
        for name, row in zip(CLASSES, classifier(clip, CLASSES, TEMPLATES), strict=True):
            texts = tokenizer([template.format(name) for template in TEMPLATES])
            mean = model.encode_text(texts, normalize=True).mean(0)
            torch.testing.assert_close(row, mean / mean.norm(), rtol=1e-5, atol=1e-6)


def test_a_zero_shot_cell_is_selected_tested_and_transferred(
    clip: Folder, make_work: MakeWork, tmp_path: Path
) -> None:
    features = write_features(tmp_path / "features", classifier(clip, CLASSES, TEMPLATES))
    spec = step(method=METHOD, method_name="zs", task=id_task(), configurations=1)
    work = make_work("cell", spec, features=features, encoder=clip)
    adapt(work, draw(METHOD.space, 1, 0), FeatureCache())
    cell = read_cell(work.output)
    assert (cell.head, cell.configurations, cell.test_reads) == ("zero_shot", 1, 1)
    assert cell.test_accuracy == 100
    assert work.output.read_json(schema.HEAD_CARD)["kind"] == "linear"
    other = step(method=METHOD, method_name="zs", task=ood_task(), configurations=1)
    shifted = make_work("ood", other, features=features, head=work.output)
    transfer(shifted)
    assert read_cell(shifted.output).test_accuracy == 100


def test_an_encoder_that_reads_no_text_is_refused(tmp_path: Path) -> None:
    architecture = Architecture(
        "timm", "resnet18", {"channels": [4, 4, 4, 4]}, ImageInput(size=32), 2
    )
    folder = write_encoder(tmp_path / "timm", architecture)
    with pytest.raises(StageError, match="a timm model, which reads no text"):
        classifier(folder, CLASSES, TEMPLATES)


def test_class_names_become_words() -> None:
    assert class_words(["fire_truck", "oxford  cat"]) == ["fire truck", "oxford cat"]
    ids = [f"n{number:08d}" for number in range(1000)]
    words = class_words(ids[::-1])
    assert words[-1] == "tench"
    assert words[0] == "toilet paper"
    with pytest.raises(StageError, match="2 classes are named by WordNet ids"):
        class_words(ids[:2])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"head": "zero_shot", "space": {"lr": 0.1}}, "nothing to search"),
        ({"head": "zero_shot", "templates": ["a photo"]}, "needs one {} for the class's name"),
        ({"head": "linear", "space": {"lr": 0.1}, "templates": ["{}"]}, "belong to a zero_shot"),
        ({"head": "linear"}, "needs lr"),
        ({"head": "zero_shot", "adapt": "ft"}, "puts a linear head"),
    ],
)
def test_a_method_without_a_meaning_is_refused(method: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Method.model_validate(method)


def test_it_is_allowed_with_any_search() -> None:
    Tuning.model_validate(
        {
            "methods": {
                "zs": {"head": "zero_shot"},
                "lp": {"head": "linear", "space": {"lr": {"grid": [0.1, 0.2]}}},
            },
            "search": "grid",
            "configurations": 2,
        }
    )

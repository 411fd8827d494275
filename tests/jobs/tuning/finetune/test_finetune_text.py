"""A cell that trains a text encoder: the same loop as for images, on tokens kept in memory."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.contract import Work
from jobs.encoders.encoder import load
from jobs.images.spec import Views
from jobs.storage.folder import Folder
from jobs.tasks.spec import Task
from jobs.tuning import schema
from jobs.tuning.finetune.cell import Cell, close, state_name, transfer
from jobs.tuning.finetune.model import adapted_layers
from jobs.tuning.finetune.train import State
from jobs.tuning.methods import Method
from jobs.tuning.spec import EncoderTuning, TuneStep
from jobs.tuning.trained import Configuration
from tests.jobs.text.models import (
    CONFIGS,
    features_of,
    imported,
    put_corpus,
    put_model,
    table,
    texts,
)
from tests.jobs.tuning.finetune.digits import TASK, step, work

CONFIGURATION = Configuration(lr=0.01)
MASKED = EncoderTuning(views=Views(count=2, mask=0.2).of("text"))
PLAIN = EncoderTuning(views=Views(count=0))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    rows = table(texts(400, longest=9))
    parts = {
        "train": rows.slice(0, 240),
        "validation": rows.slice(240, 80),
        "test": rows.slice(320),
    }
    return put_corpus(Folder.of(tmp_path_factory.mktemp("corpus")), parts)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    found = {}
    for kind in CONFIGS:
        root = tmp_path_factory.mktemp(kind)
        imported(put_model(root / "m", kind), root)
        found[kind] = Folder.of(root / "out")
    return found


def spec(method: str | Method, seen: EncoderTuning = PLAIN, **changes: object) -> TuneStep:
    return step(method, encoder=seen, fraction=100.0, **changes)


def trained(cell: Work, epochs: int = 2) -> None:
    opened = Cell.open(cell)
    tuning = opened.start(0, CONFIGURATION)
    for _ in range(epochs):
        tuning.run_epoch()
    opened.keep(0, tuning)
    close(cell, [CONFIGURATION])


def test_lora_adapts_the_mlp_layers_of_each_kind_and_never_the_attentions(
    encoders: dict[str, Folder],
) -> None:
    layers = {}
    for kind, folder in encoders.items():
        opened = load(folder)
        layers[kind] = adapted_layers(opened.card, opened.model)
    bert = [
        f"encoder.layer.{n}.{part}.dense" for n in (0, 1) for part in ("intermediate", "output")
    ]
    assert layers["bert"] == layers["roberta"] == bert
    assert layers["gpt2"] == [f"h.{n}.mlp.{part}" for n in (0, 1) for part in ("c_fc", "c_proj")]
    assert layers["modernbert"] == [
        f"layers.{n}.mlp.{part}" for n in (0, 1) for part in ("Wi", "Wo")
    ]
    parts = ("gate_proj", "up_proj", "down_proj")
    assert layers["qwen3"] == [f"layers.{n}.mlp.{part}" for n in (0, 1) for part in parts]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "qwen3"])
def test_lora_changes_its_adapters_and_the_head_alone(
    kind: str, encoders: dict[str, Folder], corpus: Folder, tmp_path: Path
) -> None:
    cell = Cell.open(work(tmp_path, "c", spec("lora"), encoder=encoders[kind], corpus=corpus))
    tuning = cell.start(0, CONFIGURATION)
    before = {n: v.clone() for n, v in tuning.adapted.encoder.model.state_dict().items()}
    some = cell.validation.prepared.take(torch.arange(8))
    plain = load(encoders[kind]).features(some)
    assert torch.allclose(tuning.adapted.features(some), plain, atol=1e-5)
    first = tuning.run_epoch()
    after = tuning.adapted.encoder.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".lora_" in name for name in changed)
    assert tuning.run_epoch().train["loss"] < first.train["loss"]


@pytest.mark.parametrize("method", ["ft", "lora"])
def test_a_continued_configuration_gives_the_same_numbers(
    method: str, encoders: dict[str, Folder], corpus: Folder, tmp_path: Path
) -> None:
    asked = spec(method, MASKED, epochs=2)
    whole = work(tmp_path, "whole", asked, encoder=encoders["bert"], corpus=corpus)
    broken = work(tmp_path, "broken", asked, encoder=encoders["bert"], corpus=corpus)
    tuning = Cell.open(whole).start(0, CONFIGURATION)
    for _ in range(2):
        tuning.run_epoch()
    for _ in range(2):  # as if each epoch ran in a new process
        opened = Cell.open(broken)
        going = opened.start(0, CONFIGURATION)
        going.run_epoch()
        opened.keep(0, going)
    left = State.read(broken.scratch.read_bytes(state_name(0)))
    assert left.history == tuple(tuning.history)
    for name, value in tuning.adapted.state().items():
        assert torch.equal(value, left.encoder[name]), name


def test_ft_writes_a_whole_encoder_with_its_tokenizer(
    encoders: dict[str, Folder], corpus: Folder, tmp_path: Path
) -> None:
    cell = work(tmp_path, "c", spec("ft"), encoder=encoders["bert"], corpus=corpus)
    trained(cell)
    files = {name for name, _ in cell.output.files()}
    assert {"model.safetensors", "encoder.json", "tokenizer.json", "tokenizer_config.json"} <= files
    before, after = load(encoders["bert"]), load(cell.output)
    rows = table(texts(9, longest=9))
    assert before.card.input == after.card.input
    assert not torch.allclose(
        features_of(before, rows),
        features_of(after, rows),
        atol=1e-3,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("method", ["ft", "lora"])
def test_an_ood_cell_tests_the_adapted_encoder_on_its_own_texts(
    method: str, encoders: dict[str, Folder], corpus: Folder, tmp_path: Path
) -> None:
    cell = work(tmp_path, "id", spec(method), encoder=encoders["gpt2"], corpus=corpus)
    trained(cell)
    again = TASK.model_copy(update={"name": "again", "domain": "ood", "trained_on": "digits"})
    ood = work(
        tmp_path,
        "ood",
        spec(method, task=again),
        encoder=encoders["gpt2"],
        corpus=corpus,
        head=cell.output,
    )
    transfer(ood)
    found = []
    for one in (cell, ood):
        (row,) = schema.from_table(schema.Cell, one.output.read_table(schema.CELL))
        found.append((row.test_accuracy, row.test_digest))
    assert found[0] == found[1]


def test_a_text_encoder_learns_a_word(
    encoders: dict[str, Folder], corpus: Folder, tmp_path: Path
) -> None:
    cell = Cell.open(
        work(
            tmp_path,
            "c",
            spec("ft", epochs=6, batch_size=16),
            encoder=encoders["bert"],
            corpus=corpus,
        )
    )
    tuning = cell.start(0, Configuration(lr=0.003))
    losses = [tuning.run_epoch().validation_loss for _ in range(6)]
    assert min(losses) < 0.8 * losses[0]


def test_a_target_that_is_a_number_is_learnt_from_texts(
    encoders: dict[str, Folder], tmp_path: Path
) -> None:
    """As STS-B is; the number is how long the text is."""
    written = texts(120, longest=9)
    rows = table(written)
    lengths = pa.array([len(text.split()) / 2 for text in written])
    rows = rows.set_column(3, "label", lengths)
    parts = {"train": rows.slice(0, 80), "validation": rows.slice(80, 20), "test": rows.slice(100)}
    folder = put_corpus(Folder.of(tmp_path / "corpus"), parts)
    source = {"kind": "remarks"}
    task = Task.model_validate(
        {"name": "lengths", "title": "x", "domain": "id", "source": "text"}
        | {"corpus": {"name": "texts", "modality": "text", "reader": source}}
    ).model_copy(update={"target": "number", "metric": "pearson"})
    learnt = spec("ft").model_copy(update={"task": task})
    cell = work(tmp_path, "tune/lengths", learnt, encoder=encoders["bert"], corpus=folder)
    trained(cell)
    predicted = pq.read_table(cell.output.local_path() / "predictions.parquet")
    assert pa.types.is_floating(predicted.schema.field("predicted").type)
    assert Cell.open(cell).training_rows.labels.dtype == torch.float64

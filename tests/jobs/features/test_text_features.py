"""Features of texts: in the rows' own order, with views by masking, with what was cut counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.contract import Outcome, StageError
from jobs.corpus.shards import Index
from jobs.corpus.units import units_of
from jobs.encoders.text import TextEncoder
from jobs.features.extract import extract
from jobs.features.identity import identity
from jobs.features.parts import finish, has_unit, save_unit
from jobs.features.spec import FeaturesStep
from jobs.images.spec import Views
from jobs.storage.folder import Folder
from tests.jobs.text.models import features_of, imported, put_corpus, put_model, table, texts

STEP = FeaturesStep(images="texts", parts=("train", "test"), views=Views(count=0))
VIEWED = STEP.model_copy(update={"views": Views(count=2, mask=0.3).of("text")})


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    root = tmp_path_factory.mktemp("encoder")
    _, opened = imported(put_model(root / "m", "bert"), root, max_length=20)
    return opened


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    rows = table(texts(120))
    parts = {"train": rows.slice(0, 80), "validation": rows.slice(0, 0), "test": rows.slice(80)}
    return put_corpus(Folder.of(tmp_path_factory.mktemp("corpus")), parts)


def extracted(
    root: Path, corpus: Folder, encoder: TextEncoder, step: FeaturesStep
) -> tuple[Outcome, Folder]:
    index = Index.read(corpus)
    units = units_of(index, step.parts)
    scratch, output = Folder.of(root / "scratch"), Folder.of(root / "out")
    for unit in units:
        save_unit(scratch, unit, extract(unit, corpus, "texts", encoder, step))
    return finish(step, index, units, scratch, output), output


def test_rows_keep_their_order_and_what_was_cut_is_counted_once(
    corpus: Folder, encoder: TextEncoder, tmp_path: Path
) -> None:
    outcome, output = extracted(tmp_path, corpus, encoder, VIEWED)
    rows = table(texts(120))
    cut = int(encoder.tokenizer.rows(rows).truncated.sum())
    assert 0 < cut < 120
    assert outcome.counts["rows_truncated"] == cut
    assert (outcome.counts["rows_train"], outcome.counts["rows_test"]) == (3 * 80, 40)
    for part, own in (("train", rows.slice(0, 80)), ("test", rows.slice(80))):
        found = output.read_table(f"features-{part}.parquet")
        plain = found.slice(0, len(own))
        assert plain["key"].to_pylist() == own["key"].to_pylist()
        assert plain["label"].to_pylist() == own["label"].to_pylist()
        vectors = torch.from_numpy(np.stack(plain["vector"].to_numpy()))
        assert (vectors - features_of(encoder, own)).abs().max() < 1e-5


def test_views_differ_from_the_plain_text_and_from_each_other(
    corpus: Folder, encoder: TextEncoder, tmp_path: Path
) -> None:
    (unit,) = units_of(Index.read(corpus), ["train"])
    whole = extract(unit, corpus, "texts", encoder, VIEWED)
    small = VIEWED.model_copy(update={"batch_size": 3})
    plain, one, two = np.stack(whole["vector"].to_numpy()).reshape(3, 80, -1)
    for a, b in ((plain, one), (plain, two), (one, two)):
        assert (np.abs(a - b).max(1) > 1e-3).mean() > 0.8
    again = np.stack(extract(unit, corpus, "texts", encoder, small)["vector"].to_numpy())
    assert np.abs(again - np.concatenate([plain, one, two])).max() < 1e-5


def test_a_resumed_step_keeps_the_count_of_what_was_cut(
    corpus: Folder, encoder: TextEncoder, tmp_path: Path
) -> None:
    first, _ = extracted(tmp_path, corpus, encoder, STEP)
    index = Index.read(corpus)
    units = units_of(index, STEP.parts)
    scratch = Folder.of(tmp_path / "scratch")
    made_with = identity(STEP, encoder.card, "cpu")
    assert all(has_unit(scratch, unit, made_with) for unit in units)
    assert finish(STEP, index, units, scratch, Folder.of(tmp_path / "b")) == first


def test_the_identity_names_the_libraries_that_make_a_texts_features(
    encoder: TextEncoder,
) -> None:
    made_with = json.loads(identity(STEP, encoder.card, "cpu"))
    assert set(made_with["versions"]) == {"torch", "transformers", "tokenizers", "numpy"}
    assert made_with["input"]["kind"] == "text"
    assert len(made_with["input"]["tokenizer_sha256"]) == 64


def test_a_text_that_is_too_long_is_named_where_it_is_to_be_refused(
    corpus: Folder, tmp_path: Path
) -> None:
    folder = put_model(tmp_path / "m", "bert")
    _, opened = imported(folder, tmp_path, max_length=20, truncate="refuse")
    (unit,) = units_of(Index.read(corpus), ["train"])
    cut = opened.tokenizer
    with pytest.raises(StageError, match=r"sample r\d{4} has more than 20 tokens"):
        extract(unit, corpus, "texts", opened, STEP)
    assert cut.budget == opened.batch_size("auto", "float32")
    assert opened.batch_size(7, "float32") == 7

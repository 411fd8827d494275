"""What a message about features, texts or memory tells its user to do works when it is done."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from pydantic import ValidationError

from embedding_server import Stub, error, serving, vector
from jobs.contract import Outcome, StageError, Work
from jobs.corpus.units import Unit
from jobs.embeddings.ledger import Ledger, Paid
from jobs.embeddings.texts import key_of
from jobs.encoders.image import ImageEncoder
from jobs.features import identity
from jobs.features.api import write_features
from jobs.features.extract import _checked_table
from jobs.features.job import _require_gpus
from jobs.features.parts import MADE_WITH, finish, may_add
from jobs.features.spec import FeaturesStep
from jobs.features.spectrum import spectra
from jobs.features.together import extract_unit
from jobs.images.rows import allocate
from jobs.images.spec import Views
from jobs.storage.folder import Folder
from jobs.text.count import tokens_per_row
from jobs.text.tokenizer import open_tokenizer
from tests.jobs.features.test_api_features import FIRST, SECOND, done, work
from tests.jobs.features.test_features_job import put_encoder
from tests.jobs.features.test_together import extract, job
from tests.jobs.features.test_together import put_corpus as put_images
from tests.jobs.text.models import imported, put_corpus, put_model, table

EYE = np.eye(8, 3, dtype=np.float32)
BIG = EYE.copy()
BIG[3, 1] = 1e6
PIXELS = torch.zeros(1 << 20, dtype=torch.uint8)
TEST = FeaturesStep(images="t", parts=("test",), views=Views(count=0))
BOTH = TEST.model_copy(update={"parts": ("train", "test")})


def checked(dtype: Any) -> pa.Table:
    """Features beyond float16, as they are stored in this type."""
    step = FeaturesStep(images="t", parts=("test",), views=Views(count=0), dtype=dtype)
    with np.errstate(over="ignore"):
        stored = BIG.astype(dtype)
    keys, labels = pa.array(list("abcdefgh")), pa.array([0] * 8, pa.int32())
    return _checked_table(
        Unit("test", "test-00000.parquet", 0, 8, 0), keys, labels, 0, stored, step
    )


CALLS: dict[str, tuple[Callable[[], Any], str, Callable[[], Any]]] = {
    "a spectrum of a vector": (
        lambda: spectra([EYE[0]]),
        r"give \[rows, dimensions\]$",
        lambda: spectra([EYE]),
    ),
    "a spectrum of two encoders": (
        lambda: spectra([EYE, EYE[:, :2]]),
        "give features of one encoder$",
        lambda: spectra([EYE, EYE]),
    ),
    "a spectrum of overflown numbers": (
        lambda: spectra([BIG.astype(np.float16)]),
        "extract them again in (?P<dtype>float32)$",
        lambda: spectra([BIG.astype("float32")]),
    ),
    "features beyond float16": (
        lambda: checked("float16"),
        r"; ask for float32, or give it other weights$",
        lambda: checked("float32"),
    ),
    "more images than memory holds": (
        lambda: allocate(1 << 40, PIXELS, "train"),
        "train on a smaller fraction, or on a larger machine$",
        lambda: allocate(2, PIXELS, "train"),
    ),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_remedy_works_when_it_is_followed(name: str) -> None:
    refused, remedy, followed = CALLS[name]
    with pytest.raises((StageError, ValueError)) as caught:
        refused()
    assert re.search(remedy, str(caught.value)), caught.value
    assert followed() is not None


def test_views_are_changed_or_left_out() -> None:
    with pytest.raises(ValidationError) as caught:
        Views(count=2, augment={})  # type: ignore[arg-type]
    found = re.search(r"give augment (?P<all>.*) \(of texts: (\w+)\), or set", str(caught.value))
    assert found is not None
    moves = re.split(", | or ", found["all"])
    assert len(moves) == 4
    for name in moves:
        value = {"scale": (0.8, 1.2), "flip": True}.get(name, 0.1)
        Views.model_validate({"count": 2, "augment": {name: value}})
    Views.model_validate({"count": 2, found[2]: 0.1, "augment": {}})
    Views.model_validate({"count": 0, "augment": {}})


def test_a_gpu_is_left_out_or_added(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus: dict[str, float] = {}
    monkeypatch.setattr(ray, "cluster_resources", lambda: gpus)
    with pytest.raises(StageError, match="set it to 0 or add a node with GPUs"):
        _require_gpus(1)
    _require_gpus(0)
    gpus["GPU"] = 1
    _require_gpus(1)


def test_a_part_is_added_once_the_step_is_done_again(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path / "features")
    folder.write_json(MADE_WITH, {"torch": "1"})
    with pytest.raises(StageError, match="do the step again with --redo and its address"):
        may_add(folder, {"torch": "2"})
    folder.write_json(MADE_WITH, {"torch": "2"})  # as it is then
    assert may_add(folder, {"torch": "2"})


# -- texts -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_model(tmp_path_factory.mktemp("models") / "bert", "bert")


LONG = ["the film is good", " ".join(["good"] * 30)]


@pytest.mark.parametrize(
    ("settings", "remedy", "followed"),
    [
        (
            {"truncate": "refuse", "max_length": 8},
            r"sample r0001 has more than 8 tokens .*; set the encoder's max_length higher",
            {"truncate": "refuse", "max_length": 40},
        ),
        (
            {"truncate": "refuse", "max_length": 8},
            r"or truncate: (?P<truncate>end)$",
            {"truncate": "end", "max_length": 8},
        ),
        (
            {"pair": "concat4"},
            r"sample r0000 has no second text, .*, or the encoder another `pair`$",
            {"pair": "join"},
        ),
    ],
)
def test_texts_are_encoded_once_the_message_is_followed(
    settings: dict[str, Any], remedy: str, followed: dict[str, Any], bert: Path, tmp_path: Path
) -> None:
    _, refused = imported(bert, tmp_path / "a", **settings)
    with pytest.raises(StageError) as caught:
        list(refused.batches(table(LONG), 8, None, 1))
    assert re.search(remedy, str(caught.value)), caught.value
    _, opened = imported(bert, tmp_path / "b", **followed)
    assert list(opened.batches(table(LONG), 8, None, 1))
    if "pair" in settings:
        assert list(refused.batches(table(LONG, list(LONG)), 8, None, 1))


def test_a_tokenizer_is_saved_again(bert: Path, tmp_path: Path) -> None:
    whole = (bert / "tokenizer.json").read_bytes()
    settings = {"tokenizer_config.json": (bert / "tokenizer_config.json").read_bytes()}
    with pytest.raises(StageError, match="save the tokenizer again with save_pretrained"):
        open_tokenizer({"tokenizer.json": whole[:50]}, {})
    assert len(open_tokenizer({"tokenizer.json": whole, **settings}, {"model_type": "bert"}))
    rows = table(LONG)
    corpus = put_corpus(Folder.of(tmp_path), dict.fromkeys(("train", "validation", "test"), rows))
    with pytest.raises(StageError, match=r"tokenizer\.json cannot be read .*; save it again"):
        tokens_per_row(corpus, whole[:50], None)
    assert tokens_per_row(corpus, whole, None) > 10


# -- an encoder behind an API ----------------------------------------------------------------------


def fill(folder: Path, stub: Stub, factor: float = 1.0) -> tuple[Work, Callable[[], None]]:
    """A features step whose texts are in the ledger but for the last, and what adds that one."""
    one = work(folder, stub, "films")
    encoder = one.spec.api  # type: ignore[attr-defined]
    ledger = Ledger.of(one.root, encoder)
    ledger.begin(encoder)
    texts = list(dict.fromkeys(FIRST))
    vectors = factor * np.stack([vector(text) for text in texts])
    ledger.add([key_of(text) for text in texts[:-1]], vectors[:-1].astype(np.float32), Paid())
    return one, lambda: ledger.add([key_of(texts[-1])], vectors[-1:].astype(np.float32), Paid())


@pytest.mark.parametrize("way", ["raise max_price", "ask for fewer tasks"])
def test_texts_are_bought_for_a_higher_price_or_for_fewer_tasks(way: str, tmp_path: Path) -> None:
    price = {"price_per_million": 1e4, "max_price": 25}
    with serving() as stub:
        films = work(tmp_path, stub, "films", **price)
        both = done(films, work(tmp_path, stub, "pairs", pairs=True, **price))
        for error in both.values():
            assert re.search(
                f"more than max_price 25; .*{way}.*; nothing was asked for", str(error)
            )
        assert stub.requests == []
        more = price | {"max_price": 1000}
        again = [films]
        if way == "raise max_price":
            again = [
                work(tmp_path, stub, name, name == "pairs", **more) for name in ("films", "pairs")
            ]
        assert all(isinstance(found, Outcome) for found in done(*again).values())


@pytest.mark.parametrize("way", ["take these samples out", r"or shorten them \((?P<field>\w+)\)"])
def test_a_text_that_a_server_refuses_is_taken_out_or_shortened(way: str, tmp_path: Path) -> None:
    bad = max(FIRST, key=len)
    with serving() as stub:
        stub.fault = lambda texts, number: error(400, "bad words") if bad in texts else None
        one = work(tmp_path, stub, "films")
        message = str(done(one)[one.address])
        found = re.search(rf"samples \((?P<keys>[^)]+)\): 400.*{way}.* sweep again$", message)
        assert found is not None, message
        if "shorten" in way:
            again, rows = work(tmp_path, stub, "short", **{found["field"]: 8}), 90
        else:
            kept = table(FIRST)
            kept = kept.filter(~np.isin(kept["key"].to_pylist(), found["keys"].split(", ")))
            again, rows = one, len(kept)
            parts = {"train": kept.slice(0, 60), "validation": kept.slice(0, 0)}
            put_corpus(one.inputs["corpus"], {**parts, "test": kept.slice(60)})
        counts = getattr(done(again)[again.address], "counts", {})
        assert counts["rows_train"] + counts["rows_test"] == rows


def test_every_row_of_a_task_has_a_second_text_or_none_has(tmp_path: Path) -> None:
    with serving() as stub:
        one = work(tmp_path, stub, "films")
        alone, pairs = table(FIRST), table(FIRST, list(SECOND))
        mixed = {"train": alone.slice(0, 60), "validation": alone.slice(0, 0), "test": pairs[60:]}
        put_corpus(one.inputs["corpus"], mixed)
        message = str(done(one)[one.address])
        assert re.search("second text and others .*; give every row a pair, or none$", message)
        assert stub.requests == []
        for rows in (alone, pairs):
            put_corpus(
                one.inputs["corpus"],
                {"train": rows[:60], "validation": rows[:0], "test": rows[60:]},
            )
            assert isinstance(done(one)[one.address], Outcome)


def of_dtype(one: Work, dtype: str) -> Work:
    return replace(one, spec=one.spec.model_copy(update={"dtype": dtype}))


def test_vectors_of_an_api_are_stored_in_the_type_that_holds_them(tmp_path: Path) -> None:
    with serving() as stub:
        one, add = fill(tmp_path, stub, 1e6)
        with pytest.raises(StageError, match="lacks texts that were there before; run the same"):
            write_features(one)
        add()  # as the same command does
        with pytest.raises(StageError, match=r"set features\.dtype to float32$"):
            write_features(of_dtype(one, "float16"))
        assert write_features(of_dtype(one, "float32")).counts["rows_train"] == 60


def test_a_batch_that_does_not_fit_is_made_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = ImageEncoder.features

    def crowded(self: ImageEncoder, inputs: Any, *args: Any) -> torch.Tensor:
        if len(inputs) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return inner(self, inputs, *args)

    monkeypatch.setattr(ImageEncoder, "features", crowded)
    images, encoder = put_images(Folder.of(tmp_path / "c")), put_encoder(Folder.of(tmp_path), 0)
    (message,) = {str(error) for error in extract([job(tmp_path, "f", encoder, images, TEST)])}
    found = re.search(r"; set features\.(?P<field>\w+) to a small number$", message)
    assert found is not None, message
    smaller = TEST.model_copy(update={found["field"]: 8})
    assert extract([job(tmp_path, "f", encoder, images, smaller)]) == [None]


def test_features_of_two_versions_are_extracted_again_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, encoder = put_images(Folder.of(tmp_path / "c")), put_encoder(Folder.of(tmp_path), 0)
    one = job(tmp_path, "f", encoder, images, BOTH)
    first, *others = one.units
    assert others
    with monkeypatch.context() as older:
        older.setattr(identity, "version", lambda library: "0.1")
        assert extract_unit([one], first) == [None]
    assert [extract_unit([one], unit) for unit in others] == [[None]] * len(others)
    with pytest.raises(StageError, match=r"use one version on all nodes and run the step again$"):
        finish(one.step, one.index, one.units, one.work.scratch, one.work.output)
    assert extract([one]) == [None]
    assert finish(one.step, one.index, one.units, one.work.scratch, one.work.output).counts

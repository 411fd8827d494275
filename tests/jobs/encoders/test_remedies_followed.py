"""What a message about a pretrained encoder tells its user to do works when it is done.

Each case raises its message, from the settings, from a text model's folder or from a file of
weights; the remedy is read from the message and followed; then the encoder is planned, and its
weights are those of the file.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from followed import Table
from jobs.contract import StageError
from jobs.encoders.catalogue import check_open_clip, check_timm
from jobs.encoders.digests import digest
from jobs.encoders.inputs import image_input
from jobs.encoders.known import check_names
from jobs.encoders.model_folder import Limits, ModelFolder
from jobs.encoders.spec import ImageChange, PretrainedEncoder, TimmEncoder
from jobs.encoders.templates import Template
from jobs.encoders.weights import by_name, by_order, read
from jobs.images.spec import Views
from jobs.storage.folder import Folder
from tests.jobs.text.models import imported, put_model, table

CONFIG = {"model_type": "bert", "num_hidden_layers": 2, "max_position_embeddings": 64}
POOLING = {"pooling_mode_mean_tokens": True}
HUB = "0" * 40


@dataclass
class Case:
    """An encoder that is refused, with what following the message needs."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)

    def set(self, **fields: Any) -> None:
        self.settings |= fields

    def write(self, name: str, content: object) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))

    def text_model(self, *without: str, name: str = "bert", **config: Any) -> None:
        """A folder with a text model, of which nothing is opened here."""
        files = {"config.json": {**CONFIG, **config}, "model.safetensors": "", "vocab.txt": "a"}
        for file, content in files.items():
            if file not in without:
                self.write(f"{name}/{file}", content)
        self.set(kind="transformers", model=str(self.folder / name))

    def sentence_model(self, *modules: tuple[str, str], pooling: object = None) -> None:
        """The same with the modules of sentence-transformers."""
        self.text_model()
        named = [{"type": f"models.{kind}", "path": path} for kind, path in modules]
        self.write("bert/modules.json", named)
        self.write("bert/1_Pooling/config.json", POOLING if pooling is None else pooling)

    def file(self, **fields: Any) -> None:
        self.write("w.safetensors", "weights")
        self.set(kind="file", model="resnet18", file=str(self.folder / "w.safetensors"), **fields)

    def planned(self) -> Any:
        adapter: TypeAdapter[Any] = TypeAdapter(PretrainedEncoder)
        found = digest(adapter.validate_python({"name": "e", **self.settings}))
        if self.settings["kind"] == "transformers" and "revision" not in self.settings:
            config = ModelFolder.read(Folder.of(self.settings["model"])).config
            Limits.of(config).check("e", found.layer, found.max_length)
        return found


Follow = Callable[[Case, re.Match[str]], object]
CASES = Table()
case = CASES.case


def drop(*names: str) -> Follow:
    return lambda case, found: [case.settings.pop(name) for name in names]


def write(name: str, content: object) -> Follow:
    return lambda case, found: case.write(name, content)


def set_named(case: Case, found: re.Match[str]) -> None:
    """Set the field that the message names to the value that it gives."""
    value = found["value"]
    case.set(**{found["field"]: int(value) if value.lstrip("-").isdecimal() else value})


def copy_again(case: Case, found: re.Match[str]) -> None:
    case.sentence_model(("Transformer", ""), ("Pooling", "1_Pooling"))


# -- the settings ----------------------------------------------------------------------------------


@case(
    r"sha256 and leave_out belong to (?P<field>file); give it",
    lambda case, found: (
        case.write("w.safetensors", ""),
        case.set(**{found["field"]: str(case.folder / "w.safetensors")}),
    ),
)
def prefixes_of_no_file(case: Case) -> None:
    case.set(kind="extension", model="mine:small", leave_out=("head.",))


@case(r"belong to file; give it, or leave them out", drop("leave_out"))
def prefixes_without_need(case: Case) -> None:
    case.set(kind="extension", model="mine:small", leave_out=("head.",))


@case(
    r"such as my_methods:Shrinkage \(the file without \.py, a colon",
    lambda case, found: case.set(model="mine:small"),
)
def a_function_with_its_file_s_ending(case: Case) -> None:
    case.set(kind="extension", model="mine.py:small")


@case(
    r"classes names (?P<task>mine), but files has no such task; add it",
    lambda case, found: case.settings["files"].update(
        {found["task"]: str(case.folder / "f.parquet")}
    ),
)
def classes_of_a_task_without_a_file(case: Case) -> None:
    case.write("f.parquet", "")
    files = {"other": str(case.folder / "f.parquet")}
    case.set(kind="features", files=files, classes={"mine": ("a",)})


# -- files, as they are planned --------------------------------------------------------------------


@case(
    r"file = .* does not exist; correct the path",
    lambda case, found: case.set(file=str(case.folder / "w.safetensors")),
)
def a_file_that_is_not_there(case: Case) -> None:
    case.file()
    case.set(file=str(case.folder / "weights.safetensors"))


@case(
    r"or give its (?P<field>sha256) to plan without the file",
    lambda case, found: case.set(**{found["field"]: "0" * 64}),
)
def a_file_that_is_elsewhere(case: Case) -> None:
    case.file()
    case.set(file=str(case.folder / "weights.safetensors"))


@case(
    r"file = .* cannot be read \(.*\); give a file$",
    lambda case, found: case.set(file=str(case.folder / "w.safetensors")),
)
def a_folder_in_place_of_a_file(case: Case) -> None:
    case.file()
    case.set(file=str(case.folder))


def rename(case: Case, found: re.Match[str]) -> None:
    del case.settings[found["field"]]
    case.set(name="another")


@case(r"or leave out its (?P<field>sha256) and give the encoder a new name$", rename)
def another_file_than_its_digest_says(case: Case) -> None:
    case.file(sha256="0" * 64)


@case(r"or leave out (?P<field>sha256) and give the encoder a new name$", rename)
def another_model_than_its_digest_says(case: Case) -> None:
    case.text_model()
    case.set(sha256="0" * 64)


@case(r"or leave out (?P<field>tokenizer_sha256) and give the encoder a new name$", rename)
def another_tokenizer_than_its_digest_says(case: Case) -> None:
    case.text_model()
    tokenizer = case.settings["model"]
    case.set(kind="text_extension", model="mine:words", tokenizer=tokenizer)
    case.set(tokenizer_sha256="0" * 64)


# -- the folder of a text model --------------------------------------------------------------------


@case(
    r"has no config\.json; name the folder that save_pretrained wrote",
    lambda case, found: case.set(model=str(case.folder / "bert")),
)
def the_folder_above(case: Case) -> None:
    case.text_model()
    case.set(model=str(case.folder))


@case(
    r"or a model of the Hub with its (?P<field>revision)$",
    lambda case, found: case.set(**{found["field"]: HUB}),
)
def a_model_of_the_hub_without_its_revision(case: Case) -> None:
    case.set(kind="transformers", model="openai-community/gpt2")


@case(
    r"no package 'no_such_model' is installed; .*, or name a folder$",
    lambda case, found: case.set(model=str(case.folder / "bert")),
)
def a_package_that_is_not_installed(case: Case) -> None:
    case.text_model()
    case.set(model="package:no_such_model/model")


@case(
    r"has no weights \((?P<file>model\.safetensors) or .*\); save the model there with",
    lambda case, found: case.write(f"bert/{found['file']}", ""),
)
def a_folder_without_weights(case: Case) -> None:
    case.text_model("model.safetensors")


@case(
    r"in (?P<file>pytorch_model\.bin), a pickle, .*; convert it once .*save_pretrained\(folder\)$",
    lambda case, found: case.write("bert/model.safetensors", ""),
)
def pickled_weights(case: Case) -> None:
    case.text_model("model.safetensors")
    case.write("bert/pytorch_model.bin", "")


@case(
    r"names (?P<file>\S+), which is not in the folder; copy all shards there$",
    lambda case, found: case.write(f"bert/{found['file']}", ""),
)
def a_shard_that_is_not_there(case: Case) -> None:
    case.text_model("model.safetensors")
    case.write("bert/a.safetensors", "")
    shards = {"weight_map": {"one": "a.safetensors", "two": "b.safetensors"}}
    case.write("bert/model.safetensors.index.json", shards)


@case(
    r"has no tokenizer \((?P<file>tokenizer\.json), .*\); save it there",
    lambda case, found: case.write(f"bert/{found['file']}", {}),
)
def a_folder_without_a_tokenizer(case: Case) -> None:
    case.text_model("vocab.txt")


@case(
    r"has auto_map: .*; use a model that transformers itself has$",
    lambda case, found: case.text_model(name="other"),
)
def a_model_with_code_of_its_own(case: Case) -> None:
    case.text_model(auto_map={"AutoModel": "m.M"})


@case(r"config\.json cannot be read .*; copy the model again$", write("bert/config.json", CONFIG))
def a_damaged_configuration(case: Case) -> None:
    case.text_model()
    case.write("bert/config.json", "{")


@case(r"config\.json holds no dict; copy the model again$", write("bert/config.json", CONFIG))
def a_configuration_that_is_a_list(case: Case) -> None:
    case.text_model()
    case.write("bert/config.json", [])


@case(r"set the encoder's (?P<field>max_length) to (?P<value>64) or less$", set_named)
def more_tokens_than_positions(case: Case) -> None:
    case.text_model()
    case.set(max_length=100)


@case(r"set the encoder's (?P<field>layer) to one of them, or .* with (?P<value>-1)$", set_named)
def a_layer_that_the_model_has_not(case: Case) -> None:
    case.text_model()
    case.set(layer=12)


# -- sentence-transformers -------------------------------------------------------------------------


@case(
    r"has the model in (?P<path>\w+); name that folder, with the (?P<field>pooling) and",
    lambda case, found: case.set(
        model=str(case.folder / "bert" / found["path"]), **{found["field"]: "mean"}
    ),
)
def a_model_in_a_folder_below(case: Case) -> None:
    case.sentence_model(("Transformer", "0_Transformer"), ("Pooling", "1_Pooling"))
    model = case.settings["model"]
    case.text_model(name="bert/0_Transformer")
    case.set(model=model)


@case(r"has its pooling in '', which is no folder's name; copy the model again$", copy_again)
def a_pooling_without_a_folder(case: Case) -> None:
    case.sentence_model(("Transformer", ""), ("Pooling", ""))


@case(r"use a model of Transformer, Pooling and Normalize alone$", copy_again)
def a_module_that_changes_vectors(case: Case) -> None:
    case.sentence_model(("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))


@case(r"pools by max, .*; use a model that pools by cls, mean or last token$", copy_again)
def another_pooling(case: Case) -> None:
    pooling = {"pooling_mode_max_tokens": True}
    case.sentence_model(("Transformer", ""), ("Pooling", "1_Pooling"), pooling=pooling)


@case(
    r"pools without the tokens of its prompt, .*; use another model$",
    lambda case, found: case.text_model(name="other"),
)
def a_pooling_without_its_prompt(case: Case) -> None:
    pooling = {**POOLING, "include_prompt": False}
    case.sentence_model(("Transformer", ""), ("Pooling", "1_Pooling"), pooling=pooling)
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    case.write("bert/config_sentence_transformers.json", prompts)


@case(r"is no list of modules; copy the model again$", copy_again)
def modules_that_are_words(case: Case) -> None:
    case.text_model()
    case.write("bert/modules.json", ["Transformer"])


@pytest.mark.parametrize("name", CASES)
def test_a_remedy_works_when_it_is_followed(name: str, tmp_path: Path) -> None:
    make, remedy, follow = CASES[name]
    refused = Case(tmp_path)
    make(refused)
    with pytest.raises((StageError, ValidationError)) as caught:
        refused.planned()
    message = str(caught.value).partition(" [type=")[0]
    found = re.search(remedy, message)
    assert found is not None, message
    follow(refused, found)
    refused.planned()


# -- weights ---------------------------------------------------------------------------------------


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 6))


def state() -> dict[str, Tensor]:
    return dict(model().state_dict())


Tensors = dict[str, Tensor]
OTHER = {"0.weight": torch.zeros(4, 5), **{n: v for n, v in state().items() if n != "0.weight"}}
ARCHITECTURE = r"name its architecture in `model`"
FITTING: dict[str, tuple[Tensors, str, Callable[[re.Match[str]], tuple[Tensors, tuple[str, ...]]]]]
FITTING = {
    "a tensor that is missing": (
        {n: v for n, v in state().items() if n != "1.bias"},
        rf"the first: 1\.bias\); {ARCHITECTURE}",
        lambda found: (state(), ()),
    ),
    "a tensor too many": (
        {**state(), "head.weight": torch.zeros(2, 6)},
        r"the first: (?P<prefix>head\.)weight\); .* or their prefix in `leave_out`",
        lambda found: ({**state(), "head.weight": torch.zeros(2, 6)}, (found["prefix"],)),
    ),
    "a tensor of another shape": (
        OTHER,
        r"name the file's architecture in `model` and `model_options`",
        lambda found: (state(), ()),
    ),
}


@pytest.mark.parametrize("name", FITTING)
def test_weights_fit_a_model_once_the_message_is_followed(name: str) -> None:
    tensors, remedy, follow = FITTING[name]
    with pytest.raises(StageError) as caught:
        by_name(tensors, state(), ())
    found = re.search(remedy, str(caught.value))
    assert found is not None, caught.value
    tensors, leave_out = follow(found)
    filled, _ = by_name(tensors, state(), leave_out)
    assert all(torch.equal(filled[name], value) for name, value in state().items())


@pytest.mark.parametrize(
    "tensors",
    [
        {n: v for n, v in state().items() if n != "1.bias"},
        {**state(), "more": torch.zeros(3, 3)},
        OTHER,
    ],
)
def test_weights_in_order_fit_the_architecture_that_the_message_asks_for(tensors: Tensors) -> None:
    with pytest.raises(StageError, match=r"architecture in `model`"):
        by_order(tensors, state(), 6)
    own = {f"tensor{n}": value for n, value in enumerate(tensors.values())}
    wanted = {f"layer{n}": torch.ones_like(value) for n, value in enumerate(tensors.values())}
    filled, _ = by_order(own, wanted, 6)
    assert [*map(torch.Tensor.tolist, filled.values())] == [v.tolist() for v in tensors.values()]


@pytest.mark.parametrize("content", ["a whole model", "numbers", "nothing", "text"])
def test_a_file_is_read_once_its_model_s_state_dict_is_saved(tmp_path: Path, content: str) -> None:
    path = tmp_path / "w.pth"
    if content == "text":
        path.write_text("no weights")
    else:
        others = {"a whole model": model(), "numbers": {"lr": 0.1}, "nothing": {}}
        torch.save(others[content], path)
    with pytest.raises(StageError, match=r"save .*the model's state_dict\(\)") as caught:
        read(path)
    if "as safetensors" in str(caught.value):
        path = path.with_suffix(".safetensors")
        safetensors.torch.save_file(state(), path)
    else:
        torch.save(model().state_dict(), path)
    assert all(torch.equal(read(path)[name], value) for name, value in state().items())


# -- opened models ---------------------------------------------------------------------------------

Opened = tuple[str, dict[str, Any], dict[str, Any], str, Callable[[re.Match[str]], dict[str, Any]]]
OPENED: dict[str, Opened] = {
    "a mistyped kind of model": (
        "bert",
        {"model_type": "brt"},
        {},
        r"\(near: .*\b(?P<model_type>bert)\b.*\); correct it",
        lambda found: {"config": found.groupdict()},
    ),
    "an encoder-decoder": (
        "bert",
        {"model_type": "t5"},
        {},
        r"use an encoder or a decoder$",
        lambda found: {"config": {"model_type": "bert"}},
    ),
    "quantised weights": (
        "bert",
        {"quantization_config": {}},
        {},
        r"quantization_config: .*; use the model's full weights$",
        lambda found: {"config": {"quantization_config": None}},
    ),
    "a configuration of another model": (
        "bert",
        {"num_hidden_layers": 3},
        {},
        r"do not fit its config\.json: the file lacks .*; copy both from one model$",
        lambda found: {"config": {"num_hidden_layers": 2}},
    ),
    "a configuration that contradicts itself": (
        "bert",
        {"num_attention_heads": 5},
        {},
        r"config\.json describes, cannot be loaded \(The hidden size .*\); copy both again",
        lambda found: {"config": {"num_attention_heads": 4}},
    ),
    "a pooler that a decoder has not": (
        "gpt2",
        {},
        {"pooling": "pooler"},
        r"has no pooler; set the encoder's (?P<field>pooling) to cls, mean or (?P<value>last)$",
        lambda found: {found["field"]: found["value"]},
    ),
    "a pooler of a layer": (
        "bert",
        {},
        {"pooling": "pooler", "layer": 1},
        r"a pooler reads the last layer; leave out (?P<field>layer)",
        lambda found: {found["field"]: None},
    ),
    "another pooling of a layer": (
        "bert",
        {},
        {"pooling": "pooler", "layer": 1},
        r"or set (?P<field>pooling) to cls, (?P<value>mean) or last$",
        lambda found: {found["field"]: found["value"]},
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: put_model(root / kind, kind) for kind in ("bert", "gpt2")}


@pytest.mark.parametrize("name", OPENED)
def test_a_model_is_opened_once_the_message_is_followed(
    name: str, models: dict[str, Path], tmp_path: Path
) -> None:
    kind, config, settings, remedy, follow = OPENED[name]
    folder = Path(shutil.copytree(models[kind], tmp_path / kind))
    edit(folder, config)
    with pytest.raises(StageError) as caught:
        imported(folder, tmp_path / "refused", **settings)
    found = re.search(remedy, str(caught.value))
    assert found is not None, caught.value
    followed = follow(found)
    edit(folder, followed.pop("config", {}))
    outcome, _ = imported(folder, tmp_path / "followed", **{**settings, **followed})
    assert outcome.counts["dim"] == 32


def test_a_damaged_or_incomplete_file_of_weights_is_copied_or_not_asked_for(
    models: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(models["bert"], tmp_path / "bert"))
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(StageError, match=r"cannot be loaded .*; copy both again, or use another"):
        imported(folder, tmp_path / "cut")
    tensors = safetensors.torch.load(whole)
    some = {name: value for name, value in tensors.items() if not name.startswith("pooler.")}
    file.write_bytes(safetensors.torch.save(some, {"format": "pt"}))
    with pytest.raises(StageError) as caught:
        imported(folder, tmp_path / "pooler", pooling="pooler")
    found = re.search(
        r"no weights for its pooler; set the .* to cls, (?P<to>\w+) or", str(caught.value)
    )
    assert found is not None, caught.value
    assert imported(folder, tmp_path / "mean", pooling=found["to"])[0].counts["dim"] == 32
    file.write_bytes(whole)
    assert imported(folder, tmp_path / "again", pooling="pooler")[0].counts["dim"] == 32


def edit(folder: Path, config: dict[str, Any]) -> None:
    """Change fields of a model's configuration; None: leave them out."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **config}
    path.write_text(json.dumps({name: v for name, v in values.items() if v is not None}))


@pytest.mark.parametrize(
    ("kind", "views", "remedy"),
    [
        (
            "bert",
            {"count": 1},
            r"features\.views\.(?P<field>mask) is 0; set it to (?P<value>0\.15)",
        ),
        ("bert", {"count": 1}, r"or features\.views\.(?P<field>count) to (?P<value>0)$"),
        ("gpt2", {"count": 1, "mask": 0.2}, r"features\.views\.(?P<field>count) to (?P<value>0),"),
    ],
)
def test_views_of_texts_are_made_or_left_out_as_the_message_says(
    kind: str, views: dict[str, Any], remedy: str, models: dict[str, Path], tmp_path: Path
) -> None:
    _, opened = imported(models[kind], tmp_path)
    rows = table(["the film is good", "the film is bad"])
    (batch,) = opened.batches(rows, 8, None, 1)

    def made(views: dict[str, Any]) -> Any:
        found = Views.model_validate(views)
        keys, numbers = rows["key"].combine_chunks(), range(1, found.count + 1)
        return opened.views(batch.inputs, keys, found, numbers, "c")

    with pytest.raises(StageError) as caught:
        made(views)
    found = re.search(remedy, str(caught.value))
    assert found is not None, caught.value
    changed = made({**views, found["field"]: float(found["value"])})
    assert (changed is batch.inputs) == (found["field"] == "count")


@pytest.mark.parametrize("value", ["whole", 1.0])
def test_weights_that_want_padded_images_take_the_change_that_the_message_gives(
    value: Any,
) -> None:
    declared = {"input_size": (3, 32, 32), "crop_mode": "border"}
    with pytest.raises(StageError, match=rf"set the encoder's image\.crop_pct to .*{value}"):
        image_input(declared, ImageChange())
    found = image_input(declared, ImageChange(crop_pct=value))
    assert found.crop_pct == (None if value == "whole" else value)


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [check_timm, lambda name: check_open_clip(name, {})])
def test_the_model_that_a_message_means_is_known(check: Callable[[str], str | None]) -> None:
    message = check("resnet5O" if check is check_timm else "ViT-B-23")
    found = re.search(r"did you mean (?P<name>[^,?]+)", message or "")
    assert found is not None, message
    assert check(found["name"]) is None


def test_the_weights_that_a_message_means_are_known() -> None:
    message = check_names(TimmEncoder(name="e", model="resnet50", tag="a1_in1"))
    found = re.search(r"did you mean (?P<tag>[^,?]+)", message or "")
    assert found is not None, message
    assert check_names(TimmEncoder(name="e", model="resnet50", tag=found["tag"])) is None


def test_a_template_with_the_hole_that_the_message_asks_for_is_taken() -> None:
    adapter: TypeAdapter[str] = TypeAdapter(Template)
    for template in ("a photo", "a photo of {name}", "{} and {}", "a {"):
        with pytest.raises(
            ValidationError, match=r"needs one (\{\}) for the class's name"
        ) as error:
            adapter.validate_python(template)
        hole = re.search(r"needs one (\S+)", str(error.value))
        assert hole is not None
        adapter.validate_python(f"a photo of {hole[1]}")

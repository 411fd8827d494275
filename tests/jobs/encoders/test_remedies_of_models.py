"""What a message about an encoder's model or its finished folder tells its user to do works."""

import json
import re
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import timm
import torch
from open_clip import factory

from jobs.contract import StageError, Work
from jobs.encoders.card import CARD, Architecture
from jobs.encoders.catalogue import check_open_clip, unknown
from jobs.encoders.digests import digest
from jobs.encoders.encoder import WEIGHTS, Encoder, gridded, load
from jobs.encoders.known import check_names
from jobs.encoders.pretrained import import_encoder
from jobs.encoders.pretrained_text import own_input
from jobs.encoders.spec import (
    EncoderStep,
    FileEncoder,
    OpenClipEncoder,
    OwnEncoder,
    OwnTextEncoder,
    TimmEncoder,
    TransformersEncoder,
)
from jobs.images.spec import Grid, ImageInput, Shift
from jobs.storage.folder import Folder
from tests.jobs.encoders.own_models import IMAGE, MINE, SOURCE
from tests.jobs.encoders.test_grid import CNN, encoder
from tests.jobs.encoders.test_pretrained import hub, keep  # noqa: F401 - a fixture
from tests.jobs.text.models import imported, put_model, table, words_tokenizer

COLOUR = ImageInput(size=32)
CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 8, "width": 16, "heads": 2, "layers": 1},
}
NAMED = {**CLIP, "text_cfg": {**CLIP["text_cfg"], "hf_model_name": "org/model"}}
VISION = {**CLIP["vision_cfg"], "image_size": 32}
LACKING = {name: CLIP[name] for name in ("embed_dim", "vision_cfg")}


def timm_of(channels: Any) -> Architecture:
    return Architecture("timm", "resnet18", {"channels": channels}, COLOUR, 2)


def clip(options: dict[str, Any], channels: int = 3) -> Architecture:
    image = ImageInput(size=32, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    return Architecture("open_clip", "my-clip", options, image, 0)


def own(source: Any) -> Architecture:
    return Architecture("extension", "mine:small", {}, IMAGE, 2, source)


BUILT: dict[str, tuple[Callable[[], Any], str, Callable[[], Any]]] = {
    "a text model to be downloaded": (
        lambda: clip(NAMED).tokenizer(),
        r"name a Hugging Face text model, .*; write the text tower's configuration into text_cfg$",
        lambda: clip(CLIP).tokenizer(),
    ),
    "an extension without its file": (
        lambda: own(None).build(),
        r"planned without its file; name the file under `extensions` and plan again$",
        lambda: own(SOURCE).build(),
    ),
    "grey images for open_clip": (
        lambda: clip(CLIP, channels=1).build(),
        r"takes 3 channels, not 1; set image\.channels to 3",
        lambda: clip(CLIP, channels=3).build(),
    ),
    "half a configuration": (
        lambda: clip(LACKING).build(),
        r"lacks text_cfg; add them to model_options$",
        lambda: clip(CLIP).build(),
    ),
    "options that the library cannot use": (
        lambda: timm_of("small").build(),
        r"cannot be built with model_options .*; correct the recipe$",
        lambda: timm_of([8, 8, 8, 8]).build(),
    ),
}


@pytest.mark.parametrize("name", BUILT)
def test_a_model_is_built_once_the_message_is_followed(name: str) -> None:
    refused, remedy, followed = BUILT[name]
    with pytest.raises(StageError) as caught:
        refused()
    assert re.search(remedy, str(caught.value)), caught.value
    assert followed() is not None


NAMES: dict[str, tuple[str | None, str, str | None]] = {
    "half a configuration": (
        check_open_clip("mine", LACKING),
        "lack text_cfg; give a whole open_clip configuration, or name a known model and give none$",
        check_open_clip("mine", CLIP) or check_open_clip("ViT-B-32", {}),
    ),
    "a loss of its own": (
        check_open_clip("ViT-B-16-SigLIP", {}),
        r"is made for SigLIP's loss, .*; choose a model without one$",
        check_open_clip("ViT-B-16", {}),
    ),
    "a library that is not installed": (
        unknown("resnet18", "timm", frozenset()),
        "timm is not installed, .*; install timm$",
        unknown("resnet18", "timm", frozenset(timm.list_models("resnet18"))),
    ),
    "a revision of a folder": (
        check_names(TransformersEncoder(name="e", model="./my/bert", revision="0" * 40)),
        "is no id of the Hub, as in (?P<id>[\\w/-]+); correct it, or leave out revision",
        check_names(TransformersEncoder(name="e", model="./my/bert"))
        or check_names(
            TransformersEncoder(name="e", model="openai-community/gpt2", revision="0" * 40)
        ),
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_known_once_the_message_is_followed(name: str) -> None:
    message, remedy, followed = NAMES[name]
    assert re.search(remedy, message or ""), message
    assert followed is None


# -- finished folders, files and caches ------------------------------------------------------------


def work(spec: Any, root: Path) -> Work:
    folder = Folder.of(root)
    step = EncoderStep(encoder=digest(spec))
    return Work("encoder/e", "f", step, {}, folder / "out", folder / "scratch")


def refused(make: Callable[[], Any], remedy: str) -> re.Match[str]:
    with pytest.raises(StageError) as caught:
        make()
    found = re.search(remedy, str(caught.value))
    assert found is not None, caught.value
    return found


@pytest.fixture
def weights(tmp_path: Path) -> FileEncoder:
    """A small encoder of a file of weights."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", channels=[8, 8, 8, 8], num_classes=0)
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    options = {"channels": [8, 8, 8, 8]}
    return FileEncoder(name="e", model="resnet18", file=str(file), model_options=options)


def test_a_finished_encoder_is_made_again(weights: FileEncoder, tmp_path: Path) -> None:
    one = work(weights, tmp_path)
    import_encoder(one)
    path, card = one.output.local_path() / WEIGHTS, one.output.local_path() / CARD
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    refused(lambda: load(one.output), r"is not the file that .* names .*; make this encoder again$")
    import_encoder(one)
    assert load(one.output).dim == 8
    whole = card.read_text()
    stored = json.loads(whole)
    card.write_text(json.dumps({**stored, "input": {**stored["input"], "kind": "sound"}}))
    refused(lambda: load(one.output), "install the version that made this encoder$")
    card.write_text(json.dumps({**stored, "model_options": {"channels": [4, 8, 8, 8]}}))
    refused(lambda: load(one.output), r"do not fit timm .*; install the version that trained it$")
    card.write_text(whole)  # as the other version reads it
    assert load(one.output).dim == 8


def test_a_planned_file_of_weights_is_put_there_or_planned_again(
    weights: FileEncoder, tmp_path: Path
) -> None:
    one, path = work(weights, tmp_path), Path(weights.file)
    data = path.read_bytes()
    path.unlink()
    refused(lambda: import_encoder(one), "does not exist where this step runs; put it there")
    path.write_bytes(data)
    assert import_encoder(one).counts["dim"] == 8
    tensors = safetensors.torch.load(data)
    safetensors.torch.save_file(
        {name: value + 0 for name, value in tensors.items()}, path, {"a": "b"}
    )
    refused(lambda: import_encoder(one), r"not the file that was planned .*; run again$")
    assert import_encoder(work(weights, tmp_path)).counts["dim"] == 8


def test_weights_without_a_network_are_copied_or_named_as_a_file(
    hub: Path,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    spec = TimmEncoder(name="e", model="resnet10t", tag="c3_in1k")
    remedy = r"connect .*, copy them into \$HF_HOME/hub, or name a file with kind: (?P<kind>file)$"
    refused(lambda: import_encoder(work(spec, tmp_path)), remedy)
    model = timm.create_model("resnet10t", pretrained=False)
    keep(hub, "timm/resnet10t.c3_in1k", "model.safetensors", model.state_dict())
    assert import_encoder(work(spec, tmp_path)).counts["dim"] == 512
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    found = FileEncoder(name="e", model="resnet10t", file=str(file))
    assert import_encoder(work(found, tmp_path)).counts["dim"] == 512


def test_damaged_weights_in_the_cache_are_copied_there_again(
    hub: Path,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    spec = TimmEncoder(name="e", model="resnet10t", tag="c3_in1k")
    model = timm.create_model("resnet10t", pretrained=False)
    keep(hub, "timm/resnet10t.c3_in1k", "model.safetensors", model.state_dict())
    (file,) = hub.rglob("model.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    remedy = r"not in the local cache, or damaged there, .*, copy them into \$HF_HOME/hub, or"
    refused(lambda: import_encoder(work(spec, tmp_path)), remedy)
    file.write_bytes(whole)
    assert import_encoder(work(spec, tmp_path)).counts["dim"] == 512


def test_damaged_weights_of_open_clip_are_deleted_and_downloaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for registry in ("_MODEL_CONFIG_PATHS", "_MODEL_CONFIGS"):  # as they are, for later tests
        monkeypatch.setattr(factory, registry, copy(getattr(factory, registry)))
    (tmp_path / "tiny-clip.json").write_text(json.dumps({**CLIP, "vision_cfg": VISION}))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    whole = open_clip.CLIP(**CLIP | {"vision_cfg": VISION}).state_dict()
    file = tmp_path / "open_clip_model.safetensors"

    def download(tag: object) -> str:
        if not file.exists():
            safetensors.torch.save_file({n: v.contiguous().clone() for n, v in whole.items()}, file)
        return str(file)

    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: {"hf_hub": "x"})
    monkeypatch.setattr(open_clip, "download_pretrained", download)
    file.write_bytes(b"<html>")
    spec = OpenClipEncoder(name="e", model="tiny-clip", tag="x")
    found = refused(
        lambda: import_encoder(work(spec, tmp_path)),
        r" in (?P<path>\S+) cannot be loaded .*; delete that file, which is then downloaded again",
    )
    Path(found["path"]).unlink()
    assert import_encoder(work(spec, tmp_path)).counts["dim"] == 16


def test_a_tag_that_the_message_gives_is_known(tmp_path: Path) -> None:
    for spec, remedy in (
        (TimmEncoder(name="e", model="resnet10t", tag="c3"), r"did you mean (?P<tag>\w+)"),
        (OpenClipEncoder(name="e", model="ViT-B-32", tag="x"), r"did you mean (?P<tag>\w+)"),
    ):
        found = refused(lambda: import_encoder(work(spec, tmp_path)), remedy)  # noqa: B023
        library = timm if isinstance(spec, TimmEncoder) else __import__("open_clip")
        if library is timm:
            assert timm.get_pretrained_cfg(f"{spec.model}.{found['tag']}") is not None
        else:
            assert library.get_pretrained_cfg(spec.model, found["tag"])


# -- maps of patches -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "right"), [(Grid(layer=99), Grid(layer=-1)), (Grid(size=8), Grid(size=64))]
)
def test_another_layer_or_size_gives_a_map(wrong: Grid, right: Grid) -> None:
    images = encoder("resnet18", CNN) if wrong.layer else encoder("vit_tiny_patch16_224", VIT)
    refused(
        lambda: gridded(images, wrong, 2),
        r"gives no map of patches .*; choose another features\.grid\.layer or size, or another",
    )
    if wrong.layer is None:
        images = encoder("resnet18", CNN)
    gridded(images, right, 2)


VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize(
    ("grid", "fault"),
    [(Grid(), r"8 x 2 pixels are not square\)"), (Grid(layer=0), "of 4 x 16 patch")],
)
def test_another_encoder_gives_a_square_map(grid: Grid, fault: str) -> None:
    images = encoder("vit_tiny_patch16_224", {**VIT, "patch_size": (8, 2)})
    refused(lambda: gridded(images, grid, 2), rf"{fault}.*(choose|or) another encoder$")
    found: Any = gridded(encoder("vit_tiny_patch16_224", VIT), grid, 2)
    assert found.side == 4


WIDE = (
    MINE
    + """
class Wide(Net):
    def map(self, images):
        return super().map(images)[:, :, 1:]

def wide(image): return Wide(image.channels, 8)
"""
)


def own_encoder(root: Path, text: str, model: str) -> Encoder:
    root.mkdir()
    (root / "mine.py").write_text(text)
    source = type(SOURCE).of("mine", text)
    spec = OwnEncoder(name="e", model=model, source=source, image={"size": 16})
    import_encoder(work(spec, root))
    return load(Folder.of(root) / "out", source=source)


def test_an_extension_has_one_map_which_is_square(tmp_path: Path) -> None:
    sound = own_encoder(tmp_path / "a", MINE, "mine:small")
    found = refused(
        lambda: gridded(sound, Grid(layer=1), 2), r"; leave out features\.grid\.(?P<field>layer)$"
    )
    gridded(sound, Grid.model_validate({found["field"]: None}), 2)
    wide = own_encoder(tmp_path / "b", WIDE, "mine:wide")
    refused(
        lambda: gridded(wide, Grid(), 2), "a square one is needed; let its method map give one$"
    )
    bare = own_encoder(tmp_path / "c", MINE, "mine:bare")
    refused(lambda: gridded(bare, Grid(), 2), r"no method map\); correct its method map, choose")


def test_an_extension_is_opened_by_the_text_that_made_it(tmp_path: Path) -> None:
    own_encoder(tmp_path / "a", MINE, "mine:small")
    made, other = Folder.of(tmp_path / "a/out"), f"{MINE}\n"
    source = type(SOURCE).of("mine", other)
    refused(lambda: load(made, source=source), r"another text of mine\.py than .*; plan again$")
    assert own_encoder(tmp_path / "b", other, "mine:small").dim == 8  # as it is then planned
    assert load(Folder.of(tmp_path / "b/out"), source=source).dim == 8


def test_the_tokenizer_of_an_extension_is_planned_again(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    words_tokenizer().save_pretrained(folder)
    spec = OwnTextEncoder(name="e", model="mine:words", tokenizer=str(folder))
    planned: Any = digest(spec)
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": 9}))
    refused(lambda: own_input(planned), r"files that were planned \(other sha256\); run again$")
    again: Any = digest(spec)
    assert own_input(again)[0].tokenizer_sha256 != planned.tokenizer_sha256


# -- texts -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_model(tmp_path_factory.mktemp("models") / "bert", "bert")


def edit(folder: Path, **config: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def test_a_text_encoder_has_neither_patches_nor_shifts(bert: Path, tmp_path: Path) -> None:
    _, texts = imported(bert, tmp_path)
    refused(lambda: gridded(texts, Grid(), 2), "give tasks of masks another encoder$")
    gridded(encoder("resnet18", CNN), Grid(size=64), 2)
    rows, shift = table(["a good film"]), Shift(kind="rotate", strength=10)
    refused(lambda: list(texts.batches(rows, 8, shift, 1)), "leave out the task's shift")
    assert list(texts.batches(rows, 8, None, 1))


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        # As the version of transformers checks the configuration, or builds the model by it.
        ({"hidden_size": "wide"}, r"configuration .*; correct its config|; copy both again, or"),
        ({"model_type": "vit", "vocab_size": None}, r"has no vocabulary\); use a text model$"),
        (
            {"auto_map": {"AutoModel": "x.y"}},
            r"never run; use a model that transformers itself has$",
        ),
    ],
)
def test_a_configuration_is_corrected(
    config: dict[str, Any], remedy: str, bert: Path, tmp_path: Path
) -> None:
    path = bert / "config.json"
    whole = path.read_text()
    try:
        edit(bert, **config)
        refused(lambda: imported(bert, tmp_path / "a"), remedy)
    finally:
        path.write_text(whole)
    assert imported(bert, tmp_path / "b")[0].counts["dim"] == 32


def test_a_planned_text_model_is_put_there_or_planned_again(bert: Path, tmp_path: Path) -> None:
    spec = TransformersEncoder(name="e", model=str(bert))
    one, away = work(spec, tmp_path), bert.with_name("away")
    bert.rename(away)
    refused(lambda: import_encoder(one), "does not exist where this step runs; put it there")
    away.rename(bert)
    path = bert / "config.json"
    whole = path.read_text()
    edit(bert, initializer_range=0.5)
    refused(lambda: import_encoder(one), r"files that were planned \(other sha256\); run again$")
    assert import_encoder(work(spec, tmp_path)).counts["dim"] == 32
    path.write_text(whole)

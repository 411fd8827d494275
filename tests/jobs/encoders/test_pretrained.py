"""The libraries' own loading imports pretrained encoders offline, from files and caches."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from jobs.contract import Outcome, StageError, Work
from jobs.encoders.digests import digest
from jobs.encoders.encoder import Encoder, load
from jobs.encoders.inputs import declared, image_input
from jobs.encoders.known import check_names
from jobs.encoders.pretrained import import_encoder
from jobs.encoders.spec import EncoderStep, FileEncoder, ImageChange, OpenClipEncoder, TimmEncoder
from jobs.images.pixels import to_input, to_pixels
from jobs.storage.folder import Folder

CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate Hugging Face cache, without network."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def keep(hub: Path, repository: str, name: str, state: dict[str, torch.Tensor]) -> None:
    """Write weights into huggingface_hub's cache, as if downloaded."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    revision = "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(revision)
    (folder / "snapshots" / revision).mkdir(parents=True)
    safetensors.torch.save_file(
        {key: value.contiguous().clone() for key, value in state.items()},
        folder / "snapshots" / revision / name,
    )


def photograph(shape: tuple[int, int]) -> Image.Image:
    """An image of `shape` (height, width), in smooth colours, so that resamplings differ."""
    small = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    return Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC)


def work(encoder: Any, root: Path) -> Work:
    folder = Folder.of(root)
    step = EncoderStep(encoder=digest(encoder))
    return Work("encoder/e", "f", step, {}, folder / "out", folder / "scratch")


def imported(encoder: Any, root: Path) -> tuple[Outcome, Encoder]:
    one = work(encoder, root)
    outcome = import_encoder(one)
    return outcome, load(one.output)


@pytest.mark.parametrize("shape", [(333, 500), (500, 333), (40, 30)])
@pytest.mark.parametrize(
    "name",
    [
        "tf_efficientnet_b3.ns_jft_in1k",
        "resnetv2_152x2_bit.goog_in21k",
        "convnext_large_mlp.clip_laion2b_augreg",
        "vit_base_patch16_siglip_224.webli",  # squashes
    ],
)
def test_timm_weights_get_timms_own_evaluation_transform(name: str, shape: tuple[int, int]) -> None:
    own = image_input(declared(timm.get_pretrained_cfg(name)), ImageChange())
    resolved = timm.data.resolve_data_config(pretrained_cfg=declared(timm.get_pretrained_cfg(name)))
    transform = timm.data.create_transform(**resolved)
    image = photograph(shape)
    torch.testing.assert_close(to_input(to_pixels(image, own)[None], own)[0], transform(image))


@pytest.mark.parametrize(
    ("model", "tag"), [("ViT-B-32", "laion2b_s34b_b79k"), ("ViT-B-16-SigLIP", "webli")]
)
def test_open_clip_weights_get_open_clips_own_evaluation_transform(model: str, tag: str) -> None:
    cfg = {"input_size": 224, **open_clip.get_pretrained_cfg(model, tag)}
    own = image_input(cfg, ImageChange())
    names = ("mean", "std", "interpolation", "resize_mode")
    kept = open_clip.transform.PreprocessCfg(size=224, **{name: cfg[name] for name in names})
    transform = open_clip.transform.image_transform_v2(kept, is_train=False)
    image = photograph((333, 500))
    torch.testing.assert_close(to_input(to_pixels(image, own)[None], own)[0], transform(image))


def test_the_experiment_file_may_change_the_input_and_must_where_images_are_padded() -> None:
    cfg = declared(timm.get_pretrained_cfg("resnet18"))
    assert image_input(cfg, ImageChange(crop_pct="whole")).crop_pct is None
    changed = image_input(cfg, ImageChange(crop_pct=1.0, interpolation="bilinear"))
    assert (changed.crop_pct, changed.interpolation) == (1.0, "bilinear")
    padded = {**cfg, "crop_mode": "border"}
    with pytest.raises(StageError, match=r"padded to a square \(border\).*image.crop_pct to whole"):
        image_input(padded, ImageChange())
    assert image_input(padded, ImageChange(crop_pct=0.9)).crop_pct == 0.9


def test_a_timm_tag_comes_from_the_cache_with_its_own_input(hub: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = timm.create_model("resnet10t", pretrained=False)
    keep(hub, "timm/resnet10t.c3_in1k", "model.safetensors", model.state_dict())
    spec = TimmEncoder.model_validate({"name": "r", "model": "resnet10t.c3_in1k"})
    assert (spec.model, spec.tag) == ("resnet10t", "c3_in1k")
    outcome, opened = imported(spec, tmp_path)
    assert outcome.counts["dim"] == opened.dim == 512
    assert opened.card.input.size == 176
    assert opened.card.source["tag"] == "resnet10t.c3_in1k"
    assert opened.card.initial_weights_sha256 is None
    pixels = torch.randint(0, 256, (2, 3, 176, 176), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (opened.card.input.mean,) * 2)
    std = torch.tensor(opened.card.input.std).view(1, 3, 1, 1)
    inputs = (pixels.float() / 255 - mean) / std
    with torch.inference_mode():
        model.eval()
        expected = model.forward_head(model.forward_features(inputs), pre_logits=True)
    assert torch.allclose(opened.features(pixels), expected, atol=1e-5)


@pytest.mark.slow
def test_an_open_clip_tag_comes_from_the_cache(hub: Path, tmp_path: Path) -> None:
    options = open_clip.get_model_config("RN50")
    options["quick_gelu"] = True
    torch.manual_seed(1)
    model = open_clip.CLIP(**options)
    keep(hub, "timm/resnet50_clip.openai", "open_clip_model.safetensors", model.state_dict())
    spec = OpenClipEncoder(name="c", model="RN50", tag="openai")
    outcome, opened = imported(spec, tmp_path)
    assert outcome.counts["dim"] == opened.dim == 1024
    assert opened.card.model_options["quick_gelu"] is True
    assert opened.card.input.mean == open_clip.OPENAI_DATASET_MEAN
    images = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        mean = torch.tensor(opened.card.input.mean).view(1, 3, 1, 1)
        std = torch.tensor(opened.card.input.std).view(1, 3, 1, 1)
        expected = model.eval().encode_image((images - mean) / std)
    assert torch.allclose(opened.features(images), expected, atol=1e-4)


def test_without_network_and_cache_the_error_explains_how_to_get_the_weights(
    hub: Path, tmp_path: Path
) -> None:
    for spec in (
        TimmEncoder(name="r", model="resnet10t", tag="c3_in1k"),
        OpenClipEncoder(name="c", model="RN50", tag="openai"),
    ):
        with pytest.raises(StageError, match=r"not in the local cache.* \$HF_HOME/hub, or name a"):
            imported(spec, tmp_path / spec.name)
        assert not (tmp_path / spec.name / "out/encoder.json").exists()


def test_a_file_of_a_timm_model_gives_its_features(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = timm.create_model("resnet18", channels=[8, 8, 16, 24], num_classes=5)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    spec = FileEncoder(
        name="f",
        model="resnet18",
        model_options={"channels": [8, 8, 16, 24]},
        file=str(tmp_path / "w.pth"),
        image=ImageChange(size=32, mean=(0.5,), std=(0.5,)),
    )
    outcome, opened = imported(spec, tmp_path)
    assert outcome.counts["tensors_left_out"] == 2
    assert (
        opened.card.source["sha256"]
        == hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    )
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        found = model.eval().forward_features((images - 0.5) / 0.5)
        expected = model.forward_head(found, pre_logits=True)
    assert torch.allclose(opened.features(images), expected, atol=1e-5)


def test_a_file_of_an_open_clip_model_gives_its_image_embedding(tmp_path: Path) -> None:
    model = open_clip.CLIP(**CLIP)
    safetensors.torch.save_file(
        {name: value.clone() for name, value in model.state_dict().items()},
        tmp_path / "w.safetensors",
    )
    spec = FileEncoder(
        name="f",
        family="open_clip",
        model="mine",
        model_options=CLIP,
        file=str(tmp_path / "w.safetensors"),
    )
    _, opened = imported(spec, tmp_path)
    assert (opened.dim, opened.card.input.size) == (16, 32)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "w.pth")
    spec = FileEncoder(name="f", model="resnet34", file=str(tmp_path / "w.pth"))
    with pytest.raises(StageError, match=r"lacks \d+ of the model's .* match: order"):
        imported(spec, tmp_path)


def test_a_file_is_identified_by_its_content_and_not_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"one")
    (tmp_path / "b.pth").write_bytes(b"one")
    (tmp_path / "c.pth").write_bytes(b"two")
    made = [
        digest(FileEncoder(name="f", model="resnet18", file=str(tmp_path / name))).semantic()
        for name in ("a.pth", "b.pth", "c.pth")
    ]
    assert made[0] == made[1] != made[2]
    wrong = FileEncoder(name="f", model="resnet18", file=str(tmp_path / "c.pth"), sha256="0" * 64)
    with pytest.raises(StageError, match="holds other bytes"):
        digest(wrong)
    gone = FileEncoder(name="f", model="resnet18", file=str(tmp_path / "gone.pth"))
    with pytest.raises(StageError, match="does not exist; correct the path, or give its sha256"):
        digest(gone)
    assert digest(gone.model_copy(update={"sha256": "0" * 64})).semantic()["sha256"] == "0" * 64


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (TimmEncoder(name="e", model="resnet55"), "did you mean resnet50"),
        (TimmEncoder(name="e", model="tf_efficientnet_b3", tag="ns_jft"), "ns_jft_in1k"),
        (OpenClipEncoder(name="e", model="RN5O", tag="openai"), "RN50"),
        (FileEncoder(name="e", model="efficientnet_lit0", file="x"), "efficientnet_lite0"),
        (TimmEncoder(name="e", model="tf_efficientnet_b3", tag="ns_jft_in1k"), None),
        (FileEncoder(name="e", family="open_clip", model="m", model_options=CLIP, file="x"), None),
    ],
)
def test_mistyped_names_are_refused_before_anything_runs(encoder: Any, message: str | None) -> None:
    complaint = check_names(encoder)
    assert (message in complaint) if message and complaint else complaint is message

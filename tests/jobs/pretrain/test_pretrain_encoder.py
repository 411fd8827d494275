"""A finished encoder loads as it was trained, or not at all."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.contract import StageError, Work
from jobs.encoders import encoder
from jobs.encoders.encoder import Architecture, EncoderCard
from jobs.images.spec import ImageInput
from jobs.pretrain.run import train_run


def test_a_timm_encoder_gives_the_pooled_features_of_its_trained_weights(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    work = make_work(supervised())
    train_run(work)
    opened = encoder.load(work.output)
    assert (opened.dim, opened.card.classes) == (8, ("bar", "dot", "edge"))
    pixels = torch.randint(0, 256, (5, 1, 16, 16), dtype=torch.uint8)
    features = opened.features(pixels)
    assert (features.shape, features.dtype) == ((5, 8), torch.float32)
    assert torch.equal(features, opened.features(pixels.float() / 255)), "floats in [0, 1] too"
    assert torch.equal(features, encoder.load(work.output).features(pixels))
    assert not features.requires_grad
    model: Any = opened.model
    logits = model((pixels.float() / 255 - 0.5) / 0.5)
    assert torch.allclose(model.get_classifier()(features), logits, atol=1e-5)


def test_an_open_clip_encoder_gives_the_image_embedding_unnormalised(
    contrastive: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    work = make_work(contrastive(epochs=1))
    train_run(work)
    opened = encoder.load(work.output)
    features = opened.features(torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8))
    assert features.shape == (4, opened.dim) == (4, 16)
    assert not torch.allclose(features.norm(dim=1), torch.ones(4), atol=0.01)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("P", 3), ("RGBA", 1)])
def test_any_decoded_image_becomes_pixels_of_the_declared_input(mode: str, channels: int) -> None:
    from jobs.images.pixels import to_pixels

    spec = ImageInput(size=16, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    image = Image.fromarray(np.full((9, 7, 3), 80, np.uint8))
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    pixels = to_pixels(image, spec)
    assert (pixels.shape, pixels.dtype) == ((channels, 16, 16), torch.uint8)
    assert int((pixels.int() - 80).abs().max()) <= 1


def test_one_mean_is_for_all_channels_and_two_for_three_are_refused() -> None:
    from jobs.images.pixels import normalise

    images = torch.rand(2, 3, 8, 8)
    one = ImageInput(size=8, mean=(0.4,), std=(0.2,))
    three = ImageInput(size=8, mean=(0.4,) * 3, std=(0.2,) * 3)
    assert torch.equal(normalise(images, one), normalise(images, three))
    with pytest.raises(ValueError, match="one for each of 3 channels, not 2"):
        ImageInput(size=8, mean=(0.4, 0.4))
    with pytest.raises(ValueError, match="one for each of 1 channels, not 3"):
        ImageInput(size=8, channels=1)


def test_loading_an_encoder_draws_nothing_from_the_global_generator(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    work = make_work(supervised(epochs=1))
    train_run(work)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    encoder.load(work.output)
    assert torch.equal(torch.rand(1), expected)


def test_altered_weights_are_refused(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    work = make_work(supervised(epochs=1))
    train_run(work)
    data = bytearray(work.output.read_bytes(encoder.WEIGHTS))
    data[-1] ^= 1
    work.output.write_bytes(encoder.WEIGHTS, bytes(data))
    with pytest.raises(StageError, match=r"is not the file that encoder\.json names"):
        encoder.load(work.output)


def test_weights_of_another_build_of_the_model_are_refused(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    work = make_work(supervised(epochs=1))
    train_run(work)
    card = work.output.read_json(encoder.CARD)
    card["model_options"]["channels"] = [8, 8, 8, 12]
    work.output.write_json(encoder.CARD, card)
    with pytest.raises(StageError, match="do not fit timm model 'resnet18'"):
        encoder.load(work.output)


def test_a_card_read_from_its_file_is_unchanged(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    work = make_work(supervised(epochs=1))
    train_run(work)
    stored = work.output.read_json(encoder.CARD)
    card = EncoderCard.read(work.output)
    assert card.as_json() == stored
    assert (card.input, card.model_options) == (supervised().image, supervised().model_options)


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        (Architecture("timm", "resnet18", {"chanels": 3}, ImageInput(), 2), "chanels"),
        (
            Architecture("timm", "vit_tiny_patch16_224", {}, ImageInput(size=32), 2),
            "cannot encode its images",
        ),
        (
            Architecture(
                "open_clip", "RN50", {}, ImageInput(channels=1, mean=(0.5,), std=(0.5,)), 0
            ),
            "takes 3 channels",
        ),
        (
            Architecture("open_clip", "mine", {"embed_dim": 8}, ImageInput(), 0),
            "lacks vision_cfg, text_cfg; add them",
        ),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_in_one_sentence(
    architecture: Architecture, words: str
) -> None:
    with pytest.raises(StageError, match=words) as caught:
        architecture.build()
    assert "\n" not in str(caught.value)

"""What is told to be installed is what was missing; with it, the tool goes on."""

import re
import sys
from collections.abc import Callable
from importlib.metadata import requires
from typing import Any

import pytest
import torch

from jobs.contract import StageError
from jobs.embeddings import tokens
from jobs.embeddings.client import Client
from jobs.encoders import transformers
from jobs.encoders.api import ApiEncoder
from jobs.encoders.encoder import Architecture, EncoderCard
from jobs.encoders.known import check_names
from jobs.encoders.spec import OwnTextEncoder, TransformersEncoder
from jobs.encoders.text import TextEncoder
from jobs.images.spec import ImageInput
from jobs.text.spec import OwnTextInput
from jobs.tuning.finetune import model as finetune
from jobs.tuning.frozen.optuna_search import Optuna
from jobs.tuning.search_space import Space
from tests.jobs.encoders.own_models import SOURCE
from tests.jobs.text.models import words_tokenizer

API = ApiEncoder(name="e", base_url="http://127.0.0.1:1/v1", model="m")
VOYAGE = ApiEncoder(name="e", base_url="http://127.0.0.1:1/v1", model="m", tokens="voyage3_base")
TOKENIZER = {"tokenizer.json": words_tokenizer().backend_tokenizer.to_str().encode()}
TOKENIZER["tokenizer_config.json"] = b'{"tokenizer_class": "PreTrainedTokenizerFast"}'
IMAGE = ImageInput(size=32)
OPTIONS = {"channels": [8, 8, 8, 8]}


def adapt() -> None:
    torch.manual_seed(0)
    built = Architecture("timm", "resnet18", OPTIONS, IMAGE, 0).build()
    card = EncoderCard("timm", "resnet18", OPTIONS, IMAGE, (), 8, None, None, "0" * 64)
    finetune._inject(card, built, 2, 0)


def finished() -> TextEncoder:
    """A finished encoder of an extension, opened with its tokenizer."""
    text = OwnTextInput(
        max_length=8, pooling="mean", tokenizer_sha256="0", vocabulary=23, padding=0
    )
    built = Architecture("extension", "mine:words", {}, text, 0, SOURCE).build()
    card = EncoderCard("extension", "mine:words", {}, text, (), 8, None, None, "0" * 64)
    return TextEncoder(card, built, torch.device("cpu"), TOKENIZER)


def known(encoder: Any) -> None:
    if message := check_names(encoder):
        raise StageError(message)


NEEDS: dict[str, tuple[str, Callable[[], Any]]] = {
    "a text encoder that is planned": (
        "transformers",
        lambda: known(TransformersEncoder(name="e", model="org/m", revision="0" * 40)),
    ),
    "a text encoder": ("transformers", transformers.require),
    "a text encoder of one's own that is planned": (
        "transformers",
        lambda: known(OwnTextEncoder(name="e", model="mine:words", tokenizer="words")),
    ),
    "a finished text encoder of one's own": ("transformers", finished),
    "an encoder behind an API that is planned": ("openai", lambda: known(API)),
    "an encoder behind an API": ("openai", lambda: Client(API)),
    "tokens of an API's model that is planned": ("bpe_openai", lambda: known(VOYAGE)),
    "tokens of an API's model": (
        "bpe_openai",
        lambda: tokens.counter.__wrapped__("voyage3_base"),
    ),
    "adapters": ("peft", adapt),
    "a search by optuna": ("optuna", lambda: Optuna(Space(lr=0.1), 1, 0)),
}


@pytest.mark.parametrize("name", NEEDS)
def test_the_extra_that_a_message_names_brings_the_missing_package(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, use = NEEDS[name]
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, package, None)  # as where it is not installed
        with pytest.raises(StageError, match=r"nml-orch\[\w+\]") as caught:
            use()
    extra = re.search(r"install '?nml-orch\[(\w+)\]", str(caught.value))
    assert extra is not None, caught.value
    brought = [line for line in requires("nml-orch") or () if f"extra == '{extra[1]}'" in line]
    assert any(line.replace("-", "_").startswith(package) for line in brought), brought
    use()

"""An encoder of an extension is pre-trained as a library's is, and opened by its planned text."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from jobs.contract import StageError, Work
from jobs.encoders import encoder
from jobs.extensions.spec import Extension
from jobs.pretrain.run import train_run
from tests.jobs.encoders.own_models import MINE, PIXELS, SOURCE
from tests.jobs.pretrain.conftest import with_step


def test_an_encoder_of_an_extension_is_pretrained_and_opened_by_its_planned_text(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    recipe = supervised(model="mine:small", model_options={"width": 12}, lr=0.05, epochs=3)
    work = with_step(make_work(recipe, level=0), source=SOURCE)
    outcome = train_run(work)
    assert outcome.metrics["pretrain/val_accuracy"] > 60
    assert (work.output / "extension").read_bytes("mine.py").decode() == MINE
    opened = encoder.load(work.output, source=SOURCE)
    assert (opened.dim, opened.card.classes) == (12, ("bar", "dot", "edge"))
    assert opened.card.source["sha256"] == SOURCE.sha256
    model: Any = opened.model
    assert not torch.equal(model.encoder.norm.running_mean, torch.zeros(12))
    features = opened.features(PIXELS)
    plain = (PIXELS.float() / 255 - 0.5) / 0.5
    assert torch.allclose(features, model.encoder(plain), atol=1e-6)
    assert torch.allclose(model.classifier(features), model(plain), atol=1e-5)
    with pytest.raises(StageError, match="planned without its file; name the file under"):
        encoder.load(work.output)
    with pytest.raises(StageError, match=r"another text of mine\.py than this step was planned"):
        encoder.load(work.output, source=Extension.of("mine", f"{MINE}\n"))


def test_an_error_while_it_trains_is_told_with_its_line(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    late = MINE.replace("return self.norm(", "assert not self.training\n        return self.norm(")
    work = with_step(make_work(supervised(model="mine:small", model_options={})), source=None)
    work = with_step(work, source=Extension.of("mine", late))
    with pytest.raises(StageError, match=r"^mine\.py, line 13: AssertionError"):
        train_run(work)

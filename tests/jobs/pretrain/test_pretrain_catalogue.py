"""Model names are checked before anything heavy is imported."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import open_clip
import timm

from jobs.encoders.catalogue import open_clip_models, timm_models

LIGHT = """
import sys
from jobs.pretrain.spec import Schedule, Supervised
schedule = Schedule(epochs=1, batch_size=1, lr=1)
print(Supervised(name="x", model="resnet18", schedule=schedule).model_fault())
print(sorted({"torch", "timm", "open_clip", "ray", "numpy"} & set(sys.modules)))
"""


def test_the_catalogue_lists_the_models_of_the_libraries() -> None:
    assert timm_models() == set(timm.list_models())
    assert open_clip_models() == set(open_clip.list_models())


def test_checking_a_model_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["None", "[]"]


def test_the_error_of_a_mistyped_model_names_the_nearest(
    supervised: Callable[..., Any], contrastive: Callable[..., Any]
) -> None:
    message = supervised(model="resnet81").model_fault()
    assert message is not None
    assert "timm knows no model 'resnet81'" in message
    assert "resnet18" in message
    message = contrastive(model="vit-b-16", model_options={}).model_fault()
    assert message is not None
    assert "ViT-B-16" in message


def test_a_model_made_for_another_loss_is_refused(contrastive: Callable[..., Any]) -> None:
    for changes in (
        {"model": "ViT-B-16-SigLIP", "model_options": {}},
        {"model_options": {**contrastive().model_options, "init_logit_bias": -10}},
    ):
        assert "SigLIP's loss" in (contrastive(**changes).model_fault() or "")
    assert contrastive(model="ViT-B-16", model_options={}).model_fault() is None


def test_a_given_configuration_needs_no_known_name_but_must_be_whole(
    contrastive: Callable[..., Any],
) -> None:
    assert contrastive(model="anything").model_fault() is None
    message = contrastive(model_options={"embed_dim": 8}).model_fault()
    assert message is not None
    assert "vision_cfg, text_cfg" in message

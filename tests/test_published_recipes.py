"""The experiment files of the published runs: they plan, and say what was published."""

from typing import Any

import pytest
from PIL import Image

from jobs.images.transforms import needs_source_image, training_pixels
from jobs.pretrain.spec import Contrastive, Supervised
from orchestrator.experiment import load
from orchestrator.plan import build

SUPERVISED: dict[str, dict[str, Any]] = {
    "imagenet1k-resnet50": {
        "epochs": 300,
        "batch_size": 2048,
        "repeats": 3,
        "optimizer": "lamb",
        "lr": 5e-3,
    },
    "imagenet1k-resnet50-a3": {
        "epochs": 100,
        "batch_size": 2048,
        "repeats": 1,
        "optimizer": "lamb",
        "lr": 8e-3,
    },
    "imagenet1k-vit-b16": {
        "epochs": 300,
        "batch_size": 1024,
        "repeats": 3,
        "optimizer": "adamw",
        "lr": 1e-3,
    },
}
CONTRASTIVE = {"yfcc15m-rn50": 4096, "yfcc15m-vit-b16": 8192, "cc12m-vit-b16": 8192}


@pytest.mark.parametrize("name", [*SUPERVISED, *CONTRASTIVE])
def test_a_published_run_plans_with_a_model_that_exists(name: str) -> None:
    loaded = load.load(name, overrides=["corpus.reader.path=/data/given"])
    recipe = loaded.pretrain.recipe
    assert recipe.model_fault() is None
    steps = [address for address in build.build(loaded).steps if address.startswith("pretrain/")]
    assert len(steps) == 5
    assert needs_source_image(recipe.augment)
    image = Image.new("RGB", (300, 200), (10, 200, 30))
    size = recipe.image.size
    assert training_pixels(image, recipe.image, recipe.augment, 1).shape == (3, size, size)


@pytest.mark.parametrize("name", SUPERVISED)
def test_the_supervised_recipes_are_the_published_ones(name: str) -> None:
    recipe = load.load(name).pretrain.recipe
    assert isinstance(recipe, Supervised)
    schedule = recipe.schedule.model_dump()
    assert SUPERVISED[name].items() <= schedule.items()
    assert schedule["warmup_epochs"] == 5
    assert recipe.mix.on
    assert recipe.mix.cutmix == 1.0


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_the_contrastive_recipes_are_the_published_ones(name: str) -> None:
    recipe = load.load(name).pretrain.recipe
    assert isinstance(recipe, Contrastive)
    schedule = recipe.schedule
    assert (schedule.lr, schedule.weight_decay, schedule.epochs) == (5e-4, 0.1, 32)
    assert schedule.batch_size == CONTRASTIVE[name]
    assert schedule.cosine == "after_warmup"

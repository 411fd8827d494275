"""What a message about pre-training tells its user to do works when it is done."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from jobs.contract import StageError
from jobs.corpus.shards import File
from jobs.pretrain.damaged import DamagedImages
from jobs.pretrain.data.order import Order
from jobs.pretrain.distributed import DistributedGroup
from jobs.pretrain.objectives.supervised import SupervisedObjective
from jobs.pretrain.packs import Node, group_slots, infeasible_message
from jobs.pretrain.spec import Pretrain, Resources
from jobs.validation import in_words

SCHEDULE = {"epochs": 3, "batch_size": 64, "lr": 0.1}
RECIPE = {"objective": "supervised", "name": "r", "model": "resnet18", "schedule": SCHEDULE}
CLIP = {"objective": "contrastive", "name": "c", "model": "RN50", "schedule": SCHEDULE}
Changes = Mapping[str, Any]
SPECS: dict[str, tuple[dict[str, Any], Changes, str, Changes]] = {
    "groups that do not divide a batch": (
        RECIPE,
        {"mix": {"mixup": 0.2, "group": 48}},
        r"does not divide schedule\.batch_size 64; choose an even divisor of it$",
        {"mix": {"mixup": 0.2, "group": 32}},
    ),
    "groups of an odd size": (
        RECIPE,
        {"mix": {"mixup": 0.2, "group": 31}},
        r"must be a multiple of 2$|must be a multiple of (?P<of>2)",
        {"mix": {"mixup": 0.2, "group": 32}},
    ),
    "a threshold of another loss": (
        RECIPE,
        {"bce_threshold": 0.2},
        r"remove it or set the (?P<field>loss)$",
        {"bce_threshold": 0.2, "loss": "bce"},
    ),
    "copies in a contrastive batch": (
        CLIP,
        {"schedule": {**SCHEDULE, "repeats": 3}},
        r"schedule\.repeats would .*; leave it out of a contrastive recipe$",
        {"schedule": SCHEDULE},
    ),
    "a warm-up that does not end": (
        RECIPE,
        {"schedule": {**SCHEDULE, "warmup_epochs": 4}},
        r"longer than the training of 3 epochs, .*; shorten it$",
        {"schedule": {**SCHEDULE, "warmup_epochs": 3}},
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_remedy_of_a_recipe_works(name: str) -> None:
    recipe, wrong, remedy, right = SPECS[name]
    with pytest.raises(ValidationError) as caught:
        Pretrain.model_validate({"recipe": copy.deepcopy(recipe) | wrong})
    assert re.search(remedy, in_words(caught.value.errors()[0])), caught.value
    Pretrain.model_validate({"recipe": copy.deepcopy(recipe) | right})


def made(workers: int = 1, classes: int = 10, **changes: Any) -> int:
    recipe: Any = Pretrain.model_validate({"recipe": RECIPE | changes}).recipe
    group = DistributedGroup(0, workers)
    return SupervisedObjective(recipe, classes, group).architecture.classes


MIX = {"mix": {"mixup": 0.2, "group": 32}}


def order(batch: int) -> int:
    return Order(
        "c", [File(file="f", rows=100, bytes=1, sha256="")], seed=0, batch_size=batch
    ).steps


def damaged(most: int) -> int:
    images = DamagedImages(DistributedGroup(), most, [{"a", "b"}])
    images.check_own()
    return len(images.check())


STEPS: dict[str, tuple[Callable[[], Any], str, Callable[[], Any], Any]] = {
    "a corpus without classes": (
        lambda: made(classes=1),
        "use a corpus with labels",
        lambda: made(classes=2),
        2,
    ),
    "workers that split a group": (
        lambda: made(4, **MIX),
        r"change `pretrain\.resources\.workers`",
        lambda: made(2, **MIX),
        10,
    ),
    "a part below a batch": (
        lambda: order(101),
        r"100 training rows .*; lower `pretrain\.recipe\.schedule\.batch_size`",
        lambda: order(100),
        1,
    ),
    "damaged images": (
        lambda: damaged(1),
        r"2 images .* or raise pretrain\.max_damaged",
        lambda: damaged(2),
        2,
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_remedy_of_a_run_works(name: str) -> None:
    refused, remedy, followed, wanted = STEPS[name]
    with pytest.raises(StageError, match=remedy):
        refused()
    assert followed() == wanted


def test_resources_are_lowered_or_nodes_are_added() -> None:
    asked, nodes = Resources(workers=4, cpus_per_worker=2), [Node(4, 0)]
    assert group_slots(asked, nodes) == 0
    assert "lower pretrain.resources or add nodes" in infeasible_message(asked, nodes)
    assert group_slots(Resources(workers=2, cpus_per_worker=2), nodes) == 1
    assert group_slots(asked, [*nodes, Node(4, 0)]) == 1

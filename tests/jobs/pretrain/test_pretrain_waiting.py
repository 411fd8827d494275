"""On a GPU, an update waits for the device only for telemetry and checkpoints (`tests.waits`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch

from jobs.contract import Outcome, Work
from jobs.pretrain.data.in_memory import MemorySource
from jobs.pretrain.data.streamed import StreamedSource
from jobs.pretrain.distributed import DistributedGroup
from jobs.pretrain.inputs import Inputs
from jobs.pretrain.loop import Loop
from jobs.pretrain.prepare import Run
from jobs.pretrain.run import train_run, train_runs
from tests import pretend
from tests.jobs.pretrain.conftest import LEVELS, with_step
from tests.waits import counted, counting, counting_each

pytestmark = pytest.mark.slow

UPDATES = 12


@contextmanager
def counted_waits() -> Iterator[list[str]]:
    """What updates inside the block wait for: batches, inputs and each run's step."""
    found: list[str] = []
    with (
        pretend.gpu(),
        mock.patch.object(MemorySource, "batches", counting_each(found, MemorySource.batches)),
        mock.patch.object(StreamedSource, "batches", counting_each(found, StreamedSource.batches)),
        mock.patch.object(Inputs, "make", counting(found, Inputs.make)),
        mock.patch.object(Loop, "update", counting(found, Loop.update)),
    ):
        yield found


def test_a_wait_would_be_counted() -> None:
    found: list[str] = []
    with pretend.gpu(), counted(found):
        value = torch.ones(3, device="cuda")
        value.sum().item()
        value.sum().tolist()
        bool(value.isfinite().all())
        value.cpu()
        value.to("cpu")
        torch.empty(3).copy_(value)
        value.nonzero()
        value[value > 0]
        torch.linalg.eigh(torch.eye(3, device="cuda"))
        torch.where(value > 0, value, 0.0)
        value.masked_fill(value > 0, 0.0)
        torch.empty(3).copy_(value, non_blocking=True)
        torch.ones(3).sum().item()
        torch.ones(3).to("cuda")
        torch.ones(3).pin_memory().to("cuda", non_blocking=True)
        torch.tensor([1.0], device="cuda")
    one = "_local_scalar_dense"
    read = [one, "tolist", one, "cpu", "to", "copy_", "nonzero", "index", "_linalg_eigh", "where"]
    assert found == [*read, "to", "tensor"]


RECIPES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sgd": ("supervised", {"optimizer": "sgd"}, {}),
    "streamed": ("supervised", {"augment": {"crop": (0.5, 1)}}, {"images_per_pass": 6}),
    "all-parts": (
        "supervised",
        {
            "augment": {"translate": 0.1, "flip": True, "erase": 0.5, "erase_mode": "pixel"},
            "mix": {"mixup": 0.2, "cutmix": 1.0, "group": 8},
            "ema_decay": 0.9,
            "clip_grad_norm": 1.0,
            "loss": "bce",
        },
        {"channels_last": True},
    ),
    "contrastive": ("contrastive", {"clip_grad_norm": 1.0}, {}),
    "contrastive-in-passes": ("contrastive", {}, {"images_per_pass": 6}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_updates_wait_for_the_device_in_telemetry_alone(
    name: str, request: pytest.FixtureRequest, make_work: Callable[..., Work]
) -> None:
    objective, changes, resources = RECIPES[name]
    recipe = request.getfixturevalue(objective)(**changes)
    for steps, points in ((1000, 0), (4, 3)):
        work = make_work(recipe, f"{name}-{steps}", **resources)
        work = with_step(work, telemetry_steps=steps)
        with counted_waits() as found:
            train_run(work, DistributedGroup(device=pretend.GPU))
        assert found == ["_local_scalar_dense"] * 2 * points  # loss and gradient norm


def test_runs_side_by_side_wait_no_more(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    works: Sequence[Work] = [make_work(supervised(), f"{n}", level=n) for n in LEVELS]
    ended: list[Any] = []
    with counted_waits() as found, mock.patch("torch.cuda.mem_get_info", return_value=(2**33,) * 2):
        train_runs(
            [Run(work) for work in works],
            lambda _, result: ended.append(result),
            DistributedGroup(device=pretend.GPU),
        )
    assert all(isinstance(result, Outcome) for result in ended)
    assert len(ended) == 3
    assert found == []


def test_skipping_updates_that_are_not_finite_waits_for_each(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    work = with_step(make_work(supervised()), on_nan="skip", telemetry_steps=1000)
    with counted_waits() as found:
        train_run(work, DistributedGroup(device=pretend.GPU))
    assert len(found) >= UPDATES

"""The loop on a pretended GPU: no tensor is left on the other device.

The arithmetic is the CPU's, so the weights are the same. Autocast is not tested.
"""

from collections.abc import Callable
from typing import Any

import pytest

from jobs.contract import Work
from jobs.pretrain.distributed import DistributedGroup
from jobs.pretrain.run import train_run
from jobs.pretrain.telemetry import TIMINGS
from tests import pretend
from tests.jobs.pretrain.conftest import with_step
from tests.jobs.pretrain.interruption import outputs

pytestmark = pytest.mark.slow

RECIPES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("supervised", {}, {}),
    "all-parts": (
        "supervised",
        {
            "augment": {"translate": 0.1, "flip": True, "erase": 0.5},
            "mix": {"mixup": 0.2, "cutmix": 1.0, "group": 8},
            "ema_decay": 0.9,
            "clip_grad_norm": 1.0,
            "optimizer": "lamb",
            "loss": "bce",
        },
        {"images_per_pass": 6},
    ),
    "streamed": ("supervised", {"augment": {"crop": (0.5, 1), "erase": 0.5}}, {"decoded_gb": 0}),
    "contrastive": ("contrastive", {"clip_grad_norm": 1.0}, {}),
    "contrastive-in-passes": ("contrastive", {"optimizer": "sgd"}, {"images_per_pass": 6}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_on_a_gpu_writes_the_outputs_of_a_run_on_the_cpu(
    name: str, request: pytest.FixtureRequest, make_work: Callable[..., Work]
) -> None:
    objective, changes, resources = RECIPES[name]
    recipe = request.getfixturevalue(objective)(**changes)
    on_cpu, on_gpu = (
        with_step(make_work(recipe, device, **resources), telemetry_steps=3)
        for device in ("cpu", "gpu")
    )
    train_run(on_cpu)
    with pretend.gpu():
        train_run(on_gpu, DistributedGroup(device=pretend.GPU))
    wanted, found = outputs(on_cpu), outputs(on_gpu)
    assert found.keys() == wanted.keys()
    for file in wanted:
        assert found[file] == wanted[file], file
    timed = on_gpu.output.read_table(TIMINGS)["metric"].to_pylist()
    assert "gpu_memory_mb" in timed

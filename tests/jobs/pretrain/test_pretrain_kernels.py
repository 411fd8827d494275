"""Kernels that give the same bytes twice: always on a CPU, on request on a GPU."""

import pytest
import torch

from jobs.pretrain.kernels import torch_kernels
from jobs.pretrain.spec import PretrainStep, Resources, Supervised
from orchestrator.step.fingerprint import canonical
from tests.jobs.pretrain.conftest import schedule

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("device", "asked", "deterministic"),
    [(CPU, False, True), (CPU, True, True), (GPU, False, False), (GPU, True, True)],
)
def test_kernels_are_deterministic_on_a_cpu_and_unless_they_are_given_up(
    device: torch.device, asked: bool, deterministic: bool
) -> None:
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    with torch_kernels(Resources(deterministic=asked), device):
        assert torch.are_deterministic_algorithms_enabled() is deterministic
        assert torch.backends.cudnn.benchmark is not deterministic
    assert before == (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
    )


def step(**resources: object) -> PretrainStep:
    recipe = Supervised(name="small", model="resnet18", schedule=schedule())
    return PretrainStep(recipe=recipe, seed=0, resources=Resources.model_validate(resources))


def test_the_choice_bears_no_identity_and_is_recorded_of_gpus() -> None:
    assert canonical(step().semantic()) == canonical(
        step(deterministic=False, together=2, gpus_per_worker=1).semantic()
    )
    assert step(deterministic=False).circumstances() == {}
    assert step(gpus_per_worker=1).circumstances() == {"kernels": "deterministic"}
    chosen = step(gpus_per_worker=0.5, deterministic=False)
    assert chosen.circumstances() == {"kernels": "fastest"}

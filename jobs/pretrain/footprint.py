"""How many runs memory holds at once, before they train together.

Takes a run's model, its objective and its resources; gives a number. A run keeps its weights,
optimizer state and moving average while the others take their steps; activations and gradients are
those of one run at a time. The first are counted exactly. The activations of one pass are measured
on two images, as the bytes that torch keeps for the backward pass, and multiplied. What is free is
asked of the device and of the machine, which holds the copies that checkpoints are written from.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psutil
import pyarrow as pa
import torch
from torch import Tensor, nn

from jobs.images.spec import ImageInput
from jobs.pretrain.data.part import Part, Targets
from jobs.pretrain.distributed import DistributedGroup
from jobs.pretrain.objectives.objective import Objective
from jobs.pretrain.spec import Resources, Schedule

_SHARE = 0.8  # of the free memory that runs may take
_STATES = {"sgd": 1, "adamw": 2, "lamb": 2}  # tensors of the optimizer for each weight
_WORKSPACE = 1.5  # activations, and what operations allocate beside them, over the activations
_IMAGES = 2


@dataclass(frozen=True)
class Footprint:
    """Bytes that runs of a recipe take."""

    kept: int  # by each run, on the device: weights, optimizer state, average
    step: int  # by the run whose turn it is: gradients and activations

    def most(self, free: float) -> int:
        """How many runs fit into so many bytes on the device; at least 1."""
        return max(1, int((free - self.step) // self.kept))

    def most_copies(self, free: float) -> int:
        """How many runs' checkpoints fit into so many bytes of the machine at once; at least 1."""
        return max(1, int(free // self.kept))


def measure(
    objective: Objective,
    model: nn.Module,
    part: Part,
    schedule: Schedule,
    group: DistributedGroup,
    images_per_pass: int | None,
) -> Footprint:
    """The footprint of a run of so many workers. `model` is on the CPU, and stays as it is.

    `objective` must be that of a single worker, which exchanges nothing; `part` names the classes.
    """
    weights, buffers = _bytes(model.parameters()), _bytes(model.buffers())
    kept = weights * (1 + _STATES[schedule.optimizer]) + buffers
    if schedule.ema_decay is not None:
        kept += weights + buffers
    share = schedule.batch_size // group.world
    images = min(share, images_per_pass or share)
    activations = _activation_bytes(objective, model, part) / _IMAGES * images
    return Footprint(kept, int(weights + _WORKSPACE * activations))


def most_together(footprint: Footprint, resources: Resources, group: DistributedGroup) -> int:
    """How many runs this worker's device, and its share of the machine's memory, hold at once."""
    machine = _SHARE * psutil.virtual_memory().available / group.sharing
    if group.device.type != "cuda":
        # A run's own tensors, and the copy that its checkpoint is written from.
        return Footprint(2 * footprint.kept, footprint.step).most(machine)
    free, _ = torch.cuda.mem_get_info(group.device)
    device = _SHARE * free * min(1.0, resources.gpus_per_worker or 1.0)
    return min(footprint.most(device), footprint.most_copies(machine))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _activation_bytes(objective: Objective, model: nn.Module, part: Part) -> int:
    """What a pass of `_IMAGES` images keeps for its backward pass, without the weights."""
    copied = copy.deepcopy(model).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in copied.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    value: Any = 0 if objective.field == "label" else "a"
    kind = pa.int32() if objective.field == "label" else pa.string()
    target = objective.encode(part, pa.array([value] * _IMAGES, kind))
    targets = Targets(target, target, torch.zeros(_IMAGES, dtype=torch.bool))
    read = objective.architecture.input
    assert isinstance(read, ImageInput), "pre-training reads images"
    images = torch.zeros(_IMAGES, *read.shape)
    with (
        torch.random.fork_rng(devices=[]),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        objective.step(copied, images, targets, _IMAGES)
    return sum(kept.values())

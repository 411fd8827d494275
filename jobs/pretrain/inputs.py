"""From a batch to the model's input, and the seeds of an update's draws.

Takes a source's batches; gives the images as the model sees them, made once for all runs that train
together, and each run's targets. All draws come from the seed and the update, none from a generator
that an earlier update has used, so a run sees the same whoever trains beside it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jobs.images.augment import mix
from jobs.images.spec import Augment, ImageInput
from jobs.images.training import training_input
from jobs.pretrain.data.part import Batch, Targets
from jobs.pretrain.distributed import DistributedGroup
from jobs.pretrain.objectives.objective import Objective
from jobs.pretrain.spec import Resources


class Inputs:
    """Augments, normalises and mixes batches."""

    def __init__(
        self,
        objective: Objective,
        model_input: ImageInput,
        augment: Augment,
        *,
        seed: int,
        group: DistributedGroup,
        resources: Resources,
    ) -> None:
        self._objective, self._input, self._augment = objective, model_input, augment
        self._seed, self._group = seed, group
        self._layout = torch.channels_last if resources.channels_last else torch.contiguous_format
        self._buffer: Tensor | None = None

    def make(self, batch: Batch, updates: int) -> tuple[Tensor, tuple[Targets, ...]]:
        """A batch's images, float [n, C, S, S], and each run's targets, in update `updates` + 1.

        On a CPU the images are overwritten by the next call.
        """
        images = training_input(
            batch.images, self._input, self._augment, batch.hashes, self._buffer
        )
        if self._group.device.type == "cpu":
            self._buffer = images  # reused by the next update, when this one is done
        images, targets = self._objective.mix(images, batch.targets, step_seed(self._seed, updates))
        return images.contiguous(memory_format=self._layout), targets


def step_seed(seed: int, updates: int) -> int:
    """The seed of the draws that all workers share in one update, below 2^64."""
    return int(mix(np.array([seed], np.uint64), updates)[0])


def worker_seed(seed: int, updates: int, rank: int) -> int:
    """The seed of one worker's own draws in one update (dropout and the like), below 2^63."""
    shared = np.array([step_seed(seed, updates)], np.uint64)
    return int(mix(shared, rank)[0] >> np.uint64(1))

"""The interface of a training objective: build a model, take steps, evaluate.

Two exist: `supervised.py` (timm) and `contrastive.py` (open_clip). The loop knows neither labels
nor captions; an objective knows neither optimizers, epochs nor storage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import pyarrow as pa
from torch import Tensor, nn

from jobs.encoders.encoder import Architecture
from jobs.pretrain.data.part import Field, Part, Targets
from jobs.pretrain.distributed import DistributedGroup
from jobs.pretrain.precision import Precision

FULL = Precision()
"""fp32 throughout."""


@dataclass(frozen=True)
class Scored:
    """Losses and predictions of a worker's n samples in one step, before the update, detached."""

    losses: Tensor  # float [n]; the step minimizes their mean over all workers
    as_noisy: Tensor  # bool [n]: the prediction is the target trained on
    as_clean: Tensor  # bool [n]: the prediction is the clean target


def passes(images: int, most: int) -> list[slice]:
    """The fewest passes of at most `most` images, their sizes equal to within one.

    A last pass of what is left over could be a single image, on which BatchNorm fails.
    """
    count = -(-images // most)
    edges = [images * number // count for number in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


class Objective(Protocol):
    """A model, its loss and its measures."""

    field: Field
    """The column it trains on, which noise must change."""

    architecture: Architecture
    """The architecture of the model, as recorded in the finished encoder."""

    def build(self, seed: int) -> nn.Module:
        """The model at its initial weights, a function of the seed alone, on the CPU."""

    def encode(self, part: Part, values: pa.Array) -> Tensor:
        """Labels or captions as targets, one row each; StageError for an unusable value."""

    def parameter_groups(self, model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
        """Groups of the model's parameters, each with its weight decay."""

    def mix(
        self, images: Tensor, targets: Sequence[Targets], seed: int
    ) -> tuple[Tensor, tuple[Targets, ...]]:
        """This worker's share of a batch, mixed as in the recipe: images, and each run's targets.

        `seed` is of the run and the update, the same on all workers. May change the images in
        place.
        """

    def step(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Targets,
        most: int,
        precision: Precision = FULL,
    ) -> Scored:
        """Add the (scaled) gradient of the global batch's mean loss to the parameters.

        `images` are this worker's, normalised, [n, C, S, S]; a pass has at most `most` of them.
        """

    def after_update(self, model: nn.Module) -> None:
        """Restore constraints on the parameters after an update."""

    def evaluate(
        self, models: Sequence[nn.Module], part: Part, group: DistributedGroup
    ) -> list[Mapping[str, float]]:
        """Measures of each model on the (clean) validation part by short name, in percent or nats.

        Each image is decoded once.
        """

    def memorised(
        self, model: nn.Module, part: Part, targets: Targets, group: DistributedGroup
    ) -> Mapping[str, float]:
        """Predictions on the flipped training rows, not augmented; empty without any."""

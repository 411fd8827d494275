"""What a pre-training run minimises, as the loop sees it: built, stepped, evaluated.

Two of them exist: `supervised.py` (timm) and `contrastive.py` (open_clip). The loop knows neither
labels nor captions; an objective knows neither optimisers, epochs nor storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
from torch import Tensor, nn

from jobs.encoders.encoder import Architecture
from jobs.pretrain.data.part import Field, Part, Targets
from jobs.pretrain.distributed import Group
from jobs.pretrain.precision import Precision

FULL = Precision()
"""fp32 throughout."""


@dataclass(frozen=True)
class Scored:
    """How a worker's n samples fared in one step, before the update, without gradient."""

    losses: Tensor  # float [n]; their mean over all workers is what the step minimises
    as_noisy: Tensor  # bool [n]: answered with the target trained on
    as_clean: Tensor  # bool [n]: answered with the clean target


class Objective(Protocol):
    """A model, its loss and its measures."""

    field: Field
    """The column it trains on, which noise must change."""

    architecture: Architecture
    """What it builds, as the finished encoder will name it."""

    def build(self, seed: int) -> nn.Module:
        """The model at its initial weights, a function of the seed alone, on the CPU."""

    def encode(self, part: Part, values: pa.Array) -> Tensor:
        """Labels or captions as targets, one row each; StageError for a value that is none."""

    def parameter_groups(self, model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
        """The model's parameters with the weight decay of each group."""

    def mix(self, images: Tensor, targets: Targets, seed: int) -> tuple[Tensor, Targets]:
        """This worker's share of a batch, mixed as the recipe says.

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

        `images` are this worker's, normalised, [n, C, S, S]; at most `most` of them are held at
        a time.
        """

    def after_update(self, model: nn.Module) -> None:
        """What must hold of the parameters after each update."""

    def evaluate(self, model: nn.Module, part: Part, group: Group) -> Mapping[str, float]:
        """Measures of the (clean) validation part, percent or nats, by short name."""

    def memorised(
        self, model: nn.Module, part: Part, targets: Targets, group: Group
    ) -> Mapping[str, float]:
        """How the flipped training rows are answered, un-augmented; empty without any."""

"""Supervised pre-training: a timm or own model under cross-entropy on the (noisy) labels.

Paper 1 section 2.1, the ImageNet runs. Takes normalised images and class numbers. Losses, mixing
and the groups of weight decay are timm's. With mixing, the training measures are of mixed images,
each compared with its own label alone; `memorised` is of images that are not mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy  # type: ignore[attr-defined]
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from torch import Tensor, nn

from jobs.contract import StageError
from jobs.encoders.encoder import Architecture
from jobs.extensions.spec import Extension
from jobs.images.pixels import to_input
from jobs.pretrain.data.part import Field, Part, Targets
from jobs.pretrain.distributed import DistributedGroup, no_gradient_sync
from jobs.pretrain.objectives.mixing import make_mixup, mixed
from jobs.pretrain.objectives.objective import FULL, Scored, passes
from jobs.pretrain.precision import Precision
from jobs.pretrain.spec import Supervised

_CHUNK = 256  # images evaluated at a time


class SupervisedObjective:
    """Cross-entropy, or binary cross-entropy per class; optional mixing and label smoothing."""

    field: Field = "label"

    def __init__(
        self,
        recipe: Supervised,
        classes: int,
        group: DistributedGroup | None = None,
        source: Extension | None = None,
    ) -> None:
        """`classes`: number of the corpus's classes; `source`: the file of an extension's model.

        Raises StageError for fewer than two, or if a worker's share is not whole mixing groups.
        """
        if classes < 2:
            raise StageError(
                f"recipe {recipe.name!r} is supervised and its corpus has {classes} classes; "
                f"use a corpus with labels or a contrastive recipe"
            )
        self._recipe, self._group = recipe, group or DistributedGroup()
        share = recipe.schedule.batch_size // self._group.world
        if recipe.mix.on and share % recipe.mix.group:
            raise StageError(
                f"each of {self._group.world} workers takes {share} images of a batch, not whole "
                f"groups of mix.group {recipe.mix.group}; change `pretrain.resources.workers`"
            )
        self._mixup = make_mixup(recipe.mix, classes, recipe.label_smoothing)
        self._loss = _loss(recipe)
        self.architecture = Architecture(
            "extension" if recipe.extension else "timm",
            recipe.model,
            recipe.model_options,
            recipe.image,
            classes,
            source,
        )

    def build(self, seed: int) -> nn.Module:
        """The model at its initial weights for this seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.architecture.build()

    def encode(self, part: Part, values: pa.Array) -> Tensor:
        """Labels as int64 [N]; StageError for a null or a label outside the classes."""
        classes = len(part.classes)
        known = pc.and_(pc.greater_equal(values, 0), pc.less(values, classes))
        bad = len(values) - (pc.sum(known.cast(pa.int64())).as_py() or 0)
        if bad:
            raise StageError(
                f"corpus {part.corpus}: {bad} of {len(values)} training rows have no label in "
                f"0..{classes - 1}; correct the source or its list of classes"
            )
        return torch.from_numpy(values.to_numpy(zero_copy_only=False).astype("int64"))

    def parameter_groups(self, model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
        """timm's groups: no weight decay of vectors, biases and the model's own exceptions."""
        excluded: Any = getattr(model, "no_weight_decay", set)
        groups: list[dict[str, Any]] = param_groups_weight_decay(
            model, weight_decay, no_weight_decay_list=excluded()
        )
        return groups

    def mix(
        self, images: Tensor, targets: Sequence[Targets], seed: int
    ) -> tuple[Tensor, tuple[Targets, ...]]:
        """Mixup and CutMix, if the recipe has them."""
        spec = self._recipe.mix
        if not spec.on:
            return images, tuple(targets)
        first = self._group.rank * (len(images) // spec.group)
        labels = [each.noisy for each in targets]
        images, soft = mixed(images, labels, spec, self._mixup, seed=seed, first_group=first)
        pairs = zip(targets, soft, strict=True)
        return images, tuple(replace(each, soft=values) for each, values in pairs)

    def step(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Targets,
        most: int,
        precision: Precision = FULL,
    ) -> Scored:
        """One forward and backward pass, in pieces of at most `most` images."""
        share = len(images)
        wanted = targets.noisy if targets.soft is None else targets.soft
        losses, predicted = [], []
        for piece in passes(share, most):
            with no_gradient_sync(model, piece.stop < share):
                with precision.autocast():
                    logits = model(images[piece])
                logits = logits.float()
                loss = self._loss(logits, wanted[piece])
                precision.backward(loss.sum() / share)
            losses.append(loss.detach())
            predicted.append(logits.detach().argmax(dim=1))
        predictions = torch.cat(predicted)
        as_noisy, as_clean = predictions == targets.noisy, predictions == targets.clean
        return Scored(torch.cat(losses), as_noisy, as_clean)

    def after_update(self, model: nn.Module) -> None:
        """Nothing: the weights have no constraints."""

    def evaluate(
        self, models: Sequence[nn.Module], part: Part, group: DistributedGroup
    ) -> list[Mapping[str, float]]:
        """`val_accuracy` (percent) and `val_loss` (nats, unsmoothed) of each on clean labels."""
        labels = self.encode(part, part.labels)
        rows = torch.arange(part.rows)[group.mine(part.rows)]
        mine = labels[rows]
        found: list[Mapping[str, float]] = []
        for logits in self._logits(models, part, rows, group):
            sums = torch.zeros(2, dtype=torch.float64)
            sums[0] = (logits.argmax(dim=1) == mine).sum()
            sums[1] = F.cross_entropy(logits, mine, reduction="sum")
            right, loss = (group.total(sums) / part.rows).tolist()
            found.append({"val_accuracy": 100 * right, "val_loss": loss})
        return found

    def memorised(
        self, model: nn.Module, part: Part, targets: Targets, group: DistributedGroup
    ) -> Mapping[str, float]:
        """Percent of flipped rows predicted as their noisy label, and as their clean label."""
        flipped = torch.nonzero(targets.flipped).flatten()
        if len(flipped) == 0:
            return {}
        rows = flipped[group.mine(len(flipped))]
        predicted = self._logits([model], part, rows, group)[0].argmax(dim=1)
        sums = torch.zeros(2, dtype=torch.float64)
        sums[0] = (predicted == targets.noisy[rows]).sum()
        sums[1] = (predicted == targets.clean[rows]).sum()
        noisy, clean = (100 * group.total(sums) / len(flipped)).tolist()
        return {"memorised_percent": noisy, "recovered_percent": clean}

    def _logits(
        self, models: Sequence[nn.Module], part: Part, rows: Tensor, group: DistributedGroup
    ) -> list[Tensor]:
        """Each model's class scores of some rows, not augmented, [n, classes] on the CPU."""
        scores = [[torch.zeros(0, len(part.classes))] for _ in models]
        with torch.no_grad():
            for chunk in torch.split(rows, _CHUNK):
                images = to_input(part.images[chunk].to(group.device), self._recipe.image)
                for model, own in zip(models, scores, strict=True):
                    own.append(model(images).float().cpu())
        return [torch.cat(own) for own in scores]


def _loss(recipe: Supervised) -> Callable[[Tensor, Tensor], Tensor]:
    """Per-sample losses [n] of logits [n, classes] and class numbers or soft labels."""
    if recipe.loss == "ce":
        return partial(
            F.cross_entropy,
            reduction="none",
            # Mixup smooths mixed labels itself.
            label_smoothing=0.0 if recipe.mix.on else recipe.label_smoothing,
        )
    binary = BinaryCrossEntropy(
        smoothing=recipe.label_smoothing,
        target_threshold=recipe.bce_threshold,
        reduction="none",
    )
    return lambda logits, wanted: binary(logits, wanted).mean(dim=1)

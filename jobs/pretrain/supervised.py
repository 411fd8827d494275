"""Supervised pre-training: a timm model under cross-entropy on the (noisy) labels.

Paper 1 section 2.1, the ImageNet runs. Takes normalised images and class numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.contract import StageError
from jobs.pretrain.data import Field, Part, Targets
from jobs.pretrain.encoder import Architecture
from jobs.pretrain.group import Group, gradients_stay
from jobs.pretrain.objective import Scored
from jobs.pretrain.pixels import normalise, unit_range
from jobs.pretrain.spec import Supervised

_CHUNK = 256  # images evaluated at a time


class SupervisedObjective:
    """Cross-entropy, with label smoothing when the recipe asks for it."""

    field: Field = "label"

    def __init__(self, recipe: Supervised, classes: int) -> None:
        """`classes`: of the corpus. Raises StageError for fewer than two."""
        if classes < 2:
            raise StageError(
                f"recipe {recipe.name!r} is supervised and its corpus has {classes} classes; "
                f"use a corpus with labels or a contrastive recipe"
            )
        self._recipe = recipe
        self.architecture = Architecture(
            "timm", recipe.model, recipe.model_options, recipe.image, classes
        )

    def build(self, seed: int) -> nn.Module:
        """The timm model at its initial weights for this seed."""
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

    def step(self, model: nn.Module, images: Tensor, targets: Targets, most: int) -> Scored:
        """One forward and backward pass, in pieces of at most `most` images."""
        share = len(images)
        losses, predicted = [], []
        for start in range(0, share, most):
            piece = slice(start, start + most)
            with gradients_stay(model, start + most < share):
                logits = model(images[piece])
                loss = F.cross_entropy(
                    logits,
                    targets.noisy[piece],
                    reduction="none",
                    label_smoothing=self._recipe.label_smoothing,
                )
                (loss.sum() / share).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            predicted.append(logits.detach().argmax(dim=1))
        answers = torch.cat(predicted)
        return Scored(torch.cat(losses), answers == targets.noisy, answers == targets.clean)

    def after_update(self, model: nn.Module) -> None:
        """Nothing: any weights will do."""

    def evaluate(self, model: nn.Module, part: Part, group: Group) -> Mapping[str, float]:
        """`val_accuracy` (percent) and `val_loss` (nats, unsmoothed) on clean labels."""
        labels = self.encode(part, part.labels)
        rows = torch.arange(part.rows)[group.mine(part.rows)]
        logits = self._logits(model, part, rows, group)
        mine = labels[rows]
        sums = torch.zeros(2, dtype=torch.float64)
        sums[0] = (logits.argmax(dim=1) == mine).sum()
        sums[1] = F.cross_entropy(logits, mine, reduction="sum")
        right, loss = (group.total(sums) / part.rows).tolist()
        return {"val_accuracy": 100 * right, "val_loss": loss}

    def memorised(
        self, model: nn.Module, part: Part, targets: Targets, group: Group
    ) -> Mapping[str, float]:
        """Percent of flipped rows predicted as their noisy label, and as their clean one."""
        flipped = torch.nonzero(targets.flipped).flatten()
        if len(flipped) == 0:
            return {}
        rows = flipped[group.mine(len(flipped))]
        predicted = self._logits(model, part, rows, group).argmax(dim=1)
        sums = torch.zeros(2, dtype=torch.float64)
        sums[0] = (predicted == targets.noisy[rows]).sum()
        sums[1] = (predicted == targets.clean[rows]).sum()
        noisy, clean = (100 * group.total(sums) / len(flipped)).tolist()
        return {"memorised_percent": noisy, "recovered_percent": clean}

    def _logits(self, model: nn.Module, part: Part, rows: Tensor, group: Group) -> Tensor:
        """Class scores of some rows, un-augmented, [n, classes] on the CPU."""
        scores = [torch.zeros(0, len(part.classes))]
        with torch.no_grad():
            for chunk in torch.split(rows, _CHUNK):
                images = unit_range(part.images[chunk].to(group.device))
                scores.append(model(normalise(images, self._recipe.image)).float().cpu())
        return torch.cat(scores)

"""The target of a mask: a class for each pixel of an image, learnt and predicted by patches.

A row is a patch. Its label is how many of its pixels belong to each class. A head gives the patch
one class, which stands for all of its pixels: that is the prediction enlarged to the mask's size by
the nearest patch, and it is scored pixel by pixel. (`frozen/upsampling.py` enlarges bilinearly.)
Pixels without a class count for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from jobs.contract import StageError
from jobs.tasks.spec import Task
from jobs.tasks.target import MASK
from jobs.tuning.metrics import Judged, score_masks, scores_of_pixels
from jobs.tuning.schema import Segmented
from jobs.tuning.schema import of as schema_of
from jobs.tuning.target import Indices, Labels, OfClasses, Statistics

_ROWS = 1 << 16  # patches whose classes are merged at once


@dataclass(frozen=True)
class Pixels:
    """The pixels of some images by class, each int64 [images, C]."""

    images: pa.Array  # their keys
    hits: npt.NDArray[np.int64]  # predicted as the class that they have
    predicted: npt.NDArray[np.int64]
    labelled: npt.NDArray[np.int64]

    def score(self) -> Judged:
        """The scores of all pixels, of one member."""
        each = (self.hits, self.predicted, self.labelled)
        return scores_of_pixels(*(torch.from_numpy(e.sum(0)).double()[None] for e in each))


@dataclass(frozen=True)
class MaskTarget(OfClasses):
    """One of C classes for each pixel. The loss is cross-entropy with the shares of a patch.

    Labels are counts of pixels: [N, V, C] of V views, in which pixels have moved, or [N, C]. A
    patch without a pixel of a class adds nothing to the loss. With `majority` the loss is that of
    the class that most pixels of the patch have.
    """

    majority: bool = False

    kind = MASK
    label_type = np.dtype(np.int32)
    term = "ce"
    dtype = torch.int32
    curves = ("miou", "pixel_accuracy")
    row = Segmented

    def select(self, labels: Labels, index_of: Indices, task: Task) -> tuple[Indices, Labels]:
        """See `Target.select`; `labels` are counts [N, V, classes of the corpus].

        Patches without a pixel of the task's classes, in all views, are left out.
        """
        if labels.shape[2] != len(index_of):
            raise StageError(
                f"task {task.name}: features have masks of {labels.shape[2]} classes, but the "
                f"corpus has {len(index_of)}; extract the features again"
            )
        indices, merged = [], []
        for start in range(0, len(labels), _ROWS):
            piece = np.asarray(labels[start : start + _ROWS])
            counts = np.zeros((*piece.shape[:2], self.count), np.int32)
            for label, index in enumerate(index_of.tolist()):
                if index >= 0:
                    counts[:, :, index] += piece[:, :, label]
            inside = np.flatnonzero(counts.any(axis=(1, 2)))
            indices.append(inside + start)
            merged.append(counts[inside])
        found = np.concatenate(indices)
        if len(found) == 0:
            raise StageError(
                f"task {task.name}: a part has no pixel of its classes; check `classes`"
            )
        return found, np.concatenate(merged)

    def strata(self, targets: Labels) -> Indices:
        """A single group: a fraction is a share of all images."""
        return np.zeros(len(targets), np.int64)

    def check_training(
        self, targets: Labels, names: Sequence[str], task: Task, percent: float
    ) -> None:
        """See `Target.check_training`: pixels of two classes or more."""
        seen = int((targets.sum(axis=(0, 1)) > 0).sum())
        if seen < 2:
            raise StageError(
                f"task {task.name}: the training images of fraction {percent:g} % have pixels of "
                f"{seen} of its {len(names)} classes, and two are needed; use a larger fraction, "
                f"or correct `classes`"
            )

    def check_part(self, targets: Labels, task: Task) -> None:
        """See `Target.check_part`; any pixel can be scored."""

    def predictions(
        self, keys: pa.Array, indices: Indices, targets: Tensor, predicted: Tensor
    ) -> pa.Table:
        """A row for each image: its patches' classes, and what each class scores by."""
        pixels = self._by_nearest_patch(keys, targets, predicted)
        return self.table(keys, indices, predicted, pixels)

    def _by_nearest_patch(self, keys: pa.Array, targets: Tensor, predicted: Tensor) -> Pixels:
        named = keys.dictionary_encode()
        image = named.indices.to_numpy()
        counts = targets[:, 0] if targets.dim() == 3 else targets
        images, chosen = len(named.dictionary), predicted.numpy()
        cell = image * self.count + chosen

        def summed(where: npt.NDArray[Any], pixels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
            found = np.bincount(where, pixels, images * self.count)
            return found.astype(np.int64).reshape(images, self.count)

        hits = summed(cell, counts.gather(1, predicted[:, None])[:, 0].numpy())
        guessed = summed(cell, counts.sum(1).numpy())
        whole = torch.zeros(images, self.count, dtype=torch.int64)
        whole.index_add_(0, torch.from_numpy(image.astype(np.int64)), counts.long())
        return Pixels(named.dictionary, hits, guessed, whole.numpy())

    def table(
        self, keys: pa.Array, indices: Indices, predicted: Tensor, pixels: Pixels
    ) -> pa.Table:
        """`predictions` of patches, whose images score by `pixels`."""
        image = keys.dictionary_encode().indices.to_numpy()
        met = (pixels.predicted + pixels.labelled) > 0
        of_patches = np.concatenate([[0], np.cumsum(np.bincount(image))])
        of_classes = np.concatenate([[0], np.cumsum(met.sum(axis=1))])

        def lists(ends: npt.NDArray[Any], values: npt.NDArray[Any]) -> pa.Array:
            return pa.ListArray.from_arrays(
                pa.array(ends, pa.int32()), pa.array(values, pa.int64())
            )

        return pa.table(
            [
                pixels.images,
                lists(of_patches, indices),
                lists(of_patches, predicted.numpy()),
                lists(of_classes, met.nonzero()[1]),
                lists(of_classes, pixels.hits[met]),
                lists(of_classes, pixels.predicted[met]),
                lists(of_classes, pixels.labelled[met]),
            ],
            schema=schema_of(Segmented),
        )

    # -- training and prediction -------------------------------------------------------------------

    def encoded(self, targets: Tensor, statistics: Statistics) -> Tensor:
        """The counts; with `majority`, of the class that has most alone (the first of equal)."""
        if not self.majority:
            return targets
        most, at = targets.max(-1, keepdim=True)
        return torch.zeros_like(targets).scatter_(-1, at, most)

    def of_views(self, targets: Tensor, views: Sequence[int]) -> Tensor:
        """See `Target.of_views`; counts [M, V, C] to [V' * M, C]."""
        return targets[:, list(views)].transpose(0, 1).flatten(0, 1)

    def regressed(self, targets: Tensor, statistics: Statistics) -> Tensor:
        """Raises ValueError: least squares reads all rows at once."""
        raise ValueError("no head is solved in closed form for masks")

    def losses(
        self, outputs: Tensor, encoded: Tensor, reduction: Literal["none", "mean"] = "none"
    ) -> Tensor:
        """Cross-entropy with the shares of each patch, in nats; its mean is over those with any."""
        pixels = encoded.sum(-1)
        some = (pixels > 0).float()
        weight = some / some.mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        shares = encoded / pixels.clamp_min(1)[..., None]
        found = (
            -(shares.mT * functional.log_softmax(outputs, 1)).sum(1)
            if outputs.dim() == 3
            else (-(shares * functional.log_softmax(outputs, 1)).sum(1))
        )
        losses = found * weight
        return losses.mean() if reduction == "mean" else losses

    def judge(self, targets: Tensor, predicted: Tensor) -> Judged:
        """Mean IoU and accuracy of pixels, see `metrics.score_masks`."""
        return score_masks(targets[:, 0] if targets.dim() == 3 else targets, predicted)

"""Scores of predicted classes, for a stack of members at once.

Takes labels [N] and predictions [K, N], both class indices in [0, C); gives percentages, 0-100,
as everywhere in the product. Never averages over members.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """One value a member each: [K] float64 tensors on the CPU, in percent."""

    accuracy: Tensor
    macro_f1: Tensor
    mean_per_class_accuracy: Tensor


def score(labels: Tensor, predicted: Tensor, classes: int) -> Scores:
    """Accuracy, macro F1 and mean-per-class accuracy of `predicted` [K, N] against `labels` [N].

    Macro F1 averages over the classes that occur among the member's labels or predictions (0 where
    precision and recall are both 0), mean-per-class accuracy over the classes that have rows: the
    conventions of scikit-learn. Raises ValueError when there is no row.
    """
    members, rows = predicted.shape
    if rows == 0:
        raise ValueError("there is no row to score")
    base = torch.arange(members, device=predicted.device)[:, None] * classes
    right = predicted == labels
    hits = _count((base + labels)[right], members, classes)
    chosen = _count((base + predicted).flatten(), members, classes)
    present = _count(labels, 1, classes)
    f1 = 2 * hits / (chosen + present).clamp_min(1)
    recall = hits / present.clamp_min(1)
    return Scores(
        accuracy=100 * hits.sum(1) / rows,
        macro_f1=100 * f1.sum(1) / ((chosen + present) > 0).sum(1),
        mean_per_class_accuracy=100 * recall.sum(1) / (present > 0).sum(1),
    )


def _count(flat: Tensor, members: int, classes: int) -> Tensor:
    counts = torch.bincount(flat, minlength=members * classes)
    return counts.view(members, classes).double().cpu()

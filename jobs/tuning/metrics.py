"""Scores of predictions, for a stack of members at once: classes in percent, numbers as published.

Takes labels [N] and predictions [K, N]. Classes are indices in [0, C); their scores are
percentages, 0-100, as everywhere here. Correlations and Matthews' coefficient are times 100, -100
to 100, as in GLUE's publications. Never averages over members.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from jobs.tasks.target import Metric


@dataclass(frozen=True)
class Judged(ABC):
    """The scores of a stack's members by name, [K] float64 on the CPU."""

    @abstractmethod
    def of(self, metric: Metric) -> Tensor:
        """The scores [K] by a task's own metric. Raises ValueError for one of another target."""

    def value(self, name: str, member: int = 0) -> float | None:
        """A member's score by name; None where the target has no such score."""
        values: Tensor | None = getattr(self, name, None)
        return None if values is None else float(values[member])


@dataclass(frozen=True)
class Scores(Judged):
    """Scores of classes, in percent."""

    accuracy: Tensor
    macro_f1: Tensor
    mean_per_class_accuracy: Tensor
    matthews: Tensor
    f1: Tensor  # of the last class, which in a task of two classes is the positive one

    def of(self, metric: Metric) -> Tensor:
        """The scores by a task's own metric. Raises ValueError for one of numbers."""
        match metric:
            case "accuracy":
                return self.accuracy
            case "mean_per_class_accuracy":
                return self.mean_per_class_accuracy
            case "macro_f1":
                return self.macro_f1
            case "f1":
                return self.f1
            case "accuracy_f1":
                return (self.accuracy + self.f1) / 2
            case "matthews":
                return self.matthews
            case _:
                raise ValueError(f"metric {metric} is of numbers; these are scores of classes")


def score(labels: Tensor, predicted: Tensor, classes: int) -> Scores:
    """Scores of `predicted` [K, N] against `labels` [N].

    Macro F1 averages over the classes that occur among the member's labels or predictions (0 where
    precision and recall are both 0), mean-per-class accuracy over the classes that have rows.
    Matthews' coefficient is the multi-class one, R_K (0 where the labels or the predictions are of
    one class). These are scikit-learn's conventions. Raises ValueError without a row.
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
        matthews=100 * _matthews(hits.sum(1), chosen, present, rows),
        f1=100 * f1[:, -1],
    )


def _matthews(hits: Tensor, chosen: Tensor, present: Tensor, rows: int) -> Tensor:
    """R_K from the counts of hits [K], predictions [K, C] and labels [1, C]."""
    covariance = hits * rows - (chosen * present).sum(1)
    spread = (rows**2 - (chosen**2).sum(1)) * (rows**2 - (present**2).sum(1))
    return torch.where(spread > 0, covariance / spread.clamp_min(1).sqrt(), torch.zeros_like(hits))


def _count(flat: Tensor, members: int, classes: int) -> Tensor:
    counts = torch.bincount(flat, minlength=members * classes)
    return counts.view(members, classes).double().cpu()


# -- numbers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Correlations(Judged):
    """Scores of numbers: correlations, times 100."""

    pearson: Tensor
    spearman: Tensor

    def of(self, metric: Metric) -> Tensor:
        """The correlations by a task's own metric. Raises ValueError for one of classes."""
        match metric:
            case "pearson":
                return self.pearson
            case "spearman":
                return self.spearman
            case "pearson_spearman":
                return (self.pearson + self.spearman) / 2
            case _:
                raise ValueError(f"metric {metric} is of classes; these are scores of numbers")


def correlate(targets: Tensor, predicted: Tensor) -> Correlations:
    """Correlations of `predicted` [K, N] with `targets` [N]; ties share the mean of their ranks.

    0 where the targets or a member's predictions are all the same. Raises ValueError for fewer
    than two rows.
    """
    if predicted.shape[1] < 2:
        raise ValueError("a correlation needs two rows or more")
    first, others = targets.double().cpu(), predicted.double().cpu()
    ranks = torch.stack([_ranks(member) for member in others])
    return Correlations(
        pearson=100 * _pearson(first, others), spearman=100 * _pearson(_ranks(first), ranks)
    )


def _pearson(first: Tensor, others: Tensor) -> Tensor:
    a, b = first - first.mean(), others - others.mean(1, keepdim=True)
    spread = a.norm() * b.norm(dim=1)
    return torch.where(spread > 0, (b @ a) / spread.clamp_min(1e-300), torch.zeros_like(spread))


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0, ties at the mean of theirs."""
    ordered, order = values.sort()
    first = torch.searchsorted(ordered, ordered)
    last = torch.searchsorted(ordered, ordered, right=True) - 1
    ranks = torch.empty_like(values)
    ranks[order] = (first + last).double() / 2
    return ranks


# -- masks -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskScores(Judged):
    """Scores of masks, by pixel, in percent."""

    miou: Tensor
    pixel_accuracy: Tensor

    def of(self, metric: Metric) -> Tensor:
        """The scores by a task's own metric. Raises ValueError for one of other targets."""
        if metric not in ("miou", "pixel_accuracy"):
            raise ValueError(f"metric {metric} is not of masks; these are scores of masks")
        return self.miou if metric == "miou" else self.pixel_accuracy


def overlap(counts: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(intersection, predicted pixels, labelled pixels) of each class, float64 [K, C] on the CPU.

    `counts` [N, C]: the pixels of each class in a patch; `predicted` [K, N]: the class that all
    pixels of a patch get.
    """
    members, classes = len(predicted), counts.shape[1]
    base = torch.arange(members, device=predicted.device)[:, None] * classes
    where = (base + predicted).flatten()

    def summed(pixels: Tensor) -> Tensor:
        found = torch.bincount(where, pixels.double().flatten(), minlength=members * classes)
        return found.view(members, classes).cpu()

    hits = summed(counts.gather(1, predicted.mT).mT)
    chosen = summed(counts.sum(1).expand(members, -1))
    return hits, chosen, counts.sum(0, dtype=torch.float64).expand(members, -1).cpu()


def score_masks(counts: Tensor, predicted: Tensor) -> MaskScores:
    """Scores of a class for each patch, `predicted` [K, N], against its pixels, `counts` [N, C].

    Mean IoU is over the classes that occur in labels or predictions (torchmetrics' `macro`). Raises
    ValueError without a pixel.
    """
    return scores_of_pixels(*overlap(counts, predicted))


def scores_of_pixels(hits: Tensor, chosen: Tensor, present: Tensor) -> MaskScores:
    """Scores from each class's intersection, predicted and labelled pixels, each float64 [K, C].

    Raises ValueError without a pixel.
    """
    if not present.sum() > 0:
        raise ValueError("there is no pixel to score")
    union = chosen + present - hits
    return MaskScores(
        miou=100 * (hits / union.clamp_min(1)).sum(1) / (union > 0).sum(1),
        pixel_accuracy=100 * hits.sum(1) / present.sum(1),
    )


# -- all -------------------------------------------------------------------------------------------


def gathered(found: Sequence[tuple[Judged, Sequence[int] | slice]]) -> Judged:
    """The scores of some members (by index) of several stacks on one task, as if of one stack."""
    kind = type(found[0][0])
    return kind(
        **{
            field.name: torch.cat([getattr(judged, field.name)[m] for judged, m in found])
            for field in fields(kind)
        }
    )


def from_columns(columns: Mapping[str, Tensor]) -> Judged:
    """The scores with exactly these names. Raises ValueError when no kind of target has them."""
    for kind in (Scores, Correlations, MaskScores):
        if {field.name for field in fields(kind)} == set(columns):
            return kind(**columns)
    raise ValueError(f"no target is judged by {', '.join(columns)}")

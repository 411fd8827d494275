"""The targets of tasks, behind one interface: classes and numbers; masks are in `mask_target.py`.

A target defines how labels are encoded for training, what the loss is, how outputs become
predictions, how predictions are scored, and what a row of `predictions.parquet` is. Nothing else in
the tuning stage asks which kind a target is. To add a kind, write a subclass of `Target`, add it to
`jobs.tuning.targets.TARGETS`, and describe it in `jobs.tasks.target`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from jobs.contract import StageError
from jobs.tasks.spec import Task
from jobs.tasks.target import CLASS, NUMBER, TargetKind
from jobs.tuning.class_mapping import ClassMapping
from jobs.tuning.metrics import Judged, correlate, score
from jobs.tuning.schema import Estimate, Prediction, Segmented
from jobs.tuning.schema import of as schema_of

Indices = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int64] | npt.NDArray[np.float64] | npt.NDArray[np.int32]
LabelType = np.dtype[np.int64] | np.dtype[np.float64] | np.dtype[np.int32]
Statistics = Mapping[str, float] | Mapping[str, Tensor]
"""Statistics of a head's training targets, by buffer name: numbers, or [K, 1] for K members."""


class Target(ABC):
    """What a head predicts for one task. K members, R rows, C outputs."""

    kind: ClassVar[TargetKind]
    label_type: ClassVar[LabelType]  # of the labels in the files
    term: ClassVar[str]  # the training loss's name in `trained.TERMS`
    dtype: ClassVar[torch.dtype]  # of encoded targets
    blank: ClassVar[Mapping[str, float]] = {}  # statistics of an untrained head
    curves: ClassVar[tuple[str, ...]]  # validation scores that are recorded epoch by epoch
    row: ClassVar[type[Prediction] | type[Estimate] | type[Segmented]]  # of `predictions.parquet`

    @classmethod
    @abstractmethod
    def of(cls, classes: int) -> Target:
        """The target of a task with this many classes."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """Classes of the task; 0 for a target that has none."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """C, outputs of the head's last layer."""

    # -- rows --------------------------------------------------------------------------------------

    @abstractmethod
    def select(self, labels: Labels, index_of: Indices, task: Task) -> tuple[Indices, Labels]:
        """(ascending indices of the task's rows, their targets) of a part's labels [N].

        `index_of` gives the task's class of each corpus label, or -1 for none. Raises StageError
        when labels are out of range or no row belongs to the task.
        """

    @abstractmethod
    def strata(self, targets: Labels) -> Indices:
        """The group [N] of each row; a fraction takes the same share of every group."""

    @abstractmethod
    def check_training(
        self, targets: Labels, names: Sequence[str], task: Task, percent: float
    ) -> None:
        """Raise StageError when nothing can be learned from the training targets."""

    @abstractmethod
    def check_part(self, targets: Labels, task: Task) -> None:
        """Raise StageError for a validation or test part that cannot be scored."""

    def predictions(
        self, keys: pa.Array, indices: Indices, targets: Tensor, predicted: Tensor
    ) -> pa.Table:
        """The table `predictions.parquet` of test rows: keys, indices in the part, targets [N]."""
        return pa.table([keys, targets.numpy(), predicted.numpy()], schema=schema_of(self.row))

    # -- training and prediction -------------------------------------------------------------------

    def statistics(self, targets: Tensor) -> Mapping[str, float]:
        """Statistics of the training targets [N]. Raises ValueError when they have none."""
        return self.blank

    @abstractmethod
    def encoded(self, targets: Tensor, statistics: Statistics) -> Tensor:
        """Targets [N] or [K, N] in the form that `losses` compares with outputs."""

    def of_views(self, targets: Tensor, views: Sequence[int]) -> Tensor:
        """The targets [V * M] of these views of M rows, one view after another."""
        return targets.repeat(len(views))

    @abstractmethod
    def regressed(self, targets: Tensor, statistics: Statistics) -> Tensor:
        """Targets [R] in the form that least squares fits: float64 [R, C]."""

    @abstractmethod
    def losses(
        self, outputs: Tensor, encoded: Tensor, reduction: Literal["none", "mean"] = "none"
    ) -> Tensor:
        """The loss of each row, or its mean, of outputs [K, C, R] or [R, C] (C on axis 1)."""

    @abstractmethod
    def decode(self, outputs: Tensor, statistics: Statistics) -> Tensor:
        """Predictions [K, R] or [R], in the task's units, from outputs (C on axis 1)."""

    @abstractmethod
    def judge(self, targets: Tensor, predicted: Tensor) -> Judged:
        """The scores of `predicted` [K, N] against `targets` [N].

        Raises ValueError when there are too few rows to score.
        """

    @abstractmethod
    def mapping(
        self, task: Task, classes: Sequence[str], outputs: Sequence[str]
    ) -> ClassMapping | None:
        """How a head with other `outputs` predicts this task's `classes`; None: as they are.

        Raises StageError when a class has no output.
        """


@dataclass(frozen=True)
class OfClasses(Target):
    """A target with an output for each of C classes; the largest output is the prediction."""

    count: int  # C

    @classmethod
    def of(cls, classes: int) -> Self:
        """See `Target.of`."""
        return cls(classes)

    @property
    def classes(self) -> int:
        """C."""
        return self.count

    @property
    def outputs(self) -> int:
        """One for each class."""
        return self.count

    def decode(self, outputs: Tensor, statistics: Statistics) -> Tensor:
        """The class with the largest output."""
        return outputs.argmax(1)

    def mapping(
        self, task: Task, classes: Sequence[str], outputs: Sequence[str]
    ) -> ClassMapping | None:
        """By name, see `ClassMapping.of`."""
        return ClassMapping.of(task, classes, outputs)


@dataclass(frozen=True)
class ClassTarget(OfClasses):
    """One of C classes. The loss is cross-entropy."""

    kind = CLASS
    label_type = np.dtype(np.int64)
    term = "ce"
    dtype = torch.int64
    curves = ("accuracy", "macro_f1")
    row = Prediction

    def select(self, labels: Labels, index_of: Indices, task: Task) -> tuple[Indices, Labels]:
        """See `Target.select`; rows of other classes are left out."""
        if labels.max() >= len(index_of) or labels.min() < 0:
            raise StageError(
                f"task {task.name}: features have label {int(labels.max())}, but the corpus has "
                f"{len(index_of)} classes; extract the features again"
            )
        classes = index_of[labels]
        inside = np.flatnonzero(classes >= 0)
        if len(inside) == 0:
            raise StageError(
                f"task {task.name}: a part has no row with a label of its classes; check `classes`"
            )
        return inside, classes[inside]

    def strata(self, targets: Labels) -> Indices:
        """The classes: a fraction has the same share of each."""
        return targets.astype(np.int64)

    def check_training(
        self, targets: Labels, names: Sequence[str], task: Task, percent: float
    ) -> None:
        """See `Target.check_training`: two classes or more, and a row of each."""
        if len(names) < 2:
            raise StageError(f"task {task.name} has {len(names)} class; give it at least two")
        empty = np.flatnonzero(np.bincount(targets, minlength=len(names)) == 0)
        if len(empty):
            raise StageError(
                f"task {task.name}: class {names[empty[0]]} has no row in the training part; "
                f"leave it out of `classes` or give the corpus a larger training part"
            )

    def check_part(self, targets: Labels, task: Task) -> None:
        """See `Target.check_part`; any row of a class can be scored."""

    def encoded(self, targets: Tensor, statistics: Statistics) -> Tensor:
        """The class indices."""
        return targets

    def regressed(self, targets: Tensor, statistics: Statistics) -> Tensor:
        """The classes' indicators."""
        return functional.one_hot(targets, self.count).double()

    def losses(
        self, outputs: Tensor, encoded: Tensor, reduction: Literal["none", "mean"] = "none"
    ) -> Tensor:
        """Cross-entropy, in nats."""
        return functional.cross_entropy(outputs, encoded, reduction=reduction)

    def judge(self, targets: Tensor, predicted: Tensor) -> Judged:
        """Accuracy, F1 and Matthews' coefficient, see `metrics.score`."""
        return score(targets, predicted, self.count)


@dataclass(frozen=True)
class NumberTarget(Target):
    """A number. The loss is squared error, in units of the training targets' variance.

    The head has one output, in standard deviations from the mean of the training targets. It keeps
    mean and deviation as buffers, so that it predicts in the task's own units.
    """

    kind = NUMBER
    label_type = np.dtype(np.float64)
    term = "squared_error"
    dtype = torch.float32
    blank = {"target.mean": 0.0, "target.deviation": 1.0}  # noqa: RUF012
    curves = ("pearson", "spearman")
    row = Estimate

    @classmethod
    def of(cls, classes: int) -> NumberTarget:
        """See `Target.of`; a number has no classes."""
        return cls()

    @property
    def classes(self) -> int:
        """0: a number has no classes."""
        return 0

    @property
    def outputs(self) -> int:
        """The number alone."""
        return 1

    def select(self, labels: Labels, index_of: Indices, task: Task) -> tuple[Indices, Labels]:
        """Every row."""
        return np.arange(len(labels)), labels

    def strata(self, targets: Labels) -> Indices:
        """A single group: a fraction is a share of all rows."""
        return np.zeros(len(targets), np.int64)

    def check_training(
        self, targets: Labels, names: Sequence[str], task: Task, percent: float
    ) -> None:
        """See `Target.check_training`: two different numbers or more."""
        if bool((targets == targets[0]).all()):
            raise StageError(
                f"task {task.name}: the training rows of fraction {percent:g} % ({len(targets)}) "
                f"all have the target {float(targets[0]):g}; use a larger fraction, or correct the "
                f"labels"
            )

    def check_part(self, targets: Labels, task: Task) -> None:
        """See `Target.check_part`: two rows or more."""
        if len(targets) < 2:
            raise StageError(
                f"task {task.name}: a part has one row, and a correlation needs two; add rows to "
                f"the part"
            )

    def statistics(self, targets: Tensor) -> Mapping[str, float]:
        """Mean and standard deviation of the targets [N]. Raises ValueError if all are equal."""
        mean, deviation = float(targets.double().mean()), float(targets.double().std(correction=0))
        if not deviation > 0:
            raise ValueError(
                f"all {len(targets)} training targets are {mean:g}; nothing can be learned"
            )
        return {"target.mean": mean, "target.deviation": deviation}

    def encoded(self, targets: Tensor, statistics: Statistics) -> Tensor:
        """Standard deviations from the mean, float64."""
        return (targets.double() - statistics["target.mean"]) / statistics["target.deviation"]

    def regressed(self, targets: Tensor, statistics: Statistics) -> Tensor:
        """As `encoded`, one column."""
        return self.encoded(targets, statistics)[:, None]

    def losses(
        self, outputs: Tensor, encoded: Tensor, reduction: Literal["none", "mean"] = "none"
    ) -> Tensor:
        """The squared error, in units of the training targets' variance."""
        squared = (outputs[:, 0] - encoded).square()
        return squared.mean() if reduction == "mean" else squared

    def decode(self, outputs: Tensor, statistics: Statistics) -> Tensor:
        """The number in the task's units, float64: the inverse of `encoded`."""
        deviations = outputs[:, 0].double()
        return deviations * statistics["target.deviation"] + statistics["target.mean"]

    def judge(self, targets: Tensor, predicted: Tensor) -> Judged:
        """Correlations, see `metrics.correlate`."""
        return correlate(targets, predicted)

    def mapping(
        self, task: Task, classes: Sequence[str], outputs: Sequence[str]
    ) -> ClassMapping | None:
        """None: the output is the number."""
        return None

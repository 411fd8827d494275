"""Selects the rows of a part that a cell uses, from keys and labels alone.

Takes a part's samples (keys and labels, sorted by key), a task, a percentage and a seed; gives the
indices of the task's rows with their targets. Frozen cells index features with them, and cells that
train the encoder index images, so both use the same samples. The selection depends only on labels,
keys and seed: it is the same at every noise level, and a larger fraction contains the rows of a
smaller one. A task whose target is a number has no classes: its labels are the numbers, and its
fraction depends only on the keys. Reads no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from jobs.contract import StageError
from jobs.keyed_hash import hash64
from jobs.tasks.spec import Task, other_of_number, shared_name
from jobs.tasks.target import OF_TWO_CLASSES
from jobs.tuning.target import Indices, Labels
from jobs.tuning.targets import kind_of, target_of

PartName = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Samples:
    """The keys and labels of one part, sorted by key."""

    keys: pa.Array  # string, [N]; of masks: of patches, which share their image's key
    labels: Labels  # the corpus's labels, [N]; float64: numbers; int32 [N, V, C]: pixels by class


@dataclass(frozen=True)
class TaskRows:
    """The rows of a part that belong to a task."""

    keys: pa.Array  # string, [n]
    labels: Tensor  # int64 [n], class indices of the task; float64 [n], its numbers; of masks int32
    indices: Indices  # [n], ascending, into the part's samples
    other_classes: int  # rows left out because the task has no class for their label
    beyond_fraction: int = 0  # rows left out because only a fraction is used
    dropped: int = 0  # test rows left out because they are trained on


class Features(Protocol):
    """What of a tensor of features is used: so they may also be read from a file, row by row."""

    @property
    def shape(self) -> Any:
        """[V, N, D] or [N, D]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Tensor:
        """Some rows, or views and rows, float32."""

    def to(self, device: Any, /) -> Any:
        """The same, whose rows come on a device."""

    def data_ptr(self) -> int:
        """A number that is equal for the same rows of the same features alone."""


@dataclass(frozen=True)
class Labelled:
    """Features with their targets. Training features carry their views on the first axis."""

    features: Features  # float32, [V, N, D] or, without views, [N, D]
    labels: Tensor  # int64 [N], in [0, C); float64, numbers in the task's units; int32, of masks


# -- the task's classes ----------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskClasses:
    """Which corpus labels count as which class of a task."""

    names: tuple[str, ...]  # empty: the target is a number
    index_of: Indices  # by corpus label; -1: not part of the task

    @staticmethod
    def of(task: Task, corpus_classes: tuple[str, ...]) -> TaskClasses:
        """A task's classes from the corpus's. Raises StageError when the labels do not fit."""
        if not task.target_kind.has_classes:
            return TaskClasses((), np.zeros(0, np.int64))
        if task.classes is None:
            return TaskClasses(corpus_classes, np.arange(len(corpus_classes)))
        index_of = np.full(len(corpus_classes), -1)
        label_of = {name: label for label, name in enumerate(corpus_classes)}
        for index, (name, members) in enumerate(task.classes.items()):
            for member in members:
                if task.spells_labels and isinstance(member, str) and member not in label_of:
                    continue  # another spelling of the class; this source does not use it
                if isinstance(member, str) and (fault := shared_name(member, corpus_classes)):
                    raise StageError(f"task {task.name}: classes.{name} names {fault}")
                label = _label(task, name, member, label_of)
                if index_of[label] >= 0:
                    raise StageError(
                        f"task {task.name}: label {label} counts as two classes; "
                        f"remove it from classes.{name} or from the other class"
                    )
                index_of[label] = index
        if task.spells_labels:
            _check_spelling(task, task.classes, corpus_classes, index_of)
        return TaskClasses(tuple(task.classes), index_of)


def _check_spelling(
    task: Task, classes: Mapping[str, Sequence[int | str]], labels: Sequence[str], index_of: Indices
) -> None:
    """Check that the source's labels name every class. Raises StageError.

    Numbers name no class: two sources may number the same classes in another order. Where the
    metric needs exactly two classes, no label may stand for a third one.
    """
    lacking = set(range(len(classes))) - set(index_of.tolist())
    if not lacking and not (task.metric in OF_TWO_CLASSES and (index_of < 0).any()):
        return
    known = "; ".join(f"{name} ({', '.join(map(str, classes[name]))})" for name in classes)
    where = "its features" if task.source == "features" else f"corpus {task.scope}"
    if labels and all(label.strip().isdecimal() for label in labels):
        raise StageError(
            f"task {task.name}: the labels of {where} are numbers ({', '.join(labels[:3])}), which "
            f"say nothing of their meaning; name the classes in the order of their numbers: "
            f"`label_names` of the task's reader, or `classes` of an encoder of given features; "
            f"the task knows {known}"
        )
    raise StageError(
        f"task {task.name}: {where} have {len(labels)} labels (the first: "
        f"{', '.join(labels[:3])}), but its classes and their accepted labels are {known}; "
        f"correct the labels, or list them in a task file of your own"
    )


def _label(task: Task, name: str, member: int | str, label_of: Mapping[str, int]) -> int:
    """The corpus label that a member of a class names. Raises StageError for an unknown one."""
    if isinstance(member, str):
        if member not in label_of:
            raise StageError(
                f"task {task.name}: classes.{name} names class {member!r}, which corpus "
                f"{task.scope} lacks; `nml-orch tasks check {task.name}` compares the two"
            )
        return label_of[member]
    if not 0 <= member < len(label_of):
        raise StageError(
            f"task {task.name}: classes.{name} names label {member}, but corpus "
            f"{task.scope} has labels 0 to {len(label_of) - 1}"
        )
    other = other_of_number(member, tuple(label_of))
    if other is not None:
        raise StageError(f"task {task.name}: classes.{name} names {other}")
    return member


# -- rows ------------------------------------------------------------------------------------------


def training_rows(
    part: Samples, classes: TaskClasses, task: Task, *, percent: float, seed: int
) -> TaskRows:
    """The training rows of a cell: `percent` of each class's rows, at least one of each.

    Where the target is a number, `percent` of all rows. Raises StageError when a class has no row,
    when the task has fewer than two classes, or when all rows have the same number as target.
    """
    target = target_of(task, len(classes.names))
    whole = _rows_of_task(part, classes, task)
    drawn = _draw_fraction(whole, target.strata(whole.labels.numpy()), percent, seed, task)
    target.check_training(drawn.labels.numpy(), classes.names, task, percent)
    return drawn


def _draw_fraction(
    whole: TaskRows, groups: Indices, percent: float, seed: int, task: Task
) -> TaskRows:
    """`percent` of the rows of each group."""
    if percent >= 100:
        return whole
    if task.target_kind.dense:
        kept = _fraction_of_images(whole.keys, percent, seed, task)
    else:
        kept = fraction(whole.keys, groups, percent=percent, seed=seed, scope=task.scope)
    return TaskRows(
        whole.keys.take(pa.array(kept)),
        whole.labels[torch.from_numpy(kept)],
        whole.indices[kept],
        whole.other_classes,
        len(groups) - len(kept),
    )


def _fraction_of_images(keys: pa.Array, percent: float, seed: int, task: Task) -> Indices:
    """Ascending indices of the patches of `percent` of the images; patches share their key."""
    named = keys.dictionary_encode()
    images = named.dictionary
    alike = np.zeros(len(images), np.int64)
    kept = fraction(images, alike, percent=percent, seed=seed, scope=task.scope)
    return np.flatnonzero(np.isin(named.indices.to_numpy(), kept))


def plain_rows(part: Samples, classes: TaskClasses, task: Task) -> TaskRows:
    """The rows of a validation or test part. Raises StageError when they cannot be scored."""
    rows = _rows_of_task(part, classes, task)
    target_of(task, len(classes.names)).check_part(rows.labels.numpy(), task)
    return rows


def without(rows: TaskRows, keys: pa.Array, task: Task) -> TaskRows:
    """The rows of a test part but those with these keys. Raises StageError when none is left."""
    kept = np.flatnonzero(~pc.is_in(rows.keys, value_set=keys).to_numpy(zero_copy_only=False))
    if len(kept) == 0:
        raise StageError(
            f"task {task.name}: every test sample is trained on, so `overlap: drop` leaves none to "
            f"test; take the task out, or correct its reader"
        )
    return TaskRows(
        rows.keys.take(pa.array(kept)),
        rows.labels[torch.from_numpy(kept)],
        rows.indices[kept],
        rows.other_classes,
        dropped=len(rows.keys) - len(kept),
    )


def fraction(keys: pa.Array, labels: Indices, *, percent: float, seed: int, scope: str) -> Indices:
    """Ascending indices of `percent` of each label's rows (rounded to nearest, at least one).

    The choice depends on the rows' keys, the seed and the scope, never on their order. A larger
    percentage contains the rows of a smaller one.
    """
    order = np.argsort(hash64(keys, seed=seed, scope=scope, stream="fraction"), kind="stable")
    kept = []
    for label in np.unique(labels):
        own = order[labels[order] == label]
        kept.append(own[: max(1, int(len(own) * percent / 100 + 0.5))])
    return np.sort(np.concatenate(kept))


def _rows_of_task(part: Samples, classes: TaskClasses, task: Task) -> TaskRows:
    """The part's rows whose label belongs to the task."""
    target = target_of(task, len(classes.names))
    if part.labels.dtype != target.label_type:
        found = kind_of(part.labels.dtype)
        raise StageError(
            f"task {task.name} predicts a {task.target}, but the labels beside its features are "
            f"{part.labels.dtype if found is None else found.plural}; extract the features again"
        )
    inside, targets = target.select(part.labels, classes.index_of, task)
    rows = len(part.labels)
    keys = part.keys if len(inside) == rows else part.keys.take(pa.array(inside))
    return TaskRows(keys, torch.from_numpy(targets), inside, rows - len(inside))

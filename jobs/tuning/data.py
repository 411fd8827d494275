"""Features as a cell sees them: read from a features step's output, sorted by key, cut to the task.

Takes a features folder: `features-<part>.parquet` (key, view, label, vector; view 0 is the plain
image, views 1..V augmented ones of the training part) and `classes.json`. Gives arrays whose order
depends on the keys alone, so that nothing downstream depends on how the files were written. The
task's classes and the fraction of the training rows are applied here; both are pure functions of
labels, keys and seed, so they are the same at every noise level, and a smaller fraction lies
inside a larger one.

Never reads the test part except through `TestPart`, which opens it once, for a selected head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from jobs.contract import StageError
from jobs.corpus.keyed import hash64
from jobs.place import Place
from jobs.tasks.spec import Task
from jobs.tuning.stacked import Labelled

PartName = Literal["train", "validation", "test"]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """One part of an image set as features, rows sorted by key."""

    keys: pa.Array  # string, [N]
    labels: Indices  # the corpus's labels, [N]
    views: npt.NDArray[np.float32]  # [V, N, D]; the plain image alone unless augmented
    augmented: int  # augmented views in `views`; 0: the plain image


@dataclass(frozen=True)
class Fitting:
    """What a head is trained and selected on."""

    classes: tuple[str, ...]  # the corpus's
    train: Part
    validation: Part


@dataclass(frozen=True)
class TaskRows:
    """The rows of a part that belong to a task."""

    keys: pa.Array  # string, [N]
    rows: Labelled  # features [V, N, D], class indices of the task
    other_classes: int  # rows left out because the task has no class for their label
    beyond_fraction: int = 0  # rows left out because only a fraction is used


def file_name(part: PartName) -> str:
    """The file of a part inside a features folder."""
    return f"features-{part}.parquet"


# -- reading ---------------------------------------------------------------------------------------


def read_classes(folder: Place) -> tuple[str, ...]:
    """The corpus's class names, in label order."""
    try:
        names = folder.read_json("classes.json")
    except FileNotFoundError:
        raise StageError(_missing(folder, "classes.json")) from None
    return tuple(str(name) for name in names)


def read_part(folder: Place, part: PartName) -> Part:
    """A part of a features folder. Raises StageError on a missing, empty or inconsistent file."""
    name = file_name(part)
    try:
        table = folder.read_table(name)
    except FileNotFoundError:
        raise StageError(_missing(folder, name)) from None
    present = sorted(pc.unique(table["view"]).to_pylist())
    augmented = [view for view in present if view > 0] if part == "train" else []
    views = [_read_view(table, view, f"{folder.uri}/{name}") for view in augmented or [0]]
    keys, labels, _ = views[0]
    for view, (other, _, _) in zip(augmented[1:], views[1:], strict=False):
        if not other.equals(keys):
            raise StageError(
                f"{folder.uri}/{name}: view {view} does not hold the keys of view {augmented[0]}; "
                f"extract the features again"
            )
    return Part(keys, labels, np.stack([vectors for _, _, vectors in views]), len(augmented))


def _missing(folder: Place, name: str) -> str:
    return f"{folder.uri} has no {name}; extract its features again, with every part of the task"


def _read_view(
    table: pa.Table, view: int, where: str
) -> tuple[pa.Array, Indices, npt.NDArray[np.float32]]:
    """(keys, labels, vectors [N, D]) of one view, sorted by key."""
    rows = table.filter(pc.equal(table["view"], view)).sort_by("key").combine_chunks()
    if rows.num_rows == 0:
        raise StageError(f"{where} has no rows of view {view}; extract the features again")
    column = rows["vector"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    flat = column.flatten().to_numpy(zero_copy_only=False)
    vectors = flat.reshape(rows.num_rows, column.type.list_size).astype(np.float32)
    keys = pa.array(rows["key"].to_pylist(), pa.string())
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise StageError(
            f"{where}: {int(bad.sum())} rows of view {view} are not finite (first: key "
            f"{keys[int(bad.argmax())]}); the encoder has diverged: pre-train it again with a "
            f"lower learning rate"
        )
    return keys, rows["label"].to_numpy().astype(np.int64), vectors


class FeatureCache:
    """Training and validation features of the folders used last, kept between cells."""

    def __init__(self, folders: int = 2) -> None:
        self._folders = folders
        self._kept: OrderedDict[str, Fitting] = OrderedDict()

    def load(self, folder: Place) -> Fitting:
        """The folder's features, from memory when they are there. Raises as `read_part` does."""
        if folder.uri not in self._kept:
            while len(self._kept) >= self._folders:
                self._kept.popitem(last=False)
            self._kept[folder.uri] = Fitting(
                read_classes(folder), read_part(folder, "train"), read_part(folder, "validation")
            )
        self._kept.move_to_end(folder.uri)
        return self._kept[folder.uri]


@dataclass(frozen=True)
class Selected:
    """A head that was chosen on the validation part: what it takes to see the test part."""

    state: Mapping[str, torch.Tensor]  # as `StackedHeads.member` gives it
    classes: tuple[str, ...]  # of the task, in index order


class TestPart:
    """The test part of a features folder, closed until a head has been selected."""

    def __init__(self, folder: Place) -> None:
        self._folder = folder
        self.reads = 0

    def open(self, selected: Selected) -> Part:
        """Read the part for the head `selected`. Raises StageError the second time."""
        if not selected.state:
            raise StageError(f"{self._folder.uri}: the test part was asked for without a head")
        if self.reads:
            raise StageError(f"{self._folder.uri}: the test part of a cell is read only once")
        self.reads += 1
        return read_part(self._folder, "test")


# -- cutting to the task ---------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassMap:
    """Which corpus labels count as which class of a task."""

    names: tuple[str, ...]
    index_of: Indices  # by corpus label; -1: not part of the task

    @staticmethod
    def of(task: Task, corpus_classes: tuple[str, ...]) -> ClassMap:
        """The task's classes over the corpus's. Raises StageError on labels that do not fit."""
        if task.classes is None:
            return ClassMap(corpus_classes, np.arange(len(corpus_classes)))
        index_of = np.full(len(corpus_classes), -1)
        for index, (name, labels) in enumerate(task.classes.items()):
            for label in labels:
                if not 0 <= label < len(corpus_classes):
                    raise StageError(
                        f"task {task.name}: classes.{name} names label {label}, but corpus "
                        f"{task.scope} has labels 0 to {len(corpus_classes) - 1}"
                    )
                if index_of[label] >= 0:
                    raise StageError(
                        f"task {task.name}: label {label} counts as two classes; "
                        f"take it out of classes.{name} or of the other"
                    )
                index_of[label] = index
        return ClassMap(tuple(task.classes), index_of)


def training_rows(
    part: Part, classes: ClassMap, task: Task, *, percent: float, seed: int
) -> TaskRows:
    """The training rows of a cell: `percent` of each class's rows, at least one of each.

    Raises StageError when a class has no row at all, or the task fewer than two classes.
    """
    if len(classes.names) < 2:
        raise StageError(f"task {task.name} has {len(classes.names)} class; give it at least two")
    whole = _of_task(part, classes, task)
    labels = whole.rows.labels.numpy()
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes.names)) == 0)
    if len(empty):
        raise StageError(
            f"task {task.name}: class {classes.names[empty[0]]} has no row in the training part; "
            f"leave it out of `classes` or give the corpus a larger training part"
        )
    if percent >= 100:
        return whole
    kept = fraction(whole.keys, labels, percent=percent, seed=seed, scope=task.scope)
    features = whole.rows.features[:, torch.from_numpy(kept)]
    return TaskRows(
        whole.keys.take(pa.array(kept)),
        Labelled(features, whole.rows.labels[torch.from_numpy(kept)]),
        whole.other_classes,
        len(labels) - len(kept),
    )


def plain_rows(part: Part, classes: ClassMap, task: Task) -> TaskRows:
    """The rows of a validation or test part, features [N, D]. Raises StageError when none is."""
    cut = _of_task(part, classes, task)
    return TaskRows(cut.keys, Labelled(cut.rows.features[0], cut.rows.labels), cut.other_classes)


def fraction(keys: pa.Array, labels: Indices, *, percent: float, seed: int, scope: str) -> Indices:
    """Ascending indices of `percent` of each label's rows (rounded to nearest, at least one).

    Which rows depends on their keys, the seed and the scope, never on their order; the rows of a
    smaller percentage are among those of a larger one.
    """
    order = np.argsort(hash64(keys, seed=seed, scope=scope, stream="fraction"), kind="stable")
    kept = []
    for label in np.unique(labels):
        own = order[labels[order] == label]
        kept.append(own[: max(1, int(len(own) * percent / 100 + 0.5))])
    return np.sort(np.concatenate(kept))


def _of_task(part: Part, classes: ClassMap, task: Task) -> TaskRows:
    """The part's rows whose label belongs to the task."""
    if part.labels.max() >= len(classes.index_of) or part.labels.min() < 0:
        raise StageError(
            f"task {task.name}: features have label {int(part.labels.max())}, but the corpus has "
            f"{len(classes.index_of)} classes; extract the features again"
        )
    indices = classes.index_of[part.labels]
    inside = np.flatnonzero(indices >= 0)
    if len(inside) == 0:
        raise StageError(
            f"task {task.name}: no row of a part has a label of its classes; check `classes`"
        )
    if len(inside) == len(indices):
        rows = Labelled(torch.from_numpy(part.views), torch.from_numpy(indices))
        return TaskRows(part.keys, rows, 0)
    rows = Labelled(torch.from_numpy(part.views[:, inside]), torch.from_numpy(indices[inside]))
    return TaskRows(part.keys.take(pa.array(inside)), rows, len(indices) - len(inside))

"""Features as a cell sees them: read from a features step's output, sorted by key, cut to the task.

Takes a features folder: `features-<part>.parquet` (key, view, label, vector; view 0 is the plain
image, views 1..V augmented ones of the training part) and `classes.json`. Gives arrays whose order
depends on the keys alone, so that nothing downstream depends on how the files were written. The
task's classes and the fraction of the training rows are applied here; both are pure functions of
labels, keys and seed, so they are the same at every noise level, and a smaller fraction lies
inside a larger one. A task whose target is a number has no classes: its labels are those numbers,
and its fraction is taken by key alone. `digest` says what was tested, whatever the task and its
keys are called.

Never reads the test part except through `TestPart`, which opens it once, for a selected head.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from jobs.contract import StageError
from jobs.keyed_hash import hash64
from jobs.storage.folder import Folder
from jobs.tasks.spec import OF_TWO_CLASSES, Task
from jobs.tuning.stacked import Labelled

PartName = Literal["train", "validation", "test"]
Indices = npt.NDArray[np.int64]
Targets = npt.NDArray[np.int64] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """One part of an image set as features, rows sorted by key."""

    keys: pa.Array  # string, [N]
    labels: Targets  # the corpus's labels, [N]; float64 where they are numbers
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
    rows: Labelled  # features [V, N, D], class indices of the task or its numbers
    other_classes: int  # rows left out because the task has no class for their label
    beyond_fraction: int = 0  # rows left out because only a fraction is used


def file_name(part: PartName) -> str:
    """The file of a part inside a features folder."""
    return f"features-{part}.parquet"


# -- reading ---------------------------------------------------------------------------------------


def read_classes(folder: Folder) -> tuple[str, ...]:
    """The corpus's class names, in label order; none where its labels are numbers."""
    try:
        names = folder.read_json("classes.json")
    except FileNotFoundError:
        raise StageError(_missing(folder, "classes.json")) from None
    return tuple(str(name) for name in names)


def read_part(folder: Folder, part: PartName) -> Part:
    """A part of a features folder. Raises StageError on a missing, empty or inconsistent file."""
    name = file_name(part)
    where = f"{folder.uri}/{name}"
    try:
        about = folder.read_table(name, ["key", "view", "label"])
    except FileNotFoundError:
        raise StageError(_missing(folder, name)) from None
    present = sorted(pc.unique(about["view"]).to_pylist())
    augmented = [view for view in present if view > 0] if part == "train" else []
    first, *others = augmented or [0]
    keys, labels, vectors = _read_view(folder, name, about, first)
    if not others:
        return Part(keys, labels, vectors[None], len(augmented))
    views = np.empty((1 + len(others), *vectors.shape), np.float32)  # a view more than these
    views[0] = vectors
    for at, view in enumerate(others, 1):
        other, _, vectors = _read_view(folder, name, about, view)
        if not other.equals(keys):
            raise StageError(
                f"{where}: view {view} does not hold the keys of view {first}; extract the "
                f"features again"
            )
        views[at] = vectors
    return Part(keys, labels, views, len(augmented))


def _missing(folder: Folder, name: str) -> str:
    return f"{folder.uri} has no {name}; extract its features again, with every part of the task"


def _read_view(
    folder: Folder, name: str, about: pa.Table, view: int
) -> tuple[pa.Array, Targets, npt.NDArray[np.float32]]:
    """(keys, labels, vectors [N, D]) of one view, sorted by key; `about`: all but the vectors."""
    where = f"{folder.uri}/{name}"
    mine = about["view"].to_numpy() == view
    rows = about.filter(mine)
    if rows.num_rows == 0:
        raise StageError(f"{where} has no rows of view {view}; extract the features again")
    order = pc.sort_indices(rows["key"])
    place = np.empty(len(rows), np.int64)  # where each row goes
    place[order.to_numpy()] = np.arange(len(rows))
    vectors: npt.NDArray[np.float32] | None = None
    start = 0
    for found in folder.read_some(name, "vector", mine):
        for piece in found.chunks:
            flat = piece.flatten().to_numpy(zero_copy_only=False).reshape(len(piece), -1)
            if vectors is None:
                vectors = np.empty((len(rows), flat.shape[1]), np.float32)
            vectors[place[start : start + len(piece)]] = flat
            start += len(piece)
    assert vectors is not None
    rows = rows.take(order)
    keys = pa.array(rows["key"].to_pylist(), pa.string())
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise StageError(
            f"{where}: {int(bad.sum())} rows of view {view} are not finite (first: key "
            f"{keys[int(bad.argmax())]}); the encoder has diverged: pre-train it again with a "
            f"lower learning rate"
        )
    numbers = pa.types.is_floating(rows["label"].type)
    labels: Targets = rows["label"].to_numpy().astype(np.float64 if numbers else np.int64)
    return keys, labels, vectors


class FeatureCache:
    """Training and validation features of the folders used last, kept between cells."""

    def __init__(self, folders: int = 2) -> None:
        self._folders = folders
        self._kept: OrderedDict[str, Fitting] = OrderedDict()

    def load(self, folder: Folder) -> Fitting:
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
    classes: tuple[str, ...]  # of the task, in index order; none: its target is a number


class TestPart:
    """The test part of a features folder, closed until a head has been selected."""

    def __init__(self, folder: Folder) -> None:
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

    names: tuple[str, ...]  # none: the task's target is a number
    index_of: Indices  # by corpus label; -1: not part of the task

    @staticmethod
    def of(task: Task, corpus_classes: tuple[str, ...]) -> ClassMap:
        """The task's classes over the corpus's. Raises StageError on labels that do not fit."""
        if task.target == "number":
            return ClassMap((), np.zeros(0, np.int64))
        if task.classes is None:
            return ClassMap(corpus_classes, np.arange(len(corpus_classes)))
        index_of = np.full(len(corpus_classes), -1)
        place = {name: label for label, name in enumerate(corpus_classes)}
        for index, (name, members) in enumerate(task.classes.items()):
            for member in members:
                if task.source == "features" and isinstance(member, str) and member not in place:
                    continue  # a spelling that these features do not use
                label = _label(task, name, member, place)
                if index_of[label] >= 0:
                    raise StageError(
                        f"task {task.name}: label {label} counts as two classes; "
                        f"take it out of classes.{name} or of the other"
                    )
                index_of[label] = index
        if task.source == "features":
            _check_spelling(task, task.classes, corpus_classes, index_of)
        return ClassMap(tuple(task.classes), index_of)


def _check_spelling(
    task: Task, classes: Mapping[str, Sequence[int | str]], labels: Sequence[str], index_of: Indices
) -> None:
    """Given labels name every class and, for a metric of two, no third. Raises StageError."""
    lacking = set(range(len(classes))) - set(index_of.tolist())
    if lacking or (task.metric in OF_TWO_CLASSES and (index_of < 0).any()):
        known = "; ".join(f"{name} ({', '.join(map(str, classes[name]))})" for name in classes)
        raise StageError(
            f"task {task.name}: its features have {len(labels)} labels (the first: "
            f"{', '.join(labels[:3])}), but its classes and what may stand for them are {known}; "
            f"relabel the features, or list their labels in a task file of your own"
        )


def _label(task: Task, name: str, member: int | str, place: Mapping[str, int]) -> int:
    """The corpus's label that a member of a class names. Raises StageError for one it has not."""
    if isinstance(member, str):
        if member not in place:
            raise StageError(
                f"task {task.name}: classes.{name} names class {member!r}, which corpus "
                f"{task.scope} lacks; `nml-orch tasks check {task.name}` compares the two"
            )
        return place[member]
    if not 0 <= member < len(place):
        raise StageError(
            f"task {task.name}: classes.{name} names label {member}, but corpus "
            f"{task.scope} has labels 0 to {len(place) - 1}"
        )
    return member


def training_rows(
    part: Part, classes: ClassMap, task: Task, *, percent: float, seed: int
) -> TaskRows:
    """The training rows of a cell: `percent` of each class's rows, at least one of each.

    Where the target is a number, `percent` of all rows. Raises StageError when a class has no row
    at all, the task fewer than two classes, or the rows one number between them.
    """
    whole = _of_task(part, classes, task)
    labels = whole.rows.labels.numpy()
    if task.target == "number":
        drawn = _share(whole, np.zeros(len(labels), np.int64), percent, seed, task)
        _check_numbers(drawn, task, percent)
        return drawn
    if len(classes.names) < 2:
        raise StageError(f"task {task.name} has {len(classes.names)} class; give it at least two")
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes.names)) == 0)
    if len(empty):
        raise StageError(
            f"task {task.name}: class {classes.names[empty[0]]} has no row in the training part; "
            f"leave it out of `classes` or give the corpus a larger training part"
        )
    return _share(whole, labels, percent, seed, task)


def _share(whole: TaskRows, groups: Indices, percent: float, seed: int, task: Task) -> TaskRows:
    """`percent` of the rows of each group."""
    if percent >= 100:
        return whole
    kept = fraction(whole.keys, groups, percent=percent, seed=seed, scope=task.scope)
    features = whole.rows.features[:, torch.from_numpy(kept)]
    return TaskRows(
        whole.keys.take(pa.array(kept)),
        Labelled(features, whole.rows.labels[torch.from_numpy(kept)]),
        whole.other_classes,
        len(groups) - len(kept),
    )


def _check_numbers(drawn: TaskRows, task: Task, percent: float) -> None:
    """StageError for training targets that do not differ: nothing can be learnt from them."""
    targets = drawn.rows.labels
    if bool((targets == targets[0]).all()):
        raise StageError(
            f"task {task.name}: the training rows of fraction {percent:g} % ({len(targets)}) all "
            f"have the target {float(targets[0]):g}; use a larger fraction, or correct the labels"
        )


def plain_rows(part: Part, classes: ClassMap, task: Task) -> TaskRows:
    """The rows of a validation or test part, features [N, D]. Raises StageError when none is.

    Likewise for a single row where the target is a number: nothing correlates with one.
    """
    cut = _of_task(part, classes, task)
    if task.target == "number" and len(cut.keys) < 2:
        raise StageError(
            f"task {task.name}: a part has a single row, and a correlation takes two; give it more"
        )
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
    numbers = part.labels.dtype == np.float64
    if numbers != (task.target == "number"):
        found = "numbers" if numbers else "classes"
        raise StageError(
            f"task {task.name} predicts a {task.target}, but the labels beside its features are "
            f"{found}; extract the features again"
        )
    if numbers:
        rows = Labelled(torch.from_numpy(part.views), torch.from_numpy(part.labels))
        return TaskRows(part.keys, rows, 0)
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


# -- what was tested -------------------------------------------------------------------------------


def digest(rows: TaskRows) -> str:
    """A hash of the plain features and targets alone: equal for the same samples.

    Neither keys nor order nor the task's name bear on it, so that two tasks which test the same
    samples by the same labels are found out. 64 bits, in hex.
    """
    vectors = np.ascontiguousarray(rows.rows.features.numpy(), dtype=np.float32)
    return digest_of(vectors.view(np.uint32), rows.rows.labels.numpy())


def digest_of(words: npt.NDArray[np.uint32], targets: Targets) -> str:
    """`digest` of samples that are known by some words each, [N, W]."""
    weights = np.random.default_rng(0).integers(1, 2**63, words.shape[1], dtype=np.uint64)
    sums = np.zeros(len(words), np.uint64)
    for start in range(0, len(words), _DIGEST_ROWS):
        piece = words[start : start + _DIGEST_ROWS].astype(np.uint64)
        sums[start : start + _DIGEST_ROWS] = (_mixed(piece) * weights).sum(axis=1, dtype=np.uint64)
    bits = targets.view(np.uint64) if targets.dtype == np.float64 else targets.astype(np.uint64)
    labels = bits * np.uint64(0x9E3779B97F4A7C15)
    ordered = np.sort(_mixed(sums ^ _mixed(labels)))
    return hashlib.blake2b(ordered.astype("<u8").tobytes(), digest_size=8).hexdigest()


_DIGEST_ROWS = 4_096


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """MurmurHash3's finaliser, so that sums of words do not cancel."""
    mixed = (words ^ (words >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    return mixed ^ (mixed >> np.uint64(33))

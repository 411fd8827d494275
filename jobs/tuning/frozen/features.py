"""Reads the features of a frozen cell from a features step's output, sorted by key.

Takes a features folder: `features-<part>.parquet` (key, view, label, vector; view 0 is the plain
image, views 1..V are augmented and exist only in the training part) and `classes.json`. Gives
arrays whose order depends only on the keys, never on how the files were written. Features of
patches (`patches`) are read from their file as they are needed. `jobs.tuning.rows` selects the rows
of a cell; `Part.training` and `Part.plain` index features with them.

Only `TestPart` reads the test part. It opens the part once, for a selected head.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs import records
from jobs.contract import StageError
from jobs.features import grids
from jobs.storage.folder import Folder
from jobs.tuning.frozen import patches
from jobs.tuning.frozen.part import Part
from jobs.tuning.rows import PartName
from jobs.tuning.target import Labels
from jobs.tuning.trained import Selected


@dataclass(frozen=True)
class Fitting:
    """The parts that a head is trained and selected on."""

    classes: tuple[str, ...]  # the corpus's
    train: Part
    validation: Part


def file_name(part: PartName) -> str:
    """The name of a part's file in a features folder."""
    return f"features-{part}.parquet"


def read_classes(folder: Folder) -> tuple[str, ...]:
    """The corpus's class names, in label order; empty where its labels are numbers."""
    remedy = "delete its folder and extract its features again"
    try:
        return records.read(folder, "classes.json", tuple[str, ...], remedy)
    except FileNotFoundError:
        raise StageError(_missing(folder, "classes.json")) from None


def read_part(folder: Folder, part: PartName, *, plain: bool = False) -> Part:
    """A part of a features folder; `plain`: without the augmented views of the training part.

    Raises StageError on a missing, empty or inconsistent file.
    """
    if grids.has_part(folder, part):
        return patches.read_part(folder, part, plain=plain)
    name = file_name(part)
    where = f"{folder.uri}/{name}"
    try:
        about = folder.read_table(name, ["key", "view", "label"])
    except FileNotFoundError:
        raise StageError(_missing(folder, name)) from None
    present = sorted(pc.unique(about["view"]).to_pylist())
    augmented = [view for view in present if view > 0] if part == "train" and not plain else []
    first, *others = augmented or [0]
    keys, labels, vectors = _read_view(folder, name, about, first)
    if not others:
        return Part(keys, labels, vectors[None], len(augmented))
    views = np.empty(
        (1 + len(others), *vectors.shape), np.float32
    )  # memory peak: these and one view more
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
) -> tuple[pa.Array, Labels, npt.NDArray[np.float32]]:
    """(keys, labels, vectors [N, D]) of one view, sorted by key; `about`: the other columns."""
    where = f"{folder.uri}/{name}"
    mine = about["view"].to_numpy() == view
    rows = about.filter(mine)
    if rows.num_rows == 0:
        raise StageError(f"{where} has no rows of view {view}; extract the features again")
    order = pc.sort_indices(rows["key"])
    position = np.empty(len(rows), np.int64)  # of each row, by key
    position[order.to_numpy()] = np.arange(len(rows))
    vectors: npt.NDArray[np.float32] | None = None
    start = 0
    for found in folder.read_some(name, "vector", mine):
        for piece in found.chunks:
            flat = piece.flatten().to_numpy(zero_copy_only=False).reshape(len(piece), -1)
            if vectors is None:
                vectors = np.empty((len(rows), flat.shape[1]), np.float32)
            vectors[position[start : start + len(piece)]] = flat
            start += len(piece)
    assert vectors is not None
    rows = rows.take(order)
    keys = pa.array(rows["key"].to_pylist(), pa.string())
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise StageError(
            f"{where}: {int(bad.sum())} rows of view {view} are not finite (first: key "
            f"{keys[int(bad.argmax())]}); extract the features again"
        )
    numbers = pa.types.is_floating(rows["label"].type)
    labels: Labels = rows["label"].to_numpy().astype(np.float64 if numbers else np.int64)
    return keys, labels, vectors


class FeatureCache:
    """Keeps the training and validation features of the folders used last, from cell to cell."""

    def __init__(self, folders: int = 2) -> None:
        self._folders = folders
        self._kept: OrderedDict[tuple[Folder, bool], Fitting] = OrderedDict()

    def load(self, folder: Folder, *, plain: bool = False) -> Fitting:
        """The folder's features, from memory where possible. Raises what `read_part` raises."""
        wanted = folder, plain
        if wanted not in self._kept:
            while len(self._kept) >= self._folders:
                self._kept.popitem(last=False)
            self._kept[wanted] = Fitting(
                read_classes(folder),
                read_part(folder, "train", plain=plain),
                read_part(folder, "validation"),
            )
        self._kept.move_to_end(wanted)
        return self._kept[wanted]


class TestPart:
    """The test part of a features folder, closed until a head has been selected."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self.reads = 0

    def open(self, selected: Selected) -> Part:
        """Read the part for the head `selected`. Raises StageError when called again."""
        if not selected.state:
            raise StageError(f"{self._folder.uri}: the test part was opened without a head")
        if self.reads:
            raise StageError(f"{self._folder.uri}: the test part of a cell is read only once")
        self.reads += 1
        return read_part(self._folder, "test")

"""Image folders: a folder for each class, with images at any depth below it.

The usual layout of ImageNet on a disk: `train/n01440764/n01440764_10026.JPEG`. The folders are the
classes, in alphabetical order. Every file below a folder is a row; a file that is not an image goes
to quarantine. Hidden files and folders (`.DS_Store`, `.ipynb_checkpoints`) are passed over, and so
are files beside the class folders; both are counted as notes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from jobs.contract import StageError
from jobs.corpus.reader_spec import ImageFolderReader
from jobs.corpus.readers.labels import refuse_alike
from jobs.corpus.readers.names import class_names, refuse_nameless
from jobs.corpus.readers.rows import Classes, RowBatcher, Unit, claim
from jobs.corpus.readers.source import (
    contents,
    files,
    files_beside,
    folders,
    hidden_beside,
    is_hidden,
    why_no_content,
)
from jobs.storage.folder import Folder

PARTS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}
UNITS = 64  # at least, for a source: few large classes must still give enough parallel work


@dataclass(frozen=True)
class ImageFolder:
    """Rows keyed by the path below the root; the folder is the class."""

    spec: ImageFolderReader

    labels = True
    captions = False

    def classes(self) -> Classes:
        """The folders, with the names that `class_names` gives them."""
        ids = folders(self.spec.path)
        _refuse_parts(ids, self.spec.path)
        refuse_alike(ids, self.spec.path, "rename or merge the folders")
        if self.spec.class_names is None:
            return Classes.of(ids)
        named = class_names(self.spec.class_names)
        refuse_nameless(ids, named, self.spec.class_names)
        return Classes.of(ids, named)

    def units(self) -> Sequence[Unit]:
        """Shares of each class folder: share `start` of `stop` equal ones of its sorted files."""
        names = folders(self.spec.path)
        shares = -(-UNITS // len(names))
        return [
            Unit(name, share, shares, label)
            for label, name in enumerate(names)
            for share in range(shares)
        ]

    def files(self) -> Iterator[tuple[str, int]]:
        """Every image file."""
        for folder in folders(self.spec.path):
            yield from self._files(folder, Counter())

    def label_counts(self) -> Counter[int]:
        """The files of each class folder."""
        ids = folders(self.spec.path)
        return Counter({n: len(self._files(name, Counter())) for n, name in enumerate(ids)})

    def read(self, unit: Unit, notes: Counter[str]) -> Iterator[pa.Table]:
        """The rows of one share of one class folder."""
        first = unit.start == 0
        found = self._files(unit.file, notes if first else Counter())
        if first and unit.label == 0:
            notes["file_outside_classes"] += files_beside(self.spec.path)
            notes["hidden_file"] += hidden_beside(self.spec.path)
        cut = [len(found) * share // unit.stop for share in (unit.start, unit.start + 1)]
        names = [name for name, _ in found[cut[0] : cut[1]]]
        rows = RowBatcher(unit.file)
        for name, (data, fault) in zip(names, contents(self.spec.path, names), strict=True):
            detail = None if data is not None else why_no_content(self.spec.path, name, fault)
            rows.add(name, data, label=unit.label, claims=claim(name), fault=fault, detail=detail)
            yield from rows.full()
        yield from rows.rest()

    def _files(self, folder: str, notes: Counter[str]) -> list[tuple[str, int]]:
        root = (Folder.of(self.spec.path) / folder).uri
        below = files(root, empty=True, broken=True, hidden=True)
        found = [(f"{folder}/{name}", size) for name, size in below if not is_hidden(name)]
        notes["hidden_file"] += len(below) - len(found)
        return found


def _refuse_parts(folders: Sequence[str], path: str) -> None:
    """Raise StageError when all folders are named like parts of a data set, not like classes."""
    if all(re.sub(r"[\W\d_]+", "", name).casefold() in PARTS for name in folders):
        raise StageError(
            f"{path} has the folders {', '.join(folders)}, which are parts, not classes; give the "
            f"reader {path}/{folders[0]}, and each other part a reader of its own under "
            f"corpus.parts"
        )

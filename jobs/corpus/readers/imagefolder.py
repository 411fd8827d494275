"""Image folders: a folder for each class, with images at any depth below it.

The usual layout of ImageNet on a disk: `train/n01440764/n01440764_10026.JPEG`. The folders are the
classes, in alphabetical order. Every file below a folder is a row; a file that is not an image goes
to quarantine. Hidden files and folders (`.DS_Store`, `.ipynb_checkpoints`) are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from jobs.corpus.readers.names import class_names
from jobs.corpus.readers.rows import Classes, RowBatcher, Unit, claim
from jobs.corpus.readers.source import contents, files, folders, is_hidden
from jobs.corpus.spec import ImageFolderReader
from jobs.storage.folder import Folder

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
        return Classes.of(ids, class_names(self.spec.class_names) if self.spec.class_names else {})

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
            yield from self._files(folder)

    def read(self, unit: Unit) -> Iterator[pa.Table]:
        """The rows of one share of one class folder."""
        found = self._files(unit.file)
        cut = [len(found) * share // unit.stop for share in (unit.start, unit.start + 1)]
        names = [name for name, _ in found[cut[0] : cut[1]]]
        rows = RowBatcher(unit.file)
        for name, (data, fault) in zip(names, contents(self.spec.path, names), strict=True):
            rows.add(name, data, label=unit.label, claims=claim(name), fault=fault)
            yield from rows.full()
        yield from rows.rest()

    def _files(self, folder: str) -> list[tuple[str, int]]:
        root = (Folder.of(self.spec.path) / folder).uri
        below = files(root, empty=True, broken=True)
        return [(f"{folder}/{name}", size) for name, size in below if not is_hidden(name)]

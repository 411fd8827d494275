"""A folder of images and a folder of masks, paired by name: the layouts of VOC, ADE20K, Cityscapes.

The mask of `a/b.jpg` is `a/b.png` below the other folder, with the endings of the spec. A list of
names chooses some images (VOC's `ImageSets/Segmentation/train.txt`); a name in it without a file is
a row without an image. Without a list, hidden files, images with another ending and masks without
an image are passed over, and counted as notes.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from jobs.contract import StageError
from jobs.corpus.reader_spec import MaskFolderReader
from jobs.corpus.readers.rows import Classes, RowBatcher, Unit, claim
from jobs.corpus.readers.source import contents, files, is_hidden, text, why_no_content

UNITS = 64  # at most
UNIT_ROWS = 200  # at least
READ_ROWS = 64  # images requested at a time


@dataclass(frozen=True)
class MaskFolder:
    """Rows keyed by the image's path below the root, without its ending."""

    spec: MaskFolderReader

    labels = False
    captions = False

    def classes(self) -> Classes:
        """The classes of the experiment file."""
        return Classes.of(self.spec.classes)

    def units(self) -> Sequence[Unit]:
        """Ranges of the sorted keys."""
        count = len(self._keys())
        step = max(UNIT_ROWS, -(-count // UNITS))
        return [Unit("", start, min(start + step, count)) for start in range(0, count, step)]

    def files(self) -> Iterator[tuple[str, int]]:
        """The images, and the masks after them."""
        keys = set(self._keys())
        for path, ending in (
            (self.spec.path, self.spec.image_ending),
            (self.spec.masks, self.spec.mask_ending),
        ):
            for name, size in files(path, _pattern(ending), broken=True, empty=True):
                if name.removesuffix(ending) in keys:
                    yield name, size

    def label_counts(self) -> Counter[int] | None:
        """None: only the masks tell."""
        return None

    def read(self, unit: Unit, notes: Counter[str]) -> Iterator[pa.Table]:
        """The images of some keys with their masks."""
        spec, rows = self.spec, RowBatcher(unit.file)
        if unit.start == 0:
            self._note(notes)
        keys = self._keys()[unit.start : unit.stop]
        for start in range(0, len(keys), READ_ROWS):
            some = keys[start : start + READ_ROWS]
            images = contents(spec.path, [key + spec.image_ending for key in some])
            masks = contents(spec.masks, [key + spec.mask_ending for key in some])
            for key, image, mask in zip(some, images, masks, strict=True):
                name, missing = key + spec.image_ending, None
                if image.data is None:
                    missing = why_no_content(spec.path, name, image.fault)
                elif mask.data is None:
                    missing = why_no_content(spec.masks, key + spec.mask_ending, mask.fault)
                rows.add(
                    key,
                    image.data,
                    mask=mask.data,
                    claims=claim(name),
                    fault=image.fault,
                    detail=missing,
                )
                yield from rows.full()
        yield from rows.rest()

    def _note(self, notes: Counter[str]) -> None:
        """Count what is passed over, where no list chooses."""
        if self.spec.names is not None:
            return
        spec, keys = self.spec, set(self._keys())
        every = {name for name, _ in files(spec.path, broken=True, empty=True, hidden=True)}
        seen = {name for name in every if not is_hidden(name)}
        notes["hidden_file"] += len(every) - len(seen)
        masks = {
            name
            for name, _ in files(spec.masks, _pattern(spec.mask_ending), broken=True, empty=True)
        }
        notes["mask_without_image"] += sum(
            name.removesuffix(spec.mask_ending) not in keys for name in masks
        )
        apart = (spec.image_ending, spec.mask_ending)
        notes["other_ending"] += sum(claim(n) is not None and not n.endswith(apart) for n in seen)

    def _keys(self) -> list[str]:
        """The keys, sorted. Raises StageError when there is none, and for an unsafe name."""
        ending = self.spec.image_ending
        if self.spec.names is None:
            found = files(self.spec.path, _pattern(ending), broken=True)
            return [name.removesuffix(ending) for name, _ in found]
        lines = [line.strip() for line in text(self.spec.names).splitlines()]
        keys = sorted({line.removesuffix(ending) for line in lines if line})
        unsafe = [key for key in keys if key.startswith(("/", "\\")) or ".." in key.split("/")]
        if unsafe or not keys:
            what = f"names {unsafe[0]!r}, which is outside the folder" if unsafe else "has no name"
            raise StageError(f"{self.spec.names} {what}; correct the list")
        return keys


def _pattern(ending: str) -> str:
    """What fits every name with this ending, whatever characters it has."""
    return f"*{glob.escape(ending)}"

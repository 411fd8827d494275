"""ILSVRC2012's own tars, read in place: nothing is unpacked to a disk.

The training tar contains a tar for each class (`n01440764.tar`). Each of these is a unit of work: a
byte range of the outer file. The validation tar is flat (`ILSVRC2012_val_00000001.JPEG`, ...). Its
labels are in a ground-truth file, one line for each image: the devkit's numbers (then `synsets`
must number the classes as the devkit's meta.mat does) or WordNet ids. In both tars, as in image
folders, labels number the ids in alphabetical order, so the tars and an unpacked tree agree.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.contract import StageError
from jobs.corpus.reader_spec import IlsvrcTarReader
from jobs.corpus.readers.labels import refuse_alike
from jobs.corpus.readers.names import Entry, class_names, entries, refuse_nameless
from jobs.corpus.readers.rows import Classes, RowBatcher, Unit, claim
from jobs.corpus.readers.source import files, is_hidden, locate, stream, text
from jobs.corpus.readers.tar import Member, members


@dataclass(frozen=True)
class IlsvrcTar:
    """Rows keyed by class and member name (training tar) or by member name (validation tar)."""

    spec: IlsvrcTarReader

    labels = True
    captions = False

    def classes(self) -> Classes:
        """The class tars' names, or the ids in `synsets` (flat tar), in alphabetical order."""
        if self.spec.ground_truth is not None:
            named = self._synsets()
            return Classes.of(sorted(e.id for e in named), {e.id: e.name for e in named})
        ids = sorted(_class_id(member.name) for member in self._class_tars())
        refuse_alike(ids, self.spec.path, "rename or merge their tars")
        if self.spec.synsets is None:
            return Classes.of(ids)
        names = class_names(self.spec.synsets)
        refuse_nameless(ids, names, self.spec.synsets)
        return Classes.of(ids, names)

    def units(self) -> Sequence[Unit]:
        """The class tars' byte ranges. The flat tar is one unit: its headers are spread over it."""
        if self.spec.ground_truth is not None:
            return [Unit(name, 0, size) for name, size in self.files()]
        tars = sorted(self._class_tars(), key=lambda member: _class_id(member.name))
        return [
            Unit(_class_id(member.name), member.offset, member.offset + member.size, label)
            for label, member in enumerate(tars)
        ]

    def files(self) -> Iterator[tuple[str, int]]:
        """The one tar file."""
        yield from files(self.spec.path)

    def label_counts(self) -> Counter[int] | None:
        """Of the flat tar, by its ground truth."""
        return None if self.spec.ground_truth is None else Counter(self._true_labels())

    def read(self, unit: Unit, notes: Counter[str]) -> Iterator[pa.Table]:
        """The rows of one class tar, or of the whole flat tar."""
        if self.spec.ground_truth is not None:
            yield from self._read_flat(unit, notes)
            return
        source = f"{unit.file}.tar"
        rows = RowBatcher(source)
        filesystem, full = locate(self.spec.path, "")
        with filesystem.open_input_file(full) as opened:
            window = _Window(opened, unit.start, unit.stop)
            for member in members(window, f"{self.spec.path}, {source}"):
                _add_row(rows, member, f"{unit.file}/{member.name}", unit.label, notes)
                yield from rows.full()
        yield from rows.rest()

    def _read_flat(self, unit: Unit, notes: Counter[str]) -> Iterator[pa.Table]:
        truth, numbers = self._true_labels(), set[int]()
        rows = RowBatcher(unit.file)
        with stream(self.spec.path, unit.file) as opened:
            for member in members(opened, self.spec.path):
                digits = re.search(r"([0-9]{1,18})\.\w+$", member.name)
                number = int(digits.group(1)) if digits else 0
                numbers.add(number)
                label = truth[number - 1] if 1 <= number <= len(truth) else None
                _add_row(rows, member, member.name, label, notes)
                yield from rows.full()
        notes["truth_without_image"] += len(set(range(1, len(truth) + 1)) - numbers)
        yield from rows.rest()

    def _true_labels(self) -> list[int]:
        """The validation images' labels, in the order of their numbers, which start at 1."""
        named = self._synsets()
        ids = sorted(entry.id for entry in named)
        label_of = {identity: label for label, identity in enumerate(ids)}
        lines = text(str(self.spec.ground_truth)).split()
        if lines and lines[0].isdigit():
            label_of = self._labels_by_number(named, label_of)
        unknown = [line for line in lines if line not in label_of]
        if unknown:
            raise StageError(
                f"{self.spec.ground_truth}: class {unknown[0]!r} is not in {self.spec.synsets}; "
                f"give the two files that belong together"
            )
        return [label_of[line] for line in lines]

    def _synsets(self) -> list[Entry]:
        named = entries(str(self.spec.synsets))
        ids = Counter(entry.id for entry in named)
        repeated = [name for name, count in ids.items() if count > 1]
        if repeated:
            raise StageError(f"{self.spec.synsets} has {repeated[0]} twice; remove one of the two")
        return named

    def _labels_by_number(self, named: Sequence[Entry], label_of: dict[str, int]) -> dict[str, int]:
        if any(entry.number is None for entry in named):
            raise StageError(
                f"{self.spec.ground_truth} has the devkit's class numbers, but "
                f"{self.spec.synsets} does not number its classes; give lines `number WNID name` "
                f"as in the devkit's meta.mat"
            )
        counts = Counter(entry.number for entry in named)
        repeated = [number for number, count in counts.items() if count > 1]
        if repeated:
            raise StageError(
                f"{self.spec.synsets} gives two classes the number {repeated[0]}; correct one"
            )
        return {str(entry.number): label_of[entry.id] for entry in named}

    def _class_tars(self) -> list[Member]:
        filesystem, full = locate(self.spec.path, "")
        if full.endswith("/"):
            raise StageError(
                f"{self.spec.path} is a folder; name the tar itself, or read class folders with "
                f"`kind: imagefolder`"
            )
        with filesystem.open_input_file(full) as opened:
            window = _Window(opened, 0, opened.size())
            found = members(window, self.spec.path, wanted=lambda name: False, skip=window.skip)
            tars = [m for m in found if m.kind != "folder" and not is_hidden(m.name)]
        others = [m.name for m in tars if m.kind != "file" or not re.fullmatch(r"\w+\.tar", m.name)]
        if others or not tars:
            raise StageError(
                f"{self.spec.path} contains {others[0] if others else 'nothing'} instead of a tar "
                f"for each class; for the flat validation tar give `ground_truth`"
            )
        repeated = [name for name, count in Counter(m.name for m in tars).items() if count > 1]
        if repeated:
            raise StageError(
                f"{self.spec.path} contains {repeated[0]} twice; keep one, or merge the two"
            )
        return tars


def _add_row(
    rows: RowBatcher, member: Member, key: str, label: int | None, notes: Counter[str]
) -> None:
    if member.kind == "folder":
        return
    if is_hidden(member.name):
        notes["hidden_member"] += 1
        return
    rows.add(key, member.data, label=label, claims=claim(member.name), fault=member.fault)


def _class_id(name: str) -> str:
    return name.removesuffix(".tar")


class _Window:
    """Bytes [start, stop) of an open file, as a stream."""

    def __init__(self, opened: Any, start: int, stop: int) -> None:
        self._opened, self._left = opened, stop - start
        opened.seek(start)

    def read(self, size: int) -> bytes:
        """The next bytes, fewer only at the window's end."""
        data = bytes(self._opened.read(min(size, max(self._left, 0))))
        self._left -= len(data)
        return data

    def skip(self, size: int) -> None:
        """Skip bytes without reading them."""
        self._opened.seek(size, 1)
        self._left -= size

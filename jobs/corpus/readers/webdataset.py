"""WebDataset tars, as img2dataset writes them for YFCC15M and CC12M.

A sample is a sequence of members with one stem (`000012.jpg`, `000012.txt`, `000012.json`): the
path up to the first dot of the file name. The caption is a text member or a field of the JSON
member, as the experiment file says; so is the label. Tars may be compressed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from jobs.corpus.readers.rows import Classes, RowBatcher, Unit, claim, number_of
from jobs.corpus.readers.source import files, stream
from jobs.corpus.readers.tar import Member, members
from jobs.corpus.spec import WebDatasetReader
from jobs.images.headers import EXTENSIONS

Fault = str


@dataclass
class _Sample:
    """The members of one stem that have been read so far."""

    stem: str
    image: Member | None = None
    texts: dict[str, bytes] = field(default_factory=dict)  # extension -> content
    fault: Fault | None = None


@dataclass(frozen=True)
class WebDataset:
    """Rows keyed by their members' stem, or by tar and stem."""

    spec: WebDatasetReader

    @property
    def labels(self) -> bool:
        """Whether the experiment file names a label member."""
        return self.spec.label is not None

    @property
    def captions(self) -> bool:
        """Whether the experiment file names a caption member."""
        return self.spec.caption is not None

    def classes(self) -> Classes:
        """The classes that the experiment file lists."""
        return Classes.of(self.spec.classes)

    def units(self) -> Sequence[Unit]:
        """One unit for each tar."""
        return [Unit(name, 0, size) for name, size in self.files()]

    def files(self) -> Iterator[tuple[str, int]]:
        """Every tar file."""
        yield from files(self.spec.path, self.spec.files)

    def read(self, unit: Unit) -> Iterator[pa.Table]:
        """The rows of one tar."""
        rows = RowBatcher(unit.file)
        sample: _Sample | None = None
        with stream(self.spec.path, unit.file) as opened:
            found = members(opened, f"{self.spec.path}, {unit.file}", wanted=self._is_wanted)
            for member in found:
                if member.kind == "folder":
                    continue
                stem, extension = _split_name(member.name)
                if sample is None or stem != sample.stem:
                    yield from self._finish_sample(rows, unit, sample)
                    sample = _Sample(stem)
                self._add_member(sample, member, extension)
        yield from self._finish_sample(rows, unit, sample)
        yield from rows.rest()

    def _is_wanted(self, name: str) -> bool:
        extension = _split_name(name)[1]
        return extension in EXTENSIONS or extension in self._text_extensions()

    def _text_extensions(self) -> set[str]:
        named = {self.spec.caption, self.spec.label} - {None}
        return {str(name).partition(":")[0] for name in named}

    def _add_member(self, sample: _Sample, member: Member, extension: str) -> None:
        if member.fault is not None:
            sample.fault = member.fault
        elif extension in EXTENSIONS:
            sample.fault = "two_images" if sample.image else sample.fault
            sample.image = member
        else:
            sample.texts[extension] = member.data

    def _finish_sample(
        self, rows: RowBatcher, unit: Unit, sample: _Sample | None
    ) -> Iterator[pa.Table]:
        """Add a complete sample as a row, unless it has no member that this reader uses."""
        wanted = self._text_extensions()
        if sample is None or not (sample.image or sample.fault or sample.texts.keys() & wanted):
            return
        caption, label, fault = None, None, sample.fault
        if self.spec.caption is not None:
            caption, wrong = _read_field(sample, self.spec.caption)
            fault = fault or wrong
        if self.spec.label is not None:
            text, wrong = _read_field(sample, self.spec.label)
            label, fault = self._label_number(text), fault or wrong
        key = f"{unit.file}/{sample.stem}" if self.spec.tar_in_key else sample.stem
        rows.add(
            key,
            sample.image.data if sample.image else None,
            label=label,
            caption=caption,
            claims=claim(sample.image.name) if sample.image else None,
            fault=fault,
        )
        yield from rows.full()

    def _label_number(self, text: bytes | None) -> int | None:
        """The label of a text that is a number or a class's name."""
        name = (text or b"").decode("utf-8", "replace").strip()
        if not name:
            return None
        number, classes = number_of(name), self.spec.classes
        if number not in range(len(classes)) and name in classes:
            return classes.index(name)
        return number


def _split_name(name: str) -> tuple[str, str]:
    """(stem, extension in lower case), split at the first dot of the file name."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _read_field(sample: _Sample, where: str) -> tuple[bytes | None, Fault | None]:
    """A sample's value at `txt` or `json:field`, and its fault."""
    extension, colon, name = where.partition(":")
    data = sample.texts.get(extension)
    if data is None or not colon:
        return data, None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):  # RecursionError: nested absurdly deep
        return None, "broken_json"
    found = value.get(name) if isinstance(value, dict) else None
    return (None if found is None else str(found).encode("utf-8", "surrogatepass")), None

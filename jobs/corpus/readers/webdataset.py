"""WebDataset tars, as img2dataset writes them for YFCC15M and CC12M.

A sample is a run of members with one stem (`000012.jpg`, `000012.txt`, `000012.json`); the stem is
everything up to the first dot of the last name. The caption is a text member or a field of the JSON
member, whichever the experiment file names; so is the label. Tars may be compressed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from jobs.corpus.readers.rows import Classes, Gather, Unit, claim, number_of
from jobs.corpus.readers.source import files, stream
from jobs.corpus.readers.tar import Member, members
from jobs.corpus.spec import WebDatasetReader
from jobs.images.headers import EXTENSIONS

Fault = str


@dataclass
class _Sample:
    """The members of one stem, as far as they have come."""

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
        """Whether the experiment file names one."""
        return self.spec.label is not None

    @property
    def captions(self) -> bool:
        """Whether the experiment file names one."""
        return self.spec.caption is not None

    def classes(self) -> Classes:
        """As the experiment file lists them."""
        return Classes.of(self.spec.classes)

    def units(self) -> Sequence[Unit]:
        """The tars."""
        return [Unit(name, 0, size) for name, size in self.files()]

    def files(self) -> Iterator[tuple[str, int]]:
        """The tars."""
        yield from files(self.spec.path, self.spec.files)

    def read(self, unit: Unit) -> Iterator[pa.Table]:
        """One tar."""
        rows = Gather(unit.file)
        sample: _Sample | None = None
        with stream(self.spec.path, unit.file) as opened:
            found = members(opened, f"{self.spec.path}, {unit.file}", wanted=self._wanted)
            for member in found:
                if member.kind == "folder":
                    continue
                stem, extension = _split(member.name)
                if sample is None or stem != sample.stem:
                    yield from self._close(rows, unit, sample)
                    sample = _Sample(stem)
                self._take(sample, member, extension)
        yield from self._close(rows, unit, sample)
        yield from rows.rest()

    def _wanted(self, name: str) -> bool:
        extension = _split(name)[1]
        return extension in EXTENSIONS or extension in self._sought()

    def _sought(self) -> set[str]:
        named = {self.spec.caption, self.spec.label} - {None}
        return {str(name).partition(":")[0] for name in named}

    def _take(self, sample: _Sample, member: Member, extension: str) -> None:
        if not member.is_safe:
            sample.fault = "unsafe_path"
        elif member.kind != "file":
            sample.fault = "link"
        elif extension in EXTENSIONS:
            sample.fault = "two_images" if sample.image else sample.fault
            sample.image = member
        else:
            sample.texts[extension] = member.data

    def _close(self, rows: Gather, unit: Unit, sample: _Sample | None) -> Iterator[pa.Table]:
        """The sample is whole: a row of it, unless none of its members is of use."""
        sought = self._sought()
        if sample is None or not (sample.image or sample.fault or sample.texts.keys() & sought):
            return
        caption, label, fault = None, None, sample.fault
        if self.spec.caption is not None:
            caption, wrong = _field(sample, self.spec.caption)
            fault = fault or wrong
        if self.spec.label is not None:
            said, wrong = _field(sample, self.spec.label)
            label, fault = self._label(said), fault or wrong
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

    def _label(self, said: bytes | None) -> int | None:
        """A label's number, written as one or as a class's name."""
        words = (said or b"").decode("utf-8", "replace").strip()
        if not words:
            return None
        number, classes = number_of(words), self.spec.classes
        if number not in range(len(classes)) and words in classes:
            return classes.index(words)
        return number


def _split(name: str) -> tuple[str, str]:
    """(stem, extension in small letters): parted at the first dot of the last name."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _field(sample: _Sample, where: str) -> tuple[bytes | None, Fault | None]:
    """What a sample says at `txt` or `json:field`, and what is wrong with it."""
    extension, colon, name = where.partition(":")
    data = sample.texts.get(extension)
    if data is None or not colon:
        return data, None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):  # nested deeper than anybody means
        return None, "broken_json"
    said = value.get(name) if isinstance(value, dict) else None
    return (None if said is None else str(said).encode("utf-8", "surrogatepass")), None

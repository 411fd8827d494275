"""WebDataset tars, as img2dataset writes them for YFCC15M and CC12M.

A sample is a sequence of members with one stem (`000012.jpg`, `000012.txt`, `000012.json`): the
path up to the first dot of the file name. The caption is a text member or a field of the JSON
member, as the experiment file says; so is the label. Tars may be compressed. Members that belong to
no sample are counted: hidden ones and unused ones as notes, samples that the first dot cuts apart
(`dog.v2.jpg`, `dog.v2.txt`) as bad rows.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from jobs.contract import StageError
from jobs.corpus.reader_spec import WebDatasetReader
from jobs.corpus.readers.json_object import parse_object
from jobs.corpus.readers.labels import Naming
from jobs.corpus.readers.rows import UNKNOWN, Classes, RowBatcher, Unit, claim
from jobs.corpus.readers.source import files, is_hidden, stream
from jobs.corpus.readers.tar import Member, members
from jobs.images.headers import EXTENSIONS

Fault = str


@dataclass
class _Sample:
    """The members of one stem that have been read so far."""

    stem: str
    image: Member | None = None
    texts: dict[str, bytes] = field(default_factory=dict)  # extension -> content
    dotted: dict[str, str] = field(default_factory=dict)  # longer stem -> its first member
    extensions: set[str] = field(default_factory=set)  # those that this reader uses
    fault: Fault | None = None


@dataclass(frozen=True)
class WebDataset:
    """Rows keyed by their members' stem, or by tar and stem."""

    spec: WebDatasetReader

    @cached_property
    def _naming(self) -> Naming:
        return Naming(self.spec.classes)

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
        self._naming.refuse_numbers_for_others(f"{self.spec.path}, `classes`")
        return Classes.of(self.spec.classes)

    def units(self) -> Sequence[Unit]:
        """One unit for each tar."""
        return [Unit(name, 0, size) for name, size in self.files()]

    def files(self) -> Iterator[tuple[str, int]]:
        """Every tar file."""
        yield from files(self.spec.path, self.spec.files)

    def label_counts(self) -> None:
        """Unknown: labels are members among the images."""
        return

    def read(self, unit: Unit, notes: Counter[str]) -> Iterator[pa.Table]:
        """The rows of one tar. Raises StageError when a sample's members are not adjacent."""
        rows = RowBatcher(unit.file)
        sample: _Sample | None = None
        seen: dict[str, set[str]] = {}  # stem -> extensions that this reader uses
        with stream(self.spec.path, unit.file) as opened:
            found = members(opened, f"{self.spec.path}, {unit.file}", wanted=self._is_wanted)
            for member in found:
                if member.kind == "folder":
                    continue
                if is_hidden(member.name):
                    notes["hidden_member"] += 1
                    continue
                stem, extension = _split_name(member.name)
                if sample is None or stem != sample.stem:
                    yield from self._finish_sample(rows, unit, sample)
                    sample = _Sample(stem)
                self._add_member(sample, member, extension, notes)
                if extension in sample.extensions:
                    here = seen.setdefault(stem, sample.extensions)
                    if here is not sample.extensions and extension not in here:
                        raise self._not_adjacent(unit, stem)
        yield from self._finish_sample(rows, unit, sample)
        yield from rows.rest()

    def _not_adjacent(self, unit: Unit, stem: str) -> StageError:
        file = unit.file.rpartition("/")[2]
        name, made = shlex.quote(file), shlex.quote(f"sorted-{file}")
        return StageError(
            f"{self.spec.path}, {unit.file}: the members of sample {stem!r} do not follow one "
            f"another; sort the tar: mkdir t && tar -xf {name} -C t && tar --sort=name -caf {made} "
            f"-C t . && mv {made} {name} && rm -r t"
        )

    def _is_wanted(self, name: str) -> bool:
        extension = _split_name(name)[1]
        return extension in EXTENSIONS or extension in self._text_extensions()

    def _text_extensions(self) -> set[str]:
        named = {self.spec.caption, self.spec.label} - {None}
        return {str(name).partition(":")[0] for name in named}

    def _add_member(
        self, sample: _Sample, member: Member, extension: str, notes: Counter[str]
    ) -> None:
        if not self._is_wanted(member.name):
            stem, dot, last = member.name.removeprefix("./").rpartition(".")
            if dot and (last.lower() in EXTENSIONS or last.lower() in self._text_extensions()):
                sample.dotted.setdefault(stem, member.name)
            notes["unused_member"] += 1
            return
        sample.extensions.add(extension)
        if member.fault is not None:
            sample.fault = member.fault
        elif extension in EXTENSIONS:
            sample.fault = "two_images" if sample.image else sample.fault
            sample.image = member
        elif extension in sample.texts:
            sample.fault = "repeated_member"  # which of the two is meant, nobody can say
        else:
            sample.texts[extension] = member.data

    def _finish_sample(
        self, rows: RowBatcher, unit: Unit, sample: _Sample | None
    ) -> Iterator[pa.Table]:
        """Add a complete sample as a row, unless it has no member that this reader uses."""
        if sample is None:
            return
        if not (sample.image or sample.fault or sample.texts):
            for stem, name in sample.dotted.items():
                words = f"{name}: a stem ends at the first dot; rename its members"
                rows.add(stem, None, fault="dotted_stem", detail=words)
            yield from rows.full()
            return
        caption, label, fault = None, None, sample.fault
        detail: str | None = None
        if self.spec.caption is not None:
            value, wrong = _read_field(sample, self.spec.caption)
            fault, detail = fault or (wrong and "broken_json"), wrong
            if isinstance(value, str):
                caption = value.encode("utf-8", "surrogatepass")
            elif isinstance(value, bytes):
                caption = value
            elif value is not None:
                fault = fault or "caption_not_text"
                detail = f"its caption is {_shown(value)}"
        if self.spec.label is not None:
            value, wrong = _read_field(sample, self.spec.label)
            fault, detail = fault or (wrong and "broken_json"), detail or wrong
            label = self._label_number(value)
            if label == UNKNOWN:
                detail = detail or self._naming.why_unknown(_as_text(value))
        key = f"{unit.file}/{sample.stem}" if self.spec.tar_in_key else sample.stem
        rows.add(
            key,
            sample.image.data if sample.image else None,
            label=label,
            caption=caption,
            claims=claim(sample.image.name) if sample.image else None,
            fault=fault,
            detail=detail,
        )
        yield from rows.full()

    def _label_number(self, value: Any) -> int | None:
        """The label of a member's text or of a JSON value; None for no value."""
        value = _as_text(value)
        return None if value is None or value == "" else self._naming.of_value(value)


def _split_name(name: str) -> tuple[str, str]:
    """(stem, extension in lower case), split at the first dot of the file name."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _read_field(sample: _Sample, where: str) -> tuple[Any, str | None]:
    """A sample's value at `txt` (bytes) or `json:field` (a JSON value), or what is wrong."""
    extension, colon, name = where.partition(":")
    data = sample.texts.get(extension)
    if data is None or not colon:
        return data, None
    value, wrong = parse_object(data, [name])
    return (None, wrong) if value is None else (value.get(name), None)


def _as_text(value: Any) -> Any:
    """A member's bytes as text; text without blanks around it; any other value as it is."""
    if isinstance(value, bytes):
        value = value.decode("utf-8-sig", "replace")
    return value.strip() if isinstance(value, str) else value


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."

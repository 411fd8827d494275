"""Audit: derives every changed row again from seed and key, and measures the true rates.

Takes a corpus's folder, its noise and the folder of a level; plans the noise again and compares
row by row. Gives counts of the differences, and rates for each class and overall. Reads the corpus
as the noise stage does; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.corpus.shards import Index, read_part
from jobs.noise.derive import derive
from jobs.noise.labels import Mask
from jobs.noise.overlay import CHANGED, OVERLAY, Overlay, damaged
from jobs.noise.spec import Noise
from jobs.storage.folder import Folder

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClassRate:
    """How many samples of one class are changed."""

    name: str
    rows: int
    changed: int

    @property
    def percent(self) -> float:
        """100 * changed / rows; 0 for an empty class."""
        return 100 * self.changed / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class Audit:
    """One level of noise as measured, and as its folder describes it."""

    overlay: Overlay  # as written
    rederived: int  # rows that should be changed, by seed and keys
    faults: Mapping[str, int]  # how many differences of each kind; see `_compare_rows`
    first_fault: str  # in words; empty without faults
    present: int  # training rows in the shards, hence without the quarantine
    present_changed: int  # rows of these that the level lists
    classes: tuple[ClassRate, ...]  # empty where the corpus has no labels
    transition: Counts | None  # [C, C], rows clean, columns as written; None for captions

    @property
    def sound(self) -> bool:
        """Whether every row and every figure equals the one derived again."""
        return not any(self.faults.values())

    @property
    def nominal_percent(self) -> float:
        """The level that was requested."""
        return self.overlay.level

    @property
    def written_percent(self) -> float:
        """Changed rows in percent of the rows that the level refers to."""
        base = self.overlay.rows if self.overlay.of == "corpus" else self.overlay.eligible
        return 100 * self.overlay.changed / base if base else 0.0

    @property
    def realised_percent(self) -> float:
        """Changed rows in percent of the training rows in the shards."""
        return 100 * self.present_changed / self.present if self.present else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "overlay": asdict(self.overlay),
            "sound": self.sound,
            "nominal_percent": self.nominal_percent,
            "written_percent": self.written_percent,
            "realised_percent": self.realised_percent,
            "rederived": self.rederived,
            "faults": dict(self.faults),
            "first_fault": self.first_fault,
            "present": self.present,
            "present_changed": self.present_changed,
            "classes": [{**asdict(rate), "percent": rate.percent} for rate in self.classes],
            "transition": None if self.transition is None else self.transition.tolist(),
        }


class Auditor:
    """Audits the levels of a noise over a corpus."""

    def __init__(self, noise: Noise, corpus: Folder) -> None:
        """Plan the noise again. Raises StageError when it does not fit this corpus."""
        self._plan = derive(noise, corpus)
        self._names = Index.read(corpus).classes
        rows = read_part(corpus, "train", ["key", "label"])
        labelled = bool(self._names) and rows["label"].null_count == 0
        self._labels = rows["label"].to_numpy() if labelled else None
        self._rows = len(rows)

    def audit(self, folder: Folder, level: float | None = None) -> Audit:
        """Compare a noise step's folder with a level; None: the level that the folder states.

        Raises StageError when a file is missing or damaged, or when the level cannot be derived.
        """
        try:
            overlay, data = Overlay.read(folder), folder.read_bytes(CHANGED)
        except FileNotFoundError:
            missing = CHANGED if folder.exists(OVERLAY) else OVERLAY
            raise damaged(folder, missing, "it is missing") from None
        level = overlay.level if level is None else level
        expected = self._plan.levels.changed(level)
        described = self._plan.overlay(level, expected)
        written = _read_changed(folder, data, expected.schema)
        faults, first = _compare_rows(written, expected, self._rows)
        wrong = [
            name for name, value in asdict(described).items() if value != _value_of(overlay, name)
        ]
        if wrong and not first:
            first = (
                f"overlay.json says {wrong[0]} = {_value_of(overlay, wrong[0])!r}, "
                f"not {_value_of(described, wrong[0])!r}"
            )
        row = written["row"]
        inside = written.filter(pc.and_(pc.greater_equal(row, 0), pc.less(row, self._rows)))
        changed = np.zeros(self._rows, np.bool_)
        changed[inside["row"].to_numpy()] = True
        classes, transition = self._rates_by_class(inside, changed)
        return Audit(
            overlay=overlay,
            rederived=len(expected),
            faults={**faults, "misdescribed": len(wrong)},
            first_fault=first,
            present=self._rows,
            present_changed=int(changed.sum()),
            classes=classes,
            transition=transition,
        )

    def _rates_by_class(
        self, written: pa.Table, changed: Mask
    ) -> tuple[tuple[ClassRate, ...], Counts | None]:
        if self._labels is None:
            return (), None
        size = len(self._names)
        rows = np.bincount(self._labels, minlength=size)
        hit = np.bincount(self._labels[changed], minlength=size)
        rates = tuple(
            ClassRate(name, int(n), int(k))
            for name, n, k in zip(self._names, rows, hit, strict=True)
        )
        if self._plan.noise.replaces != "label":
            return rates, None
        noisy = self._labels.copy()
        # A label outside the classes is counted as a fault elsewhere; here it is only clipped.
        noisy[written["row"].to_numpy()] = written["noisy"].fill_null(-1).to_numpy()
        pairs = self._labels.astype(np.int64) * size + np.clip(noisy, 0, size - 1)
        return rates, np.bincount(pairs, minlength=size * size).reshape(size, size)


def _value_of(overlay: Overlay, name: str) -> object:
    return getattr(overlay, name)


def _read_changed(folder: Folder, data: bytes, wanted: pa.Schema) -> pa.Table:
    """The table of changed rows; StageError unless it has the columns and types of `wanted`."""
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read()
        table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        raise damaged(folder, CHANGED, " ".join(str(error).split())[:120]) from None
    for field in wanted:
        if table.column_names.count(field.name) != 1:
            raise damaged(folder, CHANGED, f"it does not have exactly one column {field.name!r}")
        found = table.schema.field(field.name).type
        if found != field.type and {found, field.type} != {pa.string(), pa.large_string()}:
            raise damaged(folder, CHANGED, f"column {field.name!r} holds {found}")
    if table["row"].null_count:
        raise damaged(folder, CHANGED, "a row has no number")
    return table


def _compare_rows(written: pa.Table, expected: pa.Table, rows: int) -> tuple[dict[str, int], str]:
    """The number of faulty rows of each kind, and the first fault in words.

    missing: should be changed but is not listed. unexpected: is listed but should not be.
    altered: has another key, clean or noisy value. out_of_order: its number does not rise.
    """
    theirs, ours = written["row"].to_numpy(), expected["row"].to_numpy()
    unsorted = int((np.diff(theirs) <= 0).sum())
    theirs, first_of = np.unique(theirs, return_index=True)
    both, in_theirs, in_ours = np.intersect1d(theirs, ours, True, return_indices=True)
    found, wanted = written.take(pa.array(first_of[in_theirs])), expected.take(pa.array(in_ours))
    altered = np.zeros(len(both), np.bool_)
    for name in ("key", "clean", "noisy"):
        same = pc.equal(found[name], wanted[name].cast(found[name].type)).fill_null(False)
        altered |= ~same.to_numpy()
    missing, unexpected = np.setdiff1d(ours, both), np.setdiff1d(theirs, both)
    faults = {
        "missing": len(missing),
        "unexpected": len(unexpected),
        "altered": int(altered.sum()),
        "out_of_order": unsorted,
    }
    words = ""
    if len(missing):
        key = expected["key"][int(np.searchsorted(ours, missing[0]))].as_py()
        words = f"row {missing[0]} (key {key!r}) should be changed and is not listed"
    elif len(unexpected):
        where = f"row {unexpected[0]}" + (" (beyond the corpus)" * bool(unexpected[0] >= rows))
        words = f"{where} is listed and should not be changed"
    elif altered.any():
        at = int(np.argmax(altered))
        is_, should = found.slice(at, 1).to_pylist()[0], wanted.slice(at, 1).to_pylist()[0]
        name = next(n for n in ("key", "clean", "noisy") if is_[n] != should[n])
        words = f"row {both[at]} has {name} {is_[name]!r}, not {should[name]!r}"
    elif unsorted:
        words = "the row numbers do not rise"
    return faults, words

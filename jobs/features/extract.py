"""Extraction: turn rows of a corpus into rows of features with a frozen encoder.

Takes a unit of work (some rows of one shard), an encoder and its step; gives the plain features
and, for training rows, those of each view. Several encoders can be fed from one decoding. The
corpus, the encoder and the batch size alone fix a unit's rows and batches, so features are the same
bytes on any worker, in any order of units, beside any other encoder.
`parts.py` stores and concatenates the units. Nothing here imports Ray, trains, reads labels or
knows what kind of input the encoder has.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from jobs.contract import StageError
from jobs.corpus.shards import read_rows
from jobs.corpus.units import Unit
from jobs.encoders.encoder import Encoder
from jobs.encoders.interface import Batch
from jobs.features.identity import identity
from jobs.features.spec import FeaturesStep
from jobs.features.unit_table import BATCH, COUNTS, IDENTITY, ROWS, view_table
from jobs.storage.folder import Folder


@dataclass(frozen=True)
class Member:
    """One of the encoders that are fed from one decoding, with its step."""

    encoder: Encoder
    step: FeaturesStep


def extract(
    unit: Unit, corpus: Folder, scope: str, encoder: Encoder, step: FeaturesStep
) -> pa.Table:
    """A unit's features, sorted by (view, row); `scope` is the corpus's name.

    Rows are prepared once for all views. Test rows stay float32, whatever the step's dtype: their
    spectrum is computed before they are stored in it. The table's metadata names what the features
    were made with (`identity`), the batch size, the rows and, where there are any, the counts of
    what befell them (`interface.Batch`). Raises StageError for a row that cannot be read and for
    features that are not finite in the step's dtype.
    """
    (found,) = extract_each(unit, corpus, scope, [Member(encoder, step)])
    if isinstance(found, Exception):
        raise found
    return found


def extract_each(
    unit: Unit, corpus: Folder, scope: str, members: Sequence[Member]
) -> list[pa.Table | Exception]:
    """What `extract` gives or raises for each member, with every row read and prepared once.

    Members are on one device and prepare rows alike (`EncoderCard.preparation`), with equal shifts.
    Each one has its own batches, so its features are the same bytes as alone. Raises an error that
    all members share, and OutOfMemoryError of one of several.
    """
    first, step = members[0].encoder, members[0].step
    columns = ["key", *first.columns, "label"]
    rows = read_rows(corpus, unit.file, unit.start, unit.stop, columns)
    running: dict[int, _Extraction] = {}
    results: dict[int, pa.Table | Exception] = {}

    @contextmanager
    def of(number: int) -> Iterator[None]:
        """An error inside is the member's result."""
        try:
            yield
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError) and len(members) > 1:
                raise
            results[number] = error
            running.pop(number, None)

    for number, member in enumerate(members):
        with of(number):
            running[number] = _Extraction(unit, rows, scope, member)
    if running:
        size = math.lcm(*(each.size for each in running.values()))  # whole batches of every member
        for batch in first.batches(rows, size, step.shift, step.cpus_per_worker):
            there = replace(batch, inputs=batch.inputs.to(first.device))
            for number, each in list(running.items()):
                with of(number):
                    each.add(there)
    for number, each in list(running.items()):
        with of(number):
            results[number] = each.table()
    return [results[number] for number in range(len(members))]


class _Extraction:
    """A member's features of a unit, while its batches come."""

    def __init__(self, unit: Unit, rows: pa.Table, scope: str, member: Member) -> None:
        self._unit, self._rows, self._scope = unit, rows, scope
        self._encoder, self._step = member.encoder, member.step
        self._keys = rows["key"].combine_chunks()
        self.size = self._encoder.batch_size(self._step.batch_size, self._step.precision)
        self._views = range(self._step.views.count + 1 if unit.part == "train" else 1)
        kept = np.float32 if unit.part == "test" else np.dtype(self._step.dtype)
        self._found = [np.empty((len(rows), self._encoder.dim), kept) for _ in self._views]
        self._learned: dict[int, npt.NDArray[np.int32]] = {}  # by view, where inputs have targets
        self._counts: Counter[str] = Counter()

    def add(self, batch: Batch) -> None:
        """Compute the features of a batch, in pieces of the member's own batch size."""
        for piece in batch.pieces(self.size):
            self._add_piece(piece)

    def _add_piece(self, batch: Batch) -> None:
        self._counts.update(batch.counts)
        encoder, step = self._encoder, self._step
        named, inputs = self._keys.take(pa.array(batch.rows)), batch.inputs
        for view in self._views:
            seen = encoder.views(inputs, named, step.views, [view], self._scope) if view else inputs
            features = encoder.features(seen, step.precision).numpy()
            with np.errstate(over="ignore"):  # beyond float16: infinite, refused below
                stored = features.astype(step.dtype)
            if self._unit.part == "test":
                stored = np.where(np.isfinite(stored), features, np.inf)
            self._found[view][batch.rows] = stored
            if (targets := encoder.targets(seen)) is not None:
                shape = len(self._rows), targets.shape[1]
                learned = self._learned.setdefault(view, np.empty(shape, np.int32))
                learned[batch.rows] = targets

    def table(self) -> pa.Table:
        """The features, by `schema`; raises StageError when one is not finite."""
        labels = self._rows["label"].combine_chunks()
        tables = [
            _checked_table(
                self._unit,
                self._keys,
                _lists(self._learned[view]) if self._learned else labels,
                view,
                self._found[view],
                self._step,
            )
            for view in self._views
        ]
        made_with = identity(self._step, self._encoder.card, self._encoder.device.type)
        metadata = {IDENTITY: made_with, BATCH: str(self.size), ROWS: self._unit.rows}
        if self._counts:
            metadata[COUNTS] = json.dumps(self._counts, sort_keys=True)
        return pa.concat_tables(tables).replace_schema_metadata(metadata)


def _lists(values: npt.NDArray[np.int32]) -> pa.Array:
    """The rows of a matrix as a column of lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _checked_table(
    unit: Unit,
    keys: pa.Array,
    labels: pa.Array,
    view: int,
    found: npt.NDArray[Any],
    step: FeaturesStep,
) -> pa.Table:
    """A view's features by `schema`. Raises StageError when one is not finite."""
    finite = np.isfinite(found).all(axis=1)
    if not finite.all():
        advice = "ask for float32, or " if "float16" in (step.dtype, step.precision) else ""
        raise StageError(
            f"the encoder's features are not finite for {int((~finite).sum())} samples of "
            f"{unit.file} (the first: {keys[int(np.argmin(finite))]}, view {view}, "
            f"{step.dtype}); {advice}give it other weights"
        )
    return view_table(keys, labels, view, found)

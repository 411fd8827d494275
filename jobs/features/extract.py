"""Extraction: turn rows of a corpus into rows of features with a frozen encoder.

Takes a unit of work (some rows of one shard), the encoder and the step; gives the plain features
and, for training rows, those of each view. The corpus, the encoder and the batch size alone fix a
unit's rows and batches, so features are the same bytes on any worker and in any order of units.
`parts.py` stores and concatenates the units. Nothing here imports Ray, trains, reads labels or
knows what kind of input the encoder has.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.contract import StageError
from jobs.corpus.shards import read_rows
from jobs.corpus.units import Unit
from jobs.encoders.encoder import Encoder
from jobs.features.identity import identity
from jobs.features.spec import FeaturesStep
from jobs.storage.folder import Folder

INDEX = pa.int32()  # the type of a label that is a class
# In the metadata of a unit's table.
IDENTITY, BATCH, ROWS, COUNTS = "made_with", "batch_size", "rows", "counts"


def schema(dtype: str, dim: int, label: pa.DataType = INDEX) -> pa.Schema:
    """The schema of `features-<part>.parquet`; rows are sorted by (view, key)."""
    kind = pa.float16() if dtype == "float16" else pa.float32()
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("view", pa.int16(), nullable=False),  # 0: plain; 1..V: augmented, train only
            pa.field("label", label),  # of the corpus
            pa.field("vector", pa.list_(pa.field("element", kind), dim), nullable=False),
        ]
    )


def view_table(keys: pa.Array, labels: pa.Array, view: int, vectors: npt.NDArray[Any]) -> pa.Table:
    """A view's rows by `schema`: keys and labels [N], vectors [N, D] in the stored type."""
    form = schema(str(vectors.dtype), vectors.shape[1], labels.type)
    kind = form.field("vector").type
    flat = pa.array(vectors.reshape(-1), type=kind.value_type)
    columns = [
        keys,
        np.full(len(keys), view, np.int16),
        labels,
        pa.FixedSizeListArray.from_arrays(flat, type=kind),
    ]
    return pa.table(columns, schema=form)


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
    rows = read_rows(corpus, unit.file, unit.start, unit.stop, ["key", *encoder.columns, "label"])
    keys = rows["key"].combine_chunks()
    size = encoder.batch_size(step.batch_size, step.precision)
    views = range(step.views.count + 1 if unit.part == "train" else 1)
    kept = np.float32 if unit.part == "test" else np.dtype(step.dtype)
    found = [np.empty((len(rows), encoder.dim), kept) for _ in views]
    learned: dict[int, npt.NDArray[np.int32]] = {}  # by view, where labels are made with the inputs
    counts: Counter[str] = Counter()
    for batch in encoder.batches(rows, size, step.shift, step.cpus_per_worker):
        counts.update(batch.counts)
        named, inputs = keys.take(pa.array(batch.rows)), batch.inputs.to(encoder.device)
        for view in views:
            seen = encoder.views(inputs, named, step.views, [view], scope) if view else inputs
            features = encoder.features(seen, step.precision).numpy()
            with np.errstate(over="ignore"):  # beyond float16: infinite, refused below
                stored = features.astype(step.dtype)
            if unit.part == "test":
                stored = np.where(np.isfinite(stored), features, np.inf)
            found[view][batch.rows] = stored
            if (targets := encoder.targets(seen)) is not None:
                shape = len(rows), targets.shape[1]
                learned.setdefault(view, np.empty(shape, np.int32))[batch.rows] = targets
    given = rows["label"].combine_chunks()
    tables = [
        _checked_table(
            unit, keys, _lists(learned[view]) if learned else given, view, found[view], step
        )
        for view in views
    ]
    made_with = identity(step, encoder.card, encoder.device.type)
    metadata = {IDENTITY: made_with, BATCH: str(size), ROWS: unit.rows}
    if counts:
        metadata[COUNTS] = json.dumps(counts, sort_keys=True)
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

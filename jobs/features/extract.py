"""Extraction: turn rows of a corpus into rows of features with a frozen encoder.

Takes a unit of work (some rows of one shard), the encoder and the step; gives the plain features
and, for training rows, those of each augmented view. The corpus and the batch size alone fix a
unit's rows and batches, so features are the same bytes on any worker and in any order of units.
`parts.py` stores and concatenates the units. Nothing here imports Ray, trains, or reads labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from jobs.contract import StageError
from jobs.corpus.shards import read_rows
from jobs.corpus.units import Unit
from jobs.encoders.encoder import Encoder
from jobs.features.identity import identity, rows_at_once
from jobs.features.spec import FeaturesStep
from jobs.images.shifts import draws
from jobs.images.views import augmented
from jobs.storage.folder import Folder

INDEX = pa.int32()  # the type of a label that is a class
IDENTITY, BATCH, ROWS = "made_with", "batch_size", "rows"  # in the metadata of a unit's table


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

    Images are decoded once for all views, one batch ahead of the encoder. Test rows stay float32,
    whatever the step's dtype: their spectrum is computed before they are stored in it. The table's
    metadata names what the features were made with (`identity`), the batch size and the rows.
    Raises StageError for an image that cannot be decoded and for features that are not finite in
    the step's dtype.
    """
    rows = read_rows(corpus, unit.file, unit.start, unit.stop, ["key", "image", "label"])
    keys = rows["key"].combine_chunks()
    size = rows_at_once(step.batch_size, encoder, step.precision)
    views = range(step.views.count + 1 if unit.part == "train" else 1)
    found: list[list[npt.NDArray[Any]]] = [[] for _ in views]
    for start, images in _batches_ahead(rows, size, encoder, step):
        named, images = keys[start : start + size], images.to(encoder.device)
        for view in views:
            seen = augmented(images, named, step.views, view, scope) if view else images
            features = encoder.features(seen, step.precision).numpy()
            with np.errstate(over="ignore"):  # beyond float16: infinite, refused below
                stored = features.astype(step.dtype)
            if unit.part == "test":
                stored = np.where(np.isfinite(stored), features, np.inf)
            found[view].append(stored)
    tables = [_checked_table(unit, rows, view, np.concatenate(found[view]), step) for view in views]
    made_with = identity(step, encoder.card, encoder.device.type)
    metadata = {IDENTITY: made_with, BATCH: str(size), ROWS: unit.rows}
    return pa.concat_tables(tables).replace_schema_metadata(metadata)


def _checked_table(
    unit: Unit, rows: pa.Table, view: int, found: npt.NDArray[Any], step: FeaturesStep
) -> pa.Table:
    """A view's features by `schema`. Raises StageError when one is not finite."""
    keys = rows["key"].combine_chunks()
    finite = np.isfinite(found).all(axis=1)
    if not finite.all():
        advice = "ask for float32, or " if "float16" in (step.dtype, step.precision) else ""
        raise StageError(
            f"the encoder's features are not finite for {int((~finite).sum())} samples of "
            f"{unit.file} (the first: {keys[int(np.argmin(finite))]}, view {view}, "
            f"{step.dtype}); {advice}give it other weights"
        )
    label = rows["label"].combine_chunks()
    return view_table(keys, label, view, found)


def _batches_ahead(
    rows: pa.Table, size: int, encoder: Encoder, step: FeaturesStep
) -> Iterator[tuple[int, torch.Tensor]]:
    """(first row, rows uint8 [M, *input.shape]) by batch, one batch ahead of the encoder."""
    starts = range(0, len(rows), size)
    with ThreadPoolExecutor(step.cpus_per_worker) as pool:

        def submit(start: int) -> list[Future[torch.Tensor]]:
            batch = rows.slice(start, size)
            share = -(-len(batch) // step.cpus_per_worker)
            return [
                pool.submit(_prepare_rows, batch.slice(at, share), encoder, step)
                for at in range(0, len(batch), share)
            ]

        ahead = submit(0)
        for start in starts:
            ready = ahead
            ahead = submit(start + size) if start + size < len(rows) else []
            yield start, torch.cat([piece.result() for piece in ready])


def _prepare_rows(rows: pa.Table, encoder: Encoder, step: FeaturesStep) -> torch.Tensor:
    """The rows as the encoder's input, uint8 [N, *input.shape], with the step's shift.

    numpy stacks them. With torch, each of these threads would start OpenMP threads of its own; once
    there are more of those than cores, OpenMP puts the encoder's threads to sleep between layers.
    """
    drawn = [None] * len(rows) if step.shift is None else draws(rows["key"], step.shift)

    def prepared(data: pa.Scalar, key: str, draw: np.uint64 | None) -> npt.NDArray[np.uint8]:
        found: npt.NDArray[np.uint8]
        found = encoder.prepare(data.as_py(), f"sample {key}", step.shift, draw).numpy()
        return found

    # One at a time: a decoded source image may take hundreds of times the memory of its input.
    each = zip(rows["image"], rows["key"].to_pylist(), drawn, strict=True)
    return torch.from_numpy(np.stack([prepared(*one) for one in each]))

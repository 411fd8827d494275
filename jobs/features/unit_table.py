"""The form of a unit's features: one table, whose metadata says what it was made with.

Takes keys, labels and vectors of a view; gives its rows. All that makes, imports or joins features
writes them in this form.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

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

"""Small feature folders with known structure, written as the features stage writes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from jobs.corpus.reader_spec import DigitsReader
from jobs.corpus.spec import Corpus
from jobs.tasks.spec import Task
from jobs.tuning.methods import Method
from jobs.tuning.search_space import Space
from jobs.tuning.spec import TuneStep, TuningSettings

CLASSES = ("zero", "one", "two", "three")
DIM = 12
SIZES = {"train": 90, "validation": 60, "test": 70}


def part_table(
    part: str, views: Sequence[int], *, shuffle: int | None = None, noise: float = 1.0
) -> pa.Table:
    """Rows around one centre for each class; the views of a sample differ slightly."""
    generator = np.random.default_rng(len(part))
    centres = np.random.default_rng(99).normal(size=(len(CLASSES), DIM)) * 1.5
    rows = SIZES[part]
    labels = np.arange(rows) % len(CLASSES)
    plain = centres[labels] + noise * generator.normal(size=(rows, DIM))
    blocks = []
    for view in views:
        vectors = plain + (0.2 * generator.normal(size=plain.shape) if view else 0)
        flat = pa.array(vectors.astype(np.float32).ravel())
        blocks.append(
            pa.table(
                {
                    "key": [f"{part}-{row:04d}" for row in range(rows)],
                    "view": pa.array([view] * rows, pa.int16()),
                    "label": pa.array(labels, pa.int32()),
                    "vector": pa.FixedSizeListArray.from_arrays(flat, DIM),
                }
            )
        )
    table = pa.concat_tables(blocks)
    if shuffle is not None:
        table = table.take(np.random.default_rng(shuffle).permutation(table.num_rows))
    return table


def corpus() -> Corpus:
    return Corpus(name="blobs", reader=DigitsReader())


def id_task(**changes: object) -> Task:
    fields = {"name": "blobs-id", "title": "Blobs", "domain": "id", "corpus": corpus()}
    return Task.model_validate(fields | changes)


def ood_task(**changes: object) -> Task:
    fields = {"name": "blobs-ood", "title": "Shifted blobs", "domain": "ood", "corpus": corpus()}
    return Task.model_validate(fields | {"trained_on": "blobs-id"} | changes)


NMTUNE = Method(
    head="paper",
    space=Space.model_validate(
        {"lr": {"loguniform": [1e-3, 1e-2]}, "mse": 1, "cov": 1, "svd": 1, "scale": 0.01}
    ),
)


def step(**changes: object) -> TuneStep:
    fields: dict[str, object] = {
        "task": id_task(),
        "method_name": "nmtune",
        "method": NMTUNE,
        "fraction": 100.0,
        "seed": 0,
    }
    settings: dict[str, object] = {"configurations": 3, "epochs": 3, "batch_size": 32}
    return nested(fields, settings, changes)


def nested(
    fields: dict[str, object], settings: dict[str, object], changes: dict[str, object]
) -> TuneStep:
    """A step with changes to its fields and its settings."""
    inner = {name: changes.pop(name) for name in [*changes] if name in TuningSettings.model_fields}
    return TuneStep.model_validate({**fields, **changes, "settings": {**settings, **inner}})

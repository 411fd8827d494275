"""Compares a task's test part with the samples that its cells are trained on.

Takes an `OverlapStep` and the hashes that it reads; writes `overlap.parquet`, one row (SCHEMA) for
each test sample and each set in which it has a copy. Fails above the step's limit. `dropped` reads
the keys back, for cells that leave these rows out. Nothing here decodes an image or imports Ray.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.contract import Outcome, StageError, Work
from jobs.overlap.hashes import SCHEMA as HASHES
from jobs.overlap.hashes import images_of, read_classes, read_pieces
from jobs.overlap.match import Finder
from jobs.overlap.spec import OverlapStep
from jobs.storage.folder import Folder
from jobs.tasks.spec import Classes

FILE = "overlap.parquet"
EXAMPLES = 3  # keys in the sentence of a refused task

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # of the test sample
        pa.field("against", pa.string(), nullable=False),  # pretraining, training
        pa.field("kind", pa.string(), nullable=False),  # exact: equal pixels; near: changed copy
        pa.field("copy", pa.string(), nullable=False),  # the key of its first copy there
    ]
)

PARTS = {"pretraining": ("train",), "training": ("train", "validation")}
"""The parts of each set that are trained, or selected, on."""


def compare(work: Work) -> Outcome:
    """Write the step's table.

    Counts: test_images, test_undecodable (not compared), overlap (test samples with a copy) and, of
    each set, overlap_<set>, exact_<set>, near_<set>. Metric: overlap/percent, of the test samples.
    Raises StageError above the step's limit.
    """
    step = cast(OverlapStep, work.spec)
    test = pa.concat_tables(
        [HASHES.empty_table(), *_rows(work.inputs["test"], "test", step.classes)]
    )
    whole = test.filter(pc.is_valid(test["digest"]))
    counts = {"test_images": len(test), "test_undecodable": len(test) - len(whole)}
    found = []
    for against in PARTS:
        if against in work.inputs:
            classes = step.head_classes if against == "training" else None
            table = _copies(whole, work.inputs[against], against, classes)
            for kind in ("exact", "near"):
                counts[f"{kind}_{against}"] = pc.sum(pc.equal(table["kind"], kind)).as_py() or 0
            counts[f"overlap_{against}"] = len(table)
            found.append(table)
    copies = pa.concat_tables(found)
    overlap = len(copies["key"].unique())
    percent = 100 * overlap / max(1, len(test))
    if percent > step.limit:
        raise StageError(_refusal(step, copies, counts, overlap, percent))
    work.output.write_table(FILE, copies)
    return Outcome({**counts, "overlap": overlap}, {"overlap/percent": percent})


def dropped(folder: Folder) -> pa.Array:
    """The keys of a finished step's test samples that have a copy, sorted."""
    keys = folder.read_table(FILE, ["key"])["key"].unique()
    return keys.take(pc.sort_indices(keys))


def _rows(hashes: Folder, part: str, classes: Classes | None) -> Iterator[pa.Table]:
    """A part's rows whose label belongs to one of the classes, piece by piece."""
    labels = None
    if classes is not None:
        members = {member for named in classes.values() for member in named}
        names = read_classes(hashes)
        own = [at for at, name in enumerate(names) if at in members or name in members]
        labels = pa.array(own, pa.int32())
    for piece in read_pieces(hashes, part):
        yield piece if labels is None else piece.filter(pc.is_in(piece["label"], labels))


def _copies(test: pa.Table, hashes: Folder, against: str, classes: Classes | None) -> pa.Table:
    """The test samples that have a copy in one set, by SCHEMA."""
    finder = Finder(images_of(test))
    keys: list[pa.ChunkedArray] = []
    for part in PARTS[against]:
        for piece in _rows(hashes, part, classes):
            whole = piece.filter(pc.is_valid(piece["digest"]))
            finder.add(images_of(whole))
            keys.append(whole["key"])
    copy = np.where(finder.exact >= 0, finder.exact, finder.near)
    mine = np.flatnonzero(copy >= 0)
    others = pa.chunked_array([chunk for column in keys for chunk in column.chunks], pa.string())
    columns = [
        test["key"].take(pa.array(mine)),
        pa.array([against] * len(mine), pa.string()),
        pa.array(np.where(finder.exact[mine] >= 0, "exact", "near"), pa.string()),
        others.take(pa.array(copy[mine])),
    ]
    return pa.table(columns, schema=SCHEMA)


def _refusal(
    step: OverlapStep, copies: pa.Table, counts: dict[str, int], overlap: int, percent: float
) -> str:
    """One sentence on a task whose test samples are trained on."""
    where = {
        "pretraining": "the pre-training samples",
        "training": f"the training rows of {step.head}",
    }
    sets = [
        f"{counts[f'overlap_{name}']:,} in {where[name]}"
        for name in PARTS
        if counts.get(f"overlap_{name}")
    ]
    keys = copies["key"].unique().to_pylist()[:EXAMPLES]
    return (
        f"task {step.task}: {overlap:,} of {counts['test_images']:,} test samples "
        f"({percent:.3g} %) are trained on: {' and '.join(sets)} (keys: {', '.join(keys)}); take "
        f"the task out, correct its reader, or set overlap: drop (test without these samples) or "
        f"overlap: allow (only count them)"
    )

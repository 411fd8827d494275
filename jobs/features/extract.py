"""Extraction: rows of a corpus, through a frozen encoder, as rows of features.

Takes a unit of work (some rows of one shard), the encoder and what the step asks for; gives the
plain features and, for training rows, those of each augmented view. A unit's rows and batches are
fixed by the corpus and the batch size alone, so that features are the same bytes wherever and in
whatever order units are done. Nothing here imports Ray, trains, or looks at labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from analysis.spectrum import Spectrum, spectra, to_table
from jobs.contract import Outcome, StageError
from jobs.corpus.shards import Index, read_rows
from jobs.features.identity import identity, images_at_once
from jobs.features.shifts import decode, draws, shifted
from jobs.features.spec import FeaturesStep
from jobs.features.views import augmented
from jobs.place import Place
from jobs.pretrain.encoder import Encoder

UNIT_ROWS = 2_048  # rows in a unit: a worthwhile task, and little to redo after an interruption
SPECTRUM_ROWS = 4_096  # rows handed to the spectrum at a time

MADE_WITH = "extraction.json"
IDENTITY, BATCH = "made_with", "batch_size"  # in the metadata of a unit's file


@dataclass(frozen=True)
class Unit:
    """Rows [start, stop) of one shard."""

    part: str
    file: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The file that holds the unit's features until the step is finished."""
        return f"{self.file.removesuffix('.parquet')}-{self.start:09d}.parquet"


def schema(dtype: str, dim: int, target: Literal["class", "number"] = "class") -> pa.Schema:
    """The schema of `features-<part>.parquet`; rows lie in the order of (view, key)."""
    label = pa.int32() if target == "class" else pa.float64()
    kind = pa.float16() if dtype == "float16" else pa.float32()
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("view", pa.int16(), nullable=False),  # 0: plain; 1..V: augmented, train only
            pa.field("label", label),  # the corpus's own
            pa.field("vector", pa.list_(pa.field("element", kind), dim), nullable=False),
        ]
    )


def units_of(index: Index, parts: Sequence[str]) -> list[Unit]:
    """The units that together are these parts of a corpus, in training order."""
    return [
        Unit(part, file.file, start, min(start + UNIT_ROWS, file.rows))
        for part in parts
        for file in index.parts[part]
        for start in range(0, file.rows, UNIT_ROWS)
    ]


def extract(
    unit: Unit, corpus: Place, scope: str, encoder: Encoder, step: FeaturesStep
) -> pa.Table:
    """A unit's features in the order of (view, row); `scope` is the corpus's name.

    Images are decoded once for all their views, and the next batch's while the encoder has this
    one's. The table's metadata says what the features were made with (`identity`).
    Raises StageError for an image that cannot be decoded and for features that are not finite.
    """
    rows = read_rows(corpus, unit.file, unit.start, unit.stop, ["key", "image", "label"])
    keys = rows["key"].combine_chunks()
    size = images_at_once(step.batch_size, encoder, step.precision)
    views = range(step.views.count + 1 if unit.part == "train" else 1)
    found: list[list[npt.NDArray[Any]]] = [[] for _ in views]
    for start, images in _decoded(rows, size, encoder, step):
        named = keys[start : start + size]
        for view in views:
            seen = augmented(images, named, step.views, view, scope) if view else images
            features = encoder.features(seen, step.precision).numpy()
            with np.errstate(over="ignore"):  # beyond float16: infinite, and refused as such
                found[view].append(features.astype(step.dtype))
    tables = [_table(unit, rows, view, np.concatenate(found[view]), step) for view in views]
    said = {IDENTITY: identity(step, encoder.card, encoder.device.type), BATCH: str(size)}
    return pa.concat_tables(tables).replace_schema_metadata(said)


def _table(
    unit: Unit, rows: pa.Table, view: int, found: npt.NDArray[Any], step: FeaturesStep
) -> pa.Table:
    """A view's features by `schema`. Raises StageError when some are not finite."""
    keys = rows["key"].combine_chunks()
    finite = np.isfinite(found).all(axis=1)
    if not finite.all():
        raise StageError(
            f"the encoder's features are not finite for {int((~finite).sum())} samples of "
            f"{unit.file} (the first: {keys[int(np.argmin(finite))]}, view {view}, "
            f"{step.dtype}); train it anew or ask for float32"
        )
    form = schema(step.dtype, found.shape[1])
    flat = pa.array(found.reshape(-1), type=form.field("vector").type.value_type)
    vectors = pa.FixedSizeListArray.from_arrays(flat, type=form.field("vector").type)
    numbers = np.full(len(keys), view, np.int16)
    columns = [keys, numbers, rows["label"].combine_chunks(), vectors]
    return pa.table(columns, schema=form)


def _decoded(
    rows: pa.Table, size: int, encoder: Encoder, step: FeaturesStep
) -> Iterator[tuple[int, torch.Tensor]]:
    """(first row, pixels uint8 [M, C, S, S]) batch by batch, one batch ahead of the reader."""
    starts = range(0, len(rows), size)
    with ThreadPoolExecutor(step.cpus_per_worker) as pool:

        def submit(start: int) -> list[Future[torch.Tensor]]:
            batch = rows.slice(start, size)
            share = -(-len(batch) // step.cpus_per_worker)
            return [
                pool.submit(_pixels, batch.slice(at, share), encoder, step)
                for at in range(0, len(batch), share)
            ]

        ahead = submit(0)
        for start in starts:
            ready = ahead
            ahead = submit(start + size) if start + size < len(rows) else []
            yield start, torch.cat([piece.result() for piece in ready])


def _pixels(rows: pa.Table, encoder: Encoder, step: FeaturesStep) -> torch.Tensor:
    """The rows' images, decoded, shifted at the source's resolution, resized: uint8 [N,C,H,W].

    Put together by numpy: a thread beside the encoder in which torch splits its work gets helpers
    of its own, and where those are more than the cores OpenMP puts the encoder's to sleep between
    its layers.
    """
    keys = rows["key"].to_pylist()
    images = [decode(data.as_py(), key) for data, key in zip(rows["image"], keys, strict=True)]
    if step.shift is not None:
        drawn = draws(rows["key"], step.shift)
        images = [shifted(i, step.shift, d) for i, d in zip(images, drawn, strict=True)]
    return torch.from_numpy(np.stack([encoder.prepare(image).numpy() for image in images]))


def kept(scratch: Place, unit: Unit, made_with: str) -> bool:
    """Whether scratch holds the unit's features, made with just that (see `identity`).

    Those of other weights or another library are extracted again: a step never mixes two.
    """
    if not scratch.exists(unit.name):
        return False
    filesystem, path = scratch.open()
    with filesystem.open_input_file(f"{path}/{unit.name}") as source:
        said = pq.read_schema(source).metadata or {}
    return bool(said.get(IDENTITY.encode()) == made_with.encode())


def finish(
    step: FeaturesStep, index: Index, units: Sequence[Unit], scratch: Place, output: Place
) -> Outcome:
    """Join the units into `features-<part>.parquet`, sorted by (view, key), with the spectrum.

    Also writes `classes.json` (names in label order), `extraction.json` (what the features were
    made with: weights, input, views, arithmetic, library versions) and, where there is a test part,
    `spectrum.parquet` of its plain features. Metrics: features/sve, features/lsvr and
    features/effective_rank after preprocessing `released`, the others under their own names.
    """
    counts: dict[str, int] = {}
    metrics: dict[str, float] = {}
    made_with: set[tuple[bytes, bytes]] = set()
    for part in step.parts:
        tables = [scratch.read_table(unit.name) for unit in units if unit.part == part]
        made_with |= {
            (t.schema.metadata[IDENTITY.encode()], t.schema.metadata[BATCH.encode()])
            for t in tables
        }
        plain = [table.replace_schema_metadata(None) for table in tables]
        written = write_part(output, part, pa.concat_tables(plain))
        counts |= written.counts
        metrics |= written.metrics
    output.write_json("classes.json", list(index.classes))
    output.write_json(MADE_WITH, _made_with(made_with, scratch))
    return Outcome(counts, metrics)


def _made_with(found: set[tuple[bytes, bytes]], scratch: Place) -> dict[str, Any]:
    """What all units say they were made with, and the batches they were made in."""
    (said, *others) = {identity for identity, _ in found}
    if others:
        raise StageError(
            f"{scratch.uri} holds features made with {len(found)} different encoders or library "
            f"versions; use one version on all nodes and run the step again"
        )
    return {**json.loads(said), "batch_sizes": sorted({int(size) for _, size in found})}


def write_part(output: Place, part: str, rows: pa.Table) -> Outcome:
    """Write a part's rows (of `schema`, in any order), with their spectrum if it is the test part.

    Counts and metrics are as in `finish`.
    """
    table = rows.sort_by([("view", "ascending"), ("key", "ascending")])
    output.write_table(
        f"features-{part}.parquet",
        table.combine_chunks(),
        compression="NONE",
        use_dictionary=["view", "label"],
    )
    counts = {f"rows_{part}": len(table), "dim": table.schema.field("vector").type.list_size}
    if part != "test":
        return Outcome(counts)
    found = spectra(_matrices(table))
    output.write_table("spectrum.parquet", to_table(part, found))
    return Outcome(counts, dict(_summary(found)))


def _matrices(table: pa.Table) -> Iterator[npt.NDArray[Any]]:
    """A part's vectors, some rows at a time, [m, D]."""
    for batch in table.select(["vector"]).to_batches(max_chunksize=SPECTRUM_ROWS):
        column = batch.column(0)
        yield column.flatten().to_numpy().reshape(len(batch), column.type.list_size)


def _summary(found: Sequence[Spectrum]) -> Iterator[tuple[str, float]]:
    for spectrum in found:
        tail = "" if spectrum.preprocessing == "released" else f"_{spectrum.preprocessing}"
        yield f"features/sve{tail}", spectrum.sve
        yield f"features/lsvr{tail}", spectrum.lsvr
        yield f"features/effective_rank{tail}", spectrum.effective_rank

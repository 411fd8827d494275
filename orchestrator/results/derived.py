"""What the report needs beyond the cells' rows: predictions, changed labels, rotations.

Takes finished steps and the store, gives rows of the tables in `analysis.schemas`. Reads the
outputs of steps. Writes only `rotation/<address>` in the store, a cache of expensive results.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from analysis import rotation as angles
from analysis.schemas import CONSTANT
from jobs import records
from jobs.contract import StageError
from jobs.corpus.shards import Index, read_part
from jobs.features.spec import FeaturesStep
from jobs.storage.folder import Folder
from jobs.tasks.duplicates import counted_twice
from jobs.tuning.spec import TuneStep
from orchestrator.errors import ReplacedError, UserError
from orchestrator.results import masks
from orchestrator.step.address import FeaturesAddress, RotationAddress, parse_as
from orchestrator.step.fingerprint import fingerprint
from orchestrator.step.step import Step
from orchestrator.store.manifest import Record
from orchestrator.store.store import READERS, Store

MOST_PREDICTIONS = 100_000_000  # with more, no interval is by test sample
STEEP = 3.0
_ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # half of the last place, relative
_PREDICTIONS = "predictions.parquet"
_SPECTRUM = "spectrum.parquet"
_FEATURES = "features-test.parquet"
_ROTATION = "rotation.json"


@dataclass(frozen=True)
class _Rotation:
    """A measured rotation: a row without its step's labels."""

    rows: int
    k: int
    angles: list[float]
    overlap: float
    cka: float


@dataclass(frozen=True)
class _Measurement:
    """The record of a measurement."""

    of: list[str]  # fingerprints of the two steps
    rotation: _Rotation | None  # None if the two cannot be compared
    sha256: str  # of the others

    def digest(self) -> str:
        """What `sha256` is if nothing was changed."""
        rotation = None if self.rotation is None else asdict(self.rotation)
        return fingerprint({"of": self.of, "rotation": rotation})


Done = Iterable[tuple[Step, Record]]
Remark = dict[str, str]  # a row of PROBLEMS_SCHEMA: what failed, was skipped or quarantined


def quarantined(corpora: Done) -> Iterator[Remark]:
    """How many rows of each corpus are in quarantine, with the reasons."""
    for step, record in corpora:
        lost, read = record.counts.get("quarantined", 0), record.counts.get("rows_read", 0)
        if lost:
            reasons = ", ".join(
                f"{count:,} {name.removeprefix('bad_').replace('_', ' ')}"
                for name, count in sorted(record.counts.items())
                if name.startswith("bad_")
            )
            yield _remark(step, "quarantined", f"{lost:,} of {read:,} rows: {reasons}")


def damaged(runs: Done) -> Iterator[Remark]:
    """How many images no encoder could be trained on, because they cannot be decoded."""
    for step, record in runs:
        if count := record.counts.get("damaged_images", 0):
            reason = f"{count:,} images cannot be decoded; a grey image was shown for each"
            yield _remark(step, "skipped", reason)


def coarse(features: Done, store: Store) -> Iterator[Remark]:
    """Which spectra are steep for the type that was measured, where it is coarser than float32.

    Rounding moves each entry by about 0.4 units of its last place, so every singular value of N
    rows of unit length and D dimensions gets noise of about 0.4 u sqrt(N / D). A spectrum is steep
    if half of its values are below STEEP times that.
    """
    for step, record in features:
        exact = isinstance(step.spec, FeaturesStep) and step.spec.precision == "float32"
        if exact or _SPECTRUM not in record.files:
            continue
        for row in store.committed(step.address).read_table(_SPECTRUM).to_pylist():
            unit = _ROUNDING.get(row.get("dtype", ""))
            if unit is None or row["preprocessing"] != "released":
                continue
            noise = 0.4 * unit * float(np.sqrt(row["rows"] / row["dim"]))
            if float(np.median(row["singular_values"])) < STEEP * noise:
                yield _remark(
                    step,
                    "imprecise",
                    f"half of the singular values are below {STEEP:g} times the rounding of "
                    f"{row['dtype']}, so its SVE and LSVR are partly rounding; measure in float32",
                )


def constant(cells: Done, store: Store) -> Iterator[Remark]:
    """Which cells predict the same for every test sample.

    The cell's record has the count; of a cell that was made before it did, the predictions are
    read.
    """
    counted, others = [], []
    for step, record in cells:
        if "distinct_predictions" in record.counts:
            counted += [step] if record.counts["distinct_predictions"] == 1 else []
        elif _PREDICTIONS in record.files:
            others.append(step)
    with ThreadPoolExecutor(READERS) as pool:
        same = pool.map(lambda step: _predicts_the_same(step, store), others)
        found = [*counted, *(step for step, is_same in zip(others, same, strict=True) if is_same)]
    for step in found:
        yield _remark(step, CONSTANT, "predicts the same for every test sample")


def _predicts_the_same(step: Step, store: Store) -> bool:
    predicted = store.committed(step.address).read_table(_PREDICTIONS)["predicted"]
    return len(predicted.unique()) == 1


def _remark(step: Step, status: str, reason: str) -> Remark:
    return {"address": step.address, "status": status, "reason": reason}


def refuse_counted_twice(cells: pa.Table, levels: Sequence[Any], seeds: Sequence[Any]) -> None:
    """Raise UserError if two tasks were tested on the same samples.

    `levels` and `seeds` are those of pre-training, one for each row of `cells`.
    """
    tests = cells.select(["domain", "trained_on", "task", "method", "test_digest"]).to_pylist()
    rows = (
        {**row, "noise": level, "pretrain_seed": seed}
        for row, level, seed in zip(tests, levels, seeds, strict=True)
    )
    if (pair := counted_twice(rows)) is not None:
        raise UserError(
            f"tasks: {pair[0]} and {pair[1]} were tested on the same features and labels, and "
            f"an average counts a task once; take one out, or correct where its data comes from"
        )


def predictions(
    cells: Done, store: Store, fraction: float, remarks: list[Remark]
) -> Iterator[dict[str, Any]]:
    """Which test samples each cell of a fraction got right.

    With more than MOST_PREDICTIONS predictions there are no rows, and `remarks` gets the reason.
    """
    chosen = [
        (step, record)
        for step, record in cells
        if step.labels["fraction"] == fraction and _PREDICTIONS in record.files
    ]
    total = sum(record.counts["n_test"] for _, record in chosen)
    if total > MOST_PREDICTIONS:
        reason = (
            f"{total:,} predictions in {len(chosen):,} cells are more than the report reads"
            f" ({MOST_PREDICTIONS:,}); no interval is by test sample"
        )
        remarks.append({"address": "tune", "status": "skipped", "reason": reason})
        return
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda step: _correct(step, store), [step for step, _ in chosen])
        yield from (row for row in found if row is not None)


def _correct(step: Step, store: Store) -> dict[str, Any] | None:
    """What each test sample adds to one cell's score; None if the target is a number."""
    found = store.committed(step.address).read_table(_PREDICTIONS).sort_by("key")
    added: dict[str, Any]
    if isinstance(step.spec, TuneStep) and step.spec.task.target_kind.dense:
        added = {"shares": masks.shares(found, step.spec.task.metric)}
    elif {"label", "predicted"} <= set(found.column_names):
        added = {"correct": pc.equal(found["label"], found["predicted"]).combine_chunks()}
    else:
        return None
    keys = "\n".join(found["key"].to_pylist())
    return {
        "noise": step.labels["noise"],
        "pretrain_seed": step.labels["seed"],
        "task": step.labels["task"],
        "method": step.labels["method"],
        "tuning_seed": step.labels["tuning_seed"],
        "samples": hashlib.sha256(keys.encode()).hexdigest(),
        **added,
    }


def transition(levels: Done, store: Store, remarks: list[Remark]) -> Iterator[dict[str, Any]]:
    """Training labels before and after the highest level; no rows if no label was changed.

    The corpus's shards may be deleted once encoders are trained. Without them there are no rows,
    and `remarks` gets the reason.
    """
    noisy = [step for step, _ in levels if float(step.labels["noise"]) > 0]
    if not noisy:
        return
    step = max(noisy, key=lambda one: float(one.labels["noise"]))
    changed = store.committed(step.address).read_table("changed.parquet")
    if not pa.types.is_integer(changed.schema.field("noisy").type):
        return  # captions
    try:
        corpus = store.committed(step.inputs["corpus"])
        classes = Index.read(corpus).classes
        labels = read_part(corpus, "train", ["label"])["label"].to_numpy()
    except (StageError, ReplacedError, FileNotFoundError) as error:
        remarks.append(_remark(step, "skipped", f"no transition matrix: {error}"))
        return
    kept = Counter(dict(enumerate(np.bincount(labels, minlength=len(classes)).tolist())))
    pairs = Counter(zip(changed["clean"].to_pylist(), changed["noisy"].to_pylist(), strict=True))
    for (clean, _), rows in pairs.items():
        kept[clean] -= rows
    pairs.update({(label, label): rows for label, rows in kept.items()})
    for (clean, other), rows in sorted(pairs.items()):
        yield {
            "level": step.labels["noise"],
            "clean": classes[clean],
            "noisy": classes[other],
            "rows": rows,
        }


def rotations(features: Done, store: Store, measure: bool) -> Iterator[dict[str, Any]]:
    """Compares each noisy encoder's test features with the clean encoder's, by seed and data set.

    Earlier measurements are read from the store. New ones read two feature files each, and are
    made only if `measure` is true. Features of other samples and constant features give no row.
    """
    steps = [step for step, record in features if _FEATURES in record.files]
    clean = {(s.labels["seed"], s.labels["images"]): s for s in steps if s.labels["noise"] == 0}
    opened: dict[str, tuple[list[str], angles.Space]] = {}
    for step in sorted(steps, key=lambda s: (str(s.labels["images"]), str(s.labels["seed"]))):
        base = clean.get((step.labels["seed"], step.labels["images"]))
        if base is None or step is base:
            continue
        folder = store.root / str(RotationAddress(parse_as(FeaturesAddress, step.address)))
        of = [base.fingerprint, step.fingerprint]
        found = _stored(folder, of)
        if found is None and measure:
            if base.address not in opened:
                opened = {base.address: _space(store, base)}  # one clean encoder at a time
            found = _measure(opened[base.address], _space(store, step))
            whole = {"of": of, "rotation": found or None}
            folder.delete(_ROTATION)
            folder.write_json(_ROTATION, {**whole, "sha256": fingerprint(whole)})
        if found:
            yield {
                "noise": step.labels["noise"],
                "pretrain_seed": step.labels["seed"],
                "images": step.labels["images"],
                **found,
            }


def _stored(folder: Folder, of: list[str]) -> dict[str, Any] | None:
    """The stored measurement of two steps; None if there is none, or it was changed."""
    stored = records.find(folder, _ROTATION, _Measurement)
    if stored is None or stored.of != of or stored.digest() != stored.sha256:
        return None
    return asdict(stored.rotation) if stored.rotation else {}


def _space(store: Store, step: Step) -> tuple[list[str], angles.Space]:
    """The keys and the feature space of up to angles.ROWS test samples, chosen by their keys."""
    table = store.committed(step.address).read_table(_FEATURES)
    keys = table["key"].to_pylist()
    chosen = sorted(range(len(keys)), key=lambda at: _key_hash(keys[at]))[: angles.ROWS]
    vectors = table["vector"].combine_chunks()
    width = vectors.type.list_size
    matrix: NDArray[Any] = vectors.flatten().to_numpy().reshape(len(keys), width)
    return [keys[at] for at in chosen], angles.space(matrix[chosen])


def _key_hash(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=8).digest()


def _measure(
    clean: tuple[list[str], angles.Space], noisy: tuple[list[str], angles.Space]
) -> dict[str, Any]:
    """The comparison as a row; empty if the two cannot be compared."""
    if clean[0] != noisy[0] or 0 in (clean[1].top.shape[1], noisy[1].top.shape[1]):
        return {}
    found = angles.rotation(clean[1], noisy[1])
    return {
        "rows": found.rows,
        "k": found.k,
        "angles": list(found.angles),
        "overlap": found.overlap,
        "cka": found.cka,
    }

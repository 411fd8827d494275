"""What the report shows of tasks of masks: IoU by class, images beside predictions, their shares.

Takes finished cells and the store; gives rows of tables in `analysis.schemas`. Only reads.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.contract import StageError
from jobs.corpus.shards import read_part
from jobs.features.spec import FeaturesStep
from jobs.images import masks
from jobs.images.decode import decode
from jobs.tuning import schema
from jobs.tuning.spec import TuneStep
from orchestrator.errors import ReplacedError
from orchestrator.plan.plan import Plan
from orchestrator.step.step import Step
from orchestrator.store.manifest import Record
from orchestrator.store.store import READERS, Store

Done = Iterable[tuple[Step, Record]]

IMAGES = 3  # shown of each task
SIDE = 320  # pixels of the longer side of a shown image, at most

_SCORES = ["classes", "intersection", "predicted_pixels", "labelled_pixels"]
_Sums = npt.NDArray[np.float64]  # [3, N, C]: intersection, predicted and labelled pixels


def shares(table: pa.Table, metric: str) -> pa.Array:
    """What each image adds to a cell's score, [N] in 0-1 or a little beside; its mean is the score.

    A score of all pixels is no mean over images. To first order, image i adds to a ratio A / B its
    (a_i - A / B b_i) N / B (the infinitesimal jackknife: Efron, The Jackknife, the Bootstrap and
    Other Resampling Plans, 1982, section 6). The intervals of other tasks hold with these shares.
    """
    hits, guessed, labelled = _by_image(table)
    if metric == "pixel_accuracy":
        above, below = hits.sum(axis=1, keepdims=True), labelled.sum(axis=1, keepdims=True)
    else:
        above, below = hits, guessed + labelled - hits
    whole = below.sum(axis=0)
    above, below, whole = above[:, whole > 0], below[:, whole > 0], whole[whole > 0]
    ratio = above.sum(axis=0) / whole
    each = ratio + len(above) * (above - ratio * below) / whole
    return pa.array(each.mean(axis=1))


def _by_image(table: pa.Table) -> _Sums:
    """The pixels of each image and class."""
    lists = [table[name].combine_chunks() for name in _SCORES]
    image = np.repeat(np.arange(len(table)), pc.list_value_length(lists[0]).to_numpy())
    classes, *values = (each.flatten().to_numpy() for each in lists)
    found = np.zeros((3, len(table), int(classes.max(initial=0)) + 1))
    for sums, pixels in zip(found, values, strict=True):
        sums[image, classes] = pixels
    return found


def class_iou(cells: Done, store: Store, fraction: float) -> Iterator[dict[str, Any]]:
    """The IoU of each class in each cell of a fraction."""
    chosen = [step for step, _ in cells if is_of_masks(step) and _fraction(step) == fraction]
    with ThreadPoolExecutor(READERS) as pool:
        for rows in pool.map(lambda step: _of_cell(step, store), chosen):
            yield from rows


def _of_cell(step: Step, store: Store) -> list[dict[str, Any]]:
    hits, guessed, labelled = _by_image(
        store.committed(step.address).read_table(schema.PREDICTIONS, _SCORES)
    ).sum(axis=1)
    labels = step.labels
    about = {
        "task": labels["task"],
        "domain": labels["domain"],
        "noise": labels.get("noise"),
        "pretrain_seed": labels.get("seed"),
        "encoder": labels.get("encoder"),
        "method": labels["method"],
        "tuning_seed": labels["tuning_seed"],
    }
    rows = []
    for number, name in enumerate(_class_names(step, store)):
        met = number < len(hits)
        union = guessed[number] + labelled[number] - hits[number] if met else 0
        iou = 100 * float(hits[number] / union) if union else None
        pixels = int(labelled[number]) if met else 0
        rows.append({**about, "class": name, "iou": iou, "pixels": pixels})
    return rows


def scenes(
    plan: Plan, cells: Sequence[tuple[Step, Record]], store: Store
) -> Iterator[dict[str, Any]]:
    """Some test images of each task, with their masks and the predictions of some encoders.

    Of encoders trained here the clean one and the one with most noise are shown, and each
    pretrained one: by the experiment's first method, the first seeds and the largest fraction.
    Shifted tasks are not shown, and none whose corpus is gone.
    """
    fraction = max(plan.experiment.tuning.fractions)
    for task in plan.tasks:
        mine = [
            step
            for step, _ in cells
            if is_of_masks(step)
            and step.labels["task"] == task.name
            and _fraction(step) == fraction
        ]
        for method in plan.experiment.tuning.methods:
            of_method = [step for step in mine if step.labels["method"] == method]
            if of_method:
                break
        else:
            continue
        if task.shift is None:
            try:
                yield from _of_task(_shown(of_method), plan, store)
            except (StageError, ReplacedError, FileNotFoundError):
                continue  # a corpus may be deleted once its features are there


def _shown(cells: Sequence[Step]) -> dict[str, Step]:
    """Title -> the cell that is shown."""
    order = sorted(cells, key=lambda step: (int(step.labels.get("seed", 0)), _tuning_seed(step)))
    found: dict[str, Step] = {}
    here = [step for step in order if "noise" in step.labels]
    if here:
        levels = sorted({float(step.labels["noise"]) for step in here})
        for level in dict.fromkeys((levels[0], levels[-1])):
            first = next(step for step in here if float(step.labels["noise"]) == level)
            found[f"{level:g} % noise"] = first
    for step in order:
        if "encoder" in step.labels:
            found.setdefault(str(step.labels["encoder"]), step)
    return found


def _of_task(shown: dict[str, Step], plan: Plan, store: Store) -> Iterator[dict[str, Any]]:
    first = next(iter(shown.values()))
    features = plan.steps[first.inputs["features"]]
    assert isinstance(features.spec, FeaturesStep), "masks are read from a corpus"
    corpus = store.committed(features.inputs["corpus"])
    named = read_part(corpus, "test", ["key"])["key"].to_pylist()
    wanted = _spread(sorted(named))
    rows = read_part(corpus, "test", ["key", "image", "mask"])
    predicted = {title: _patches(step, store, wanted) for title, step in shown.items()}
    for key in wanted:
        (row,) = rows.filter(pc.equal(rows["key"], key)).to_pylist()
        image = decode(row["image"], key)
        image.thumbnail((SIDE, SIDE))
        stream = io.BytesIO()
        image.convert("RGB").save(stream, "PNG")
        about = {"task": first.labels["task"], "key": key}
        yield {**about, "title": "image", "is_mask": False, "picture": stream.getvalue()}
        width, height = image.size
        whole = _merged(masks.read(row["mask"], key), first, store)
        small = whole[
            np.arange(height)[:, None] * len(whole) // height,
            np.arange(width) * whole.shape[1] // width,
        ]
        yield {**about, "title": "mask", "is_mask": True, "picture": masks.encoded(small)}
        for title, patches in predicted.items():
            large = masks.enlarged(patches[key], width, height)
            yield {**about, "title": title, "is_mask": True, "picture": masks.encoded(large)}


def _spread(keys: Sequence[str]) -> list[str]:
    """Some keys, evenly over all of them."""
    count = min(IMAGES, len(keys))
    return [keys[(2 * at + 1) * len(keys) // (2 * count)] for at in range(count)]


def _merged(mask: masks.Mask, step: Step, store: Store) -> masks.Mask:
    """A mask of the corpus's classes as one of the task's."""
    spec = step.spec
    assert isinstance(spec, TuneStep), "a cell"
    if spec.task.classes is None:
        return mask
    known = list(_corpus_classes(step, store))
    numbers = np.full(len(known), -1)
    for number, members in enumerate(spec.task.classes.values()):
        for member in members:
            numbers[known.index(member) if isinstance(member, str) else member] = number
    return masks.renumbered(mask, numbers)


def _patches(step: Step, store: Store, keys: Sequence[str]) -> dict[str, masks.Mask]:
    """The predicted classes [P, P] of the patches of some images; IGNORED without a pixel."""
    features = step.inputs["features"]
    patches = store.records([features])[features].counts["patches"]
    known = store.committed(features).read_table("keys-test.parquet")["key"].to_pylist()
    first = {key: at * patches for at, key in enumerate(known)}
    table = store.committed(step.address).read_table(
        schema.PREDICTIONS, ["key", "patches", "predicted"]
    )
    side = round(patches**0.5)
    found = {key: np.full(patches, masks.IGNORED, np.uint8) for key in keys}
    for row in table.filter(pc.is_in(table["key"], pa.array(keys))).to_pylist():
        found[row["key"]][np.array(row["patches"]) - first[row["key"]]] = row["predicted"]
    return {key: each.reshape(side, side) for key, each in found.items()}


def _class_names(step: Step, store: Store) -> Sequence[str]:
    spec = step.spec
    assert isinstance(spec, TuneStep), "a cell"
    return tuple(spec.task.classes) if spec.task.classes else _corpus_classes(step, store)


def _corpus_classes(step: Step, store: Store) -> Sequence[str]:
    names: list[str] = store.committed(step.inputs["features"]).read_json("classes.json")
    return names


def is_of_masks(step: Step) -> bool:
    """Whether a cell's task predicts masks."""
    return isinstance(step.spec, TuneStep) and step.spec.task.target_kind.dense


def _fraction(step: Step) -> float:
    return float(step.labels["fraction"])


def _tuning_seed(step: Step) -> int:
    return int(step.labels["tuning_seed"])

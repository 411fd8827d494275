"""Predictions of masks, enlarged to the masks' own sizes bilinearly and scored pixel by pixel.

Takes a head, the patches of the test images, and the corpus with their masks. The head's outputs
for an image, a map of P x P, are interpolated to the mask's size (torch's `interpolate`, corners
not aligned); the largest decides each pixel. Gives the pixels of each image by class. (The nearest
patch needs no masks: its scores follow from the pixels of each patch.)
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional

from jobs.corpus import shards
from jobs.images import masks, shifts
from jobs.storage.folder import Folder
from jobs.tasks.spec import Task
from jobs.tuning.class_mapping import ClassMapping
from jobs.tuning.frozen.part import Part
from jobs.tuning.heads import StackedHeads
from jobs.tuning.mask_target import Pixels
from jobs.tuning.rows import TaskClasses, TaskRows


def pixels(
    heads: StackedHeads,
    part: Part,
    rows: TaskRows,
    corpus: Folder,
    task: Task,
    classes: TaskClasses,
    mapping: ClassMapping | None,
) -> Pixels:
    """The pixels by class of every image that has a patch in `rows`.

    `part`: the whole test part, P * P patches for each image; `mapping`: of a head that was trained
    on another task. Raises StageError when a shard is missing or altered.
    """
    images, known = pc.unique(rows.keys), pc.unique(part.keys)
    patches = len(part.keys) // len(known)
    stored = shards.read_part(corpus, "test", ["key", "mask"])
    mask_of = dict(zip(stored["key"].to_pylist(), stored["mask"], strict=True))
    draws = None if task.shift is None else shifts.draws(images, task.shift)
    found = []
    for number, key in enumerate(images.to_pylist()):
        mask = masks.read(mask_of[key].as_py(), f"mask of sample {key}")
        if task.shift is not None and draws is not None:
            mask = masks.shifted(mask, task.shift, draws[number])
        first = pc.index(known, key).as_py() * patches
        features = np.asarray(part.views[0, first : first + patches], np.float32)
        _, outputs = heads.forward(torch.from_numpy(features), training=False)
        predicted = enlarged(outputs[0], mask.shape, mapping)
        labels = masks.renumbered(mask, classes.index_of)
        found.append(_counts(labels, predicted, len(classes.names)))
    hits, guessed, labelled = (np.stack(each) for each in zip(*found, strict=True))
    return Pixels(images, hits, guessed, labelled)


def enlarged(
    outputs: Tensor, size: tuple[int, int], mapping: ClassMapping | None = None
) -> masks.Mask:
    """The class of each pixel, [height, width], by a head's outputs [C, P * P] for the patches.

    `mapping`: which outputs count, and as which class of the task; None: all, each as its own.
    """
    side = math.isqrt(outputs.shape[1])
    counted = outputs if mapping is None else outputs[mapping.outputs]
    whole = functional.interpolate(
        counted.view(1, -1, side, side), size, mode="bilinear", align_corners=False
    )
    chosen = whole[0].argmax(0)
    found: masks.Mask = (chosen if mapping is None else mapping.classes[chosen]).numpy()
    return found.astype(np.uint8)


def _counts(mask: masks.Mask, predicted: masks.Mask, classes: int) -> npt.NDArray[np.int64]:
    """(hits, predicted, labelled pixels) of each class, [3, C]; ignored pixels are left out."""
    inside = mask != masks.IGNORED
    own, guess = mask[inside], predicted[inside]
    each = (own[own == guess], guess, own)
    return np.stack([np.bincount(values, minlength=classes) for values in each])

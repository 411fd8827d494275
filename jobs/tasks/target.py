"""The kinds of target: what plans, task files and feature files know of classes, numbers and masks.

Holds facts alone and imports nothing heavy. How a target is learnt, decoded and scored stands in
`jobs.tuning.target`. A further kind of target is one record here and one class there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Metric = Literal[
    "accuracy",
    "mean_per_class_accuracy",
    "macro_f1",
    "f1",  # of the last of two `classes`, as GLUE counts it
    "accuracy_f1",  # mean of the two, as GLUE does for MRPC and QQP
    "matthews",
    "pearson",
    "spearman",
    "pearson_spearman",  # mean of the two, as GLUE does for STS-B
    "miou",  # of pixels: mean over classes of intersection over union
    "pixel_accuracy",
]

OF_TWO_CLASSES: tuple[Metric, ...] = ("f1", "accuracy_f1")

TargetName = Literal["class", "number", "mask"]


@dataclass(frozen=True)
class TargetKind:
    """What a kind of target asks of tasks, of methods and of the column that holds its labels."""

    name: TargetName
    plural: str  # in messages
    metrics: tuple[Metric, ...]  # that can judge it
    arrow: str  # Arrow type of the label column of feature files, by pyarrow's alias
    has_classes: bool  # labels are classes: tasks name them, label noise can exchange them
    in_images: bool  # the labels of a corpus of images are of this kind
    unfit_heads: Mapping[str, str] = field(default_factory=dict)  # head -> what it is, in words
    needs: str = "classes"  # what an unfit head needs instead
    remedy: str = "ridge"  # what to use in its place
    dense: bool = False  # an image is many rows: its patches


CLASS = TargetKind(
    name="class",
    plural="classes",
    metrics=(
        "accuracy",
        "mean_per_class_accuracy",
        "macro_f1",
        "f1",
        "accuracy_f1",
        "matthews",
    ),
    arrow="int32",
    has_classes=True,
    in_images=True,
)

NUMBER = TargetKind(
    name="number",
    plural="numbers",
    metrics=("pearson", "spearman", "pearson_spearman"),
    arrow="float64",
    has_classes=False,
    in_images=False,
    unfit_heads={"lbfgs": "logistic regression", "zero_shot": "zero-shot"},
)

MASK = TargetKind(
    name="mask",
    plural="masks",
    metrics=("miou", "pixel_accuracy"),
    arrow="int32",
    has_classes=True,
    in_images=True,
    unfit_heads={
        "ridge": "least squares",
        "lbfgs": "logistic regression",
        "zero_shot": "zero-shot",
    },
    needs="one class for each row",
    remedy="a head that is trained by steps",
    dense=True,
)

KINDS: Mapping[TargetName, TargetKind] = {kind.name: kind for kind in (CLASS, NUMBER, MASK)}

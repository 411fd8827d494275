"""The target of a task, by its kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from jobs.tasks.spec import Task
from jobs.tasks.target import TargetKind, TargetName
from jobs.tuning.mask_target import MaskTarget
from jobs.tuning.target import ClassTarget, LabelType, NumberTarget, Target

TARGETS: Mapping[TargetName, type[Target]] = {
    "class": ClassTarget,
    "number": NumberTarget,
    "mask": MaskTarget,
}


def target_of(task: Task, classes: int) -> Target:
    """The target of a task with `classes` classes (0 where its target has none)."""
    found = TARGETS[task.target].of(classes)
    if isinstance(found, MaskTarget):
        return replace(found, majority=task.patch_label == "majority")
    return found


def kind_of(label_type: LabelType) -> TargetKind | None:
    """The kind of target whose labels are of this type."""
    return next((t.kind for t in TARGETS.values() if t.label_type == label_type), None)

"""How a trained head answers a task: which of its outputs may be chosen, and for which class.

Takes a task's classes and those that a head was trained on. An output answers the class of its own
name, or the class that the task's `answers` list it under; outputs that answer no class are taken
out before the largest is chosen. So ImageNet's thousand outputs are tested on the two hundred
classes of ImageNet-A and -R, or on ObjectNet's 113, several outputs of which are one class, the
way these sets define their accuracy. The loss is that of a class's probability, the sum of its
outputs' after the restriction. Nothing is trained here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.contract import StageError
from jobs.tasks.spec import Task
from jobs.tuning.heads import StackedHeads
from jobs.tuning.stacked import Labelled, evaluate

_ENTRIES = 1 << 24  # logits held at a time


@dataclass(frozen=True)
class Answers:
    """The outputs that may be chosen, and the task's class that each one answers."""

    outputs: Tensor  # int64, [U], of the head's classes
    classes: Tensor  # int64, [U], of the task's classes
    count: int  # C, the task's classes

    @staticmethod
    def of(task: Task, classes: Sequence[str], outputs: Sequence[str]) -> Answers:
        """For a task's `classes` and a head's `outputs`, by name. Raises StageError."""
        members = _members(task, classes)
        place = {name: number for number, name in enumerate(outputs)}
        strange = [name for names in members.values() for name in names if name not in place]
        if strange:
            raise StageError(
                f"task {task.name} is answered by {', '.join(strange[:3])}, but the heads of "
                f"{task.trained_on} answer {_some(outputs)}; make the names of `classes` and "
                f"`answers` agree with theirs"
            )
        pairs = [(place[n], c) for c, name in enumerate(classes) for n in members[name]]
        chosen = torch.tensor(pairs, dtype=torch.int64)
        return Answers(chosen[:, 0], chosen[:, 1], len(classes))

    def evaluate(self, heads: StackedHeads, part: Labelled) -> tuple[Tensor, Tensor]:
        """(mean loss [1], float64; predicted classes [1, N]) of one head on features [N, D].

        Ties between outputs go to the class that stands first. Raises ValueError without a row.
        """
        if self.is_their_own(heads.shape.classes):
            return evaluate(heads, part, torch.device("cpu"))
        if len(part.labels) == 0:
            raise ValueError("there is no row to evaluate")
        widest = max(heads.shape.hidden, heads.shape.dim, heads.shape.classes)
        piece = max(1, _ENTRIES // widest)
        losses, predicted = [], []
        for start in range(0, len(part.labels), piece):
            rows = slice(start, start + piece)
            _, logits = heads.forward(part.features[rows], training=False)
            found = self.choose(logits[0].mT, part.labels[rows])
            losses.append(found[0])
            predicted.append(found[1])
        return torch.cat(losses).mean()[None], torch.cat(predicted)[None]

    def choose(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(loss [N], float64; predicted classes [N]) of a head's logits [N, outputs]."""
        open_ = logits[:, self.outputs]
        chances = open_.double().softmax(1)
        by_class = torch.zeros(len(chances), self.count, dtype=torch.float64)
        by_class.index_add_(1, self.classes, chances)
        own = by_class.gather(1, labels[:, None])[:, 0]
        losses = -own.clamp_min(torch.finfo(torch.float64).tiny).log()
        return losses, self.classes[open_.argmax(1)]

    def is_their_own(self, outputs: int) -> bool:
        """Whether the task is the one that the head was trained for, class by class."""
        whole = torch.arange(outputs)
        return torch.equal(self.outputs, whole) and torch.equal(self.classes, whole)


def _members(task: Task, classes: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """The outputs' names that answer each class."""
    if task.answers is None:
        return {name: (name,) for name in classes}
    silent = [name for name in classes if name not in task.answers]
    if silent:
        raise StageError(
            f"task {task.name}: nothing answers class {silent[0]}; add it to `answers`, or leave "
            f"it out of `classes`"
        )
    return {name: task.answers[name] for name in classes}


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown}, ... ({len(names)} in all)"

"""How a head predicts the classes of another task: which outputs count, and as which class.

Takes a task's classes and those that a head was trained on. An output counts as the class of its
name, or as the class that lists it under `answers` in the task file. All other outputs are ignored;
the largest of the rest decides. So a head with ImageNet's thousand outputs is tested on the two
hundred classes of ImageNet-A and -R, or on ObjectNet's 113, some of which have several outputs.
These data sets define their accuracy in this way. The loss is the cross-entropy of the class
probabilities: a softmax over the outputs that count, summed by class. Nothing is trained here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.contract import StageError
from jobs.tasks.spec import Task
from jobs.validation import first_names


@dataclass(frozen=True)
class ClassMapping:
    """The outputs that count, and the task's class of each."""

    outputs: Tensor  # int64, [U], of the head's classes
    classes: Tensor  # int64, [U], of the task's classes
    count: int  # C, the task's classes

    @staticmethod
    def of(task: Task, classes: Sequence[str], outputs: Sequence[str]) -> ClassMapping:
        """For a task's `classes` and a head's `outputs`, by name. Raises StageError."""
        if task.answers is None and tuple(classes) == tuple(outputs):
            same = torch.arange(len(outputs))  # also where two classes share a name
            return ClassMapping(same, same, len(classes))
        members = _members(task, classes)
        output_of = {name: number for number, name in enumerate(outputs)}
        unknown = [name for names in members.values() for name in names if name not in output_of]
        if unknown:
            raise StageError(
                f"task {task.name} needs the outputs {', '.join(unknown[:3])}, but the heads of "
                f"{task.trained_on} have {first_names(outputs)}; use their names in `classes` and "
                f"`answers`"
            )
        shared = [n for names in members.values() for n in names if outputs.count(n) > 1]
        if shared:
            raise StageError(
                f"task {task.name} needs the output {shared[0]}, but two classes of "
                f"{task.trained_on} are called so; give each of them a name of its own"
            )
        pairs = [(output_of[n], c) for c, name in enumerate(classes) for n in members[name]]
        chosen = torch.tensor(pairs, dtype=torch.int64)
        return ClassMapping(chosen[:, 0], chosen[:, 1], len(classes))

    def choose(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(loss [N], float64; predicted classes [N]) of a head's logits [N, outputs]."""
        counted = logits[:, self.outputs]
        probabilities = counted.double().softmax(1)
        by_class = torch.zeros(len(probabilities), self.count, dtype=torch.float64)
        by_class.index_add_(1, self.classes, probabilities)
        surprise = -by_class.clamp_min(torch.finfo(torch.float64).tiny).log()
        if labels.dim() == 2:  # of masks: the pixels of each class
            losses = (surprise * labels).sum(1) / labels.sum(1).clamp_min(1)
        else:
            losses = surprise.gather(1, labels[:, None])[:, 0]
        return losses, self.classes[counted.argmax(1)]

    def is_identity(self, outputs: int) -> bool:
        """Whether each of the head's `outputs` counts as the class of the same index."""
        whole = torch.arange(outputs)
        return torch.equal(self.outputs, whole) and torch.equal(self.classes, whole)


def _members(task: Task, classes: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """The names of each class's outputs."""
    if task.answers is None:
        return {name: (name,) for name in classes}
    missing = [name for name in classes if name not in task.answers]
    if missing:
        raise StageError(
            f"task {task.name}: class {missing[0]} has no output; add it to `answers`, or leave it "
            f"out of `classes`"
        )
    return {name: task.answers[name] for name in classes}

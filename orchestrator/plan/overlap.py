"""Plans the steps that look for test samples among the samples that are trained on.

Takes the experiment and its tasks; adds one step for each corpus that is compared, and
one for each task and kind of encoder: those pre-trained here, whose corpus is compared too, and
pretrained ones, whose corpus is not known. Given features have no samples: they are not compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from jobs.contract import Spec
from jobs.encoders.spec import GivenEncoder
from jobs.features.spec import FeaturesStep
from jobs.overlap.spec import HashesStep, OverlapStep, limit_of
from jobs.pretrain.spec import PretrainStep
from jobs.tasks.spec import Task
from orchestrator.experiment.model import Experiment
from orchestrator.step.address import (
    CorpusAddress,
    EncoderAddress,
    HashesAddress,
    OverlapAddress,
    RunAddress,
    StepAddress,
)


class Add(Protocol):
    """Adds a step to a plan, see `orchestrator.plan.build`."""

    def __call__(
        self,
        kind: str,
        address: StepAddress,
        spec: Spec,
        inputs: Mapping[str, str] | None = None,
        **labels: str | float | int,
    ) -> str:
        """Add a step; return its address."""
        ...


@dataclass(frozen=True)
class Comparisons:
    """The steps that compare each task's test part, by the task's name."""

    trained: Mapping[str, str] = field(default_factory=dict)  # for encoders pre-trained here
    pretrained: Mapping[str, str] = field(default_factory=dict)
    samples: Mapping[str, Sequence[str]] = field(default_factory=dict)  # set of samples -> tasks

    def of(self, task: str, of: EncoderAddress, encoder: str | GivenEncoder) -> str | None:
        """The step of one task for an encoder; None if the task is not compared."""
        if isinstance(encoder, GivenEncoder):
            return None
        return (self.trained if isinstance(of, RunAddress) else self.pretrained).get(task)

    def after(self, spec: Spec, labels: Mapping[str, str | float | int]) -> tuple[str, ...]:
        """The steps that a run or features come after: no task, no training and no features."""
        found = self.pretrained if "encoder" in labels else self.trained
        if isinstance(spec, PretrainStep):
            return tuple(found.values())
        tasks = self.samples[spec.images] if isinstance(spec, FeaturesStep) else ()
        return tuple(found[name] for name in tasks if name in found)


def add_comparisons(add: Add, experiment: Experiment, tasks: Sequence[Task]) -> Comparisons:
    """Add the steps of an experiment."""
    trained: dict[str, str] = {}
    pretrained: dict[str, str] = {}
    own = experiment.corpus if experiment.pretrain else None
    given = (encoder for encoder in experiment.encoders if not isinstance(encoder, GivenEncoder))
    others = {encoder.modality for encoder in given}
    heads = {task.name: task for task in tasks}
    for task in tasks:
        head = heads[task.trained_on] if task.trained_on else task
        if own is not None and own.modality == task.modality:
            trained |= _add_comparison(add, experiment, task, head, own.name)
        if task.modality in others:
            pretrained |= _add_comparison(add, experiment, task, head, None)
    samples: dict[str, list[str]] = {}
    for task in tasks:
        samples.setdefault(task.images, []).append(task.name)
    return Comparisons(trained, pretrained, samples)


def _add_comparison(
    add: Add, experiment: Experiment, task: Task, head: Task, corpus: str | None
) -> dict[str, str]:
    """The step of one task, by its name; none if there is nothing to compare."""
    sets = {
        "pretraining": corpus,
        "training": head.corpus.name if head.corpus is not None else None,
    }
    named = {role: name for role, name in sets.items() if name is not None}
    if task.corpus is None or not named:
        return {}
    inputs = {
        role: add("hashes", HashesAddress(name), HashesStep(), {"corpus": str(CorpusAddress(name))})
        for role, name in ({"test": task.corpus.name} | named).items()
    }
    limit = limit_of(experiment.overlap)
    step = OverlapStep(
        task=task.name,
        classes=task.classes,
        head=head.name,
        head_classes=head.classes,
        limit=limit,
    )
    address = OverlapAddress(corpus, task.name, limit)
    return {task.name: add("overlap", address, step, inputs, task=task.name)}

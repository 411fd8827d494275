"""Runs a frozen cell: train and select (ID) or read a selected head (OOD), then test once.

Takes a step's `Work` and, for an ID cell, the configurations to try; writes the cell's files into
`Work.output` and gives its `Outcome` (see `jobs.tuning.write`). Does not use Ray, and never decides
where or when a cell runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from jobs.contract import Outcome, StageError, Work
from jobs.overlap.compare import dropped
from jobs.tuning.budget import OnProgress, ignore_progress
from jobs.tuning.class_mapping import ClassMapping
from jobs.tuning.digest import digest
from jobs.tuning.frozen import upsampling
from jobs.tuning.frozen.features import FeatureCache, TestPart, read_classes
from jobs.tuning.frozen.fit import fit, fit_siblings
from jobs.tuning.frozen.stack import evaluate
from jobs.tuning.heads import Shape, StackedHeads
from jobs.tuning.mask_target import MaskTarget
from jobs.tuning.module_heads import single
from jobs.tuning.rows import Labelled, TaskClasses, plain_rows, without
from jobs.tuning.targets import target_of
from jobs.tuning.trained import Configuration, Fit, Selected, step_of
from jobs.tuning.write import Tested, read_head, record, record_transfer

_CPU = torch.device("cpu")
_ENTRIES = 1 << 24  # entries of the largest activation in memory at once


def adapt(
    work: Work,
    configurations: Sequence[Configuration] | None,
    cache: FeatureCache,
    on_progress: OnProgress = ignore_progress,
) -> Outcome:
    """Run an ID cell: train every configuration, select one on the validation part, and test it.

    Without configurations, the step's search proposes them. Raises StageError when the features do
    not fit the task, or when every configuration failed.
    """
    torch.set_num_threads(step_of(work).settings.cpus)
    return _finish(work, fit(work, configurations, cache, on_progress))


def adapt_siblings(
    works: Sequence[Work],
    configurations: Sequence[Sequence[Configuration]],
    cache: FeatureCache,
    on_progress: OnProgress = ignore_progress,
) -> Iterator[tuple[Work, Outcome | StageError]]:
    """Run ID cells with the same `siblings.sibling_key`, in as few stacks as memory allows.

    Yields each cell as soon as its stack has ended.
    """
    torch.set_num_threads(step_of(works[0]).settings.cpus)
    for work, found in fit_siblings(works, configurations, cache, on_progress):
        try:
            yield work, found if isinstance(found, StageError) else _finish(work, found)
        except StageError as error:
            yield work, error


def _finish(work: Work, fit: Fit) -> Outcome:
    """Test the selected configuration, and write the cell."""
    selected = Selected(fit.trained.state, fit.classes.names)
    tested = _test(work, fit.shape, selected, fit.classes)
    return record(work, fit, tested, selected)


def transfer(work: Work) -> Outcome:
    """Run an OOD cell: test the head that an ID cell selected. Nothing is trained.

    Raises StageError when this cell needs another head, or when the head does not fit the features.
    """
    step = step_of(work)
    torch.set_num_threads(step.settings.cpus)
    folder, source = work.inputs["features"], work.inputs["head"]
    shape, selected, trained = read_head(source, step)
    classes = TaskClasses.of(step.task, read_classes(folder))
    mapping = shape.target.mapping(step.task, classes.names, selected.classes)
    tested = _test(work, shape, selected, classes, mapping)
    return record_transfer(work, trained, tested)


def _test(
    work: Work,
    shape: Shape,
    selected: Selected,
    classes: TaskClasses,
    mapping: ClassMapping | None = None,
) -> Tested:
    """Open the test part for the selected head, and score its predictions.

    `mapping`: the class mapping, where the head was trained on another task.
    """
    step, folder = step_of(work), work.inputs["features"]
    part = TestPart(folder)
    features = part.open(selected)
    if features.views.shape[-1] != shape.dim:
        raise StageError(
            f"{folder.uri}: test features have {features.views.shape[-1]} dimensions, the head "
            f"takes {shape.dim}; extract both with the same encoder"
        )
    rows = plain_rows(features, classes, step.task)
    if step.drop_overlap:
        rows = without(rows, dropped(work.inputs["overlap"]), step.task)
    samples = features.plain(rows)
    heads = single(shape, selected.state)
    if mapping is None:
        loss, predicted = evaluate(heads, samples, _CPU)
    else:
        loss, predicted = evaluate_mapped(heads, samples, mapping)
    target = target_of(step.task, len(classes.names))
    if isinstance(target, MaskTarget) and step.task.upsampling == "bilinear":
        corpus = work.inputs["corpus"]
        whole = upsampling.pixels(heads, features, rows, corpus, step.task, classes, mapping)
        scores = whole.score()
        table = target.table(rows.keys, rows.indices, predicted[0], whole)
    else:
        scores = target.judge(rows.labels, predicted)
        table = target.predictions(rows.keys, rows.indices, rows.labels, predicted[0])
    found = digest(samples)
    return Tested(target, rows, predicted[0], table, scores, float(loss), part.reads, found)


def evaluate_mapped(
    heads: StackedHeads, part: Labelled, mapping: ClassMapping
) -> tuple[Tensor, Tensor]:
    """(mean loss [1], float64; predicted classes [1, N]) of one head on features [N, D].

    The first of equal outputs is predicted. Raises ValueError without a row.
    """
    if mapping.is_identity(heads.shape.outputs):
        return evaluate(heads, part, torch.device("cpu"))
    if len(part.labels) == 0:
        raise ValueError("there is no row to evaluate")
    piece = max(1, _ENTRIES // heads.width)
    losses, predicted = [], []
    for start in range(0, len(part.labels), piece):
        rows = slice(start, start + piece)
        _, logits = heads.forward(part.features[rows], training=False)
        found = mapping.choose(logits[0].mT, part.labels[rows])
        losses.append(found[0])
        predicted.append(found[1])
    return torch.cat(losses).mean()[None], torch.cat(predicted)[None]

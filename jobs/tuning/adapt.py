"""One cell, start to end: train and select (ID), or take a selected head (OOD); then test it once.

Takes a step's `Work` and, for an ID cell, the configurations to try; writes the cell's files into
`Work.output` (see `cells`) and gives its `Outcome`. Accuracies and F1 are percentages, 0-100; a
task whose target is a number has neither, and its own metric alone. Knows nothing of Ray, and never
decides where or when a cell runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa
import safetensors
import safetensors.torch
import torch

from jobs.contract import Outcome, StageError, Work
from jobs.storage.folder import Folder
from jobs.tuning import cells, data
from jobs.tuning.answers import Answers
from jobs.tuning.budget import Told, to_nobody
from jobs.tuning.fit import Fit, fit, fit_siblings, step_of
from jobs.tuning.heads import Shape, StackedHeads
from jobs.tuning.scores import Judged, Scores, judge
from jobs.tuning.spec import TuneStep
from jobs.tuning.stacked import TERMS, Configuration, evaluate

_CPU = torch.device("cpu")
_SHOWN = ("accuracy", "macro_f1")  # of a validation's scores of classes, in the curves


@dataclass(frozen=True)
class Tested:
    """A selected head's answers on a test part."""

    rows: data.TaskRows
    predicted: torch.Tensor  # [N], classes or numbers
    scores: Judged  # of one member
    loss: float
    reads: int
    digest: str  # of what was tested, see `data.digest`


def adapt(
    work: Work,
    configurations: Sequence[Configuration] | None,
    cache: data.FeatureCache,
    told: Told = to_nobody,
) -> Outcome:
    """An ID cell: train every configuration, select one on the validation part, test that one.

    Without configurations the step's own search asks for them. Raises StageError when the features
    do not fit the task or every configuration failed.
    """
    torch.set_num_threads(step_of(work).cpus)
    return _finish(work, fit(work, configurations, cache, told))


def adapt_siblings(
    works: Sequence[Work],
    configurations: Sequence[Sequence[Configuration]],
    cache: data.FeatureCache,
    told: Told = to_nobody,
) -> Iterator[tuple[Work, Outcome | StageError]]:
    """ID cells of one `fit.sibling_key`, trained as one stack as far as they fit the memory.

    Each is answered apart, as soon as its stack has ended.
    """
    torch.set_num_threads(step_of(works[0]).cpus)
    for work, found in fit_siblings(works, configurations, cache, told):
        try:
            yield work, found if isinstance(found, StageError) else _finish(work, found)
        except StageError as error:
            yield work, error


def _finish(work: Work, fit: Fit) -> Outcome:
    """Test the selected configuration, and write the cell."""
    step = step_of(work)
    selected = data.Selected(fit.trained.state, fit.classes.names)
    tested = _test(work.inputs["features"], step, fit.shape, selected, fit.classes)
    return record(work, fit, tested, selected)


def record(work: Work, fit: Fit, tested: Tested, selected: data.Selected) -> Outcome:
    """Write the files of an ID cell whose selected configuration has been tested."""
    cell = _id_cell(step_of(work), fit, tested)
    _write_head(work.output, fit.shape, selected)
    work.output.write_table(cells.CONFIGURATIONS, cells.to_table(cells.Tried, _tried(fit)))
    work.output.write_table(cells.CURVES, cells.to_table(cells.Point, _curves(fit)))
    _write_result(work.output, cell, tested)
    return Outcome(
        counts={
            "n_train": cell.n_train,
            "n_validation": cell.n_validation,
            "n_test": cell.n_test,
            "configurations": cell.configurations,
            "configurations_failed": cell.configurations_failed,
            "configurations_dropped": sum(d is not None for d in fit.trained.dropped),
            "test_reads": cell.test_reads,
            "train_other_classes": fit.training.other_classes,
            "train_beyond_fraction": fit.training.beyond_fraction,
            "validation_other_classes": fit.validation.other_classes,
            "test_other_classes": tested.rows.other_classes,
        },
        metrics=_metrics("validation", cell) | _metrics("test", cell),
    )


def transfer(work: Work) -> Outcome:
    """An OOD cell: test the head that an ID cell selected. Nothing is trained.

    Raises StageError when the head is not the one this cell needs, or does not fit the features.
    """
    step = step_of(work)
    torch.set_num_threads(step.cpus)
    folder, source = work.inputs["features"], work.inputs["head"]
    shape, selected, trained = read_head(source, step)
    classes = data.ClassMap.of(step.task, data.read_classes(folder))
    answers = None if shape.of_numbers else Answers.of(step.task, classes.names, selected.classes)
    tested = _test(folder, step, shape, selected, classes, answers)
    return record_transfer(work, trained, tested, len(classes.names))


def record_transfer(work: Work, trained: cells.Cell, tested: Tested, classes: int) -> Outcome:
    """Write the files of an OOD cell: the ID cell's row `trained`, with this cell's test."""
    step = step_of(work)
    cell = replace(
        trained,
        task=step.task.name,
        domain=step.task.domain,
        trained_on=step.task.trained_on,
        metric=step.task.metric,
        test_metric=_own_metric(step, tested.scores),
        test_accuracy=_of_classes(tested.scores, "accuracy"),
        test_macro_f1=_of_classes(tested.scores, "macro_f1"),
        test_mean_per_class_accuracy=_of_classes(tested.scores, "mean_per_class_accuracy"),
        test_loss=tested.loss,
        n_test=len(tested.predicted),
        n_classes=classes,
        test_reads=tested.reads,
        test_digest=tested.digest,
    )
    _write_result(work.output, cell, tested)
    return Outcome(
        counts={
            "n_train": cell.n_train,
            "n_validation": cell.n_validation,
            "n_test": cell.n_test,
            "configurations": cell.configurations,
            "configurations_failed": cell.configurations_failed,
            "test_reads": cell.test_reads,
            "test_other_classes": tested.rows.other_classes,
        },
        metrics=_metrics("test", cell),
    )


# -- the parts of both -----------------------------------------------------------------------------


def _test(
    folder: Folder,
    step: TuneStep,
    shape: Shape,
    selected: data.Selected,
    classes: data.ClassMap,
    answers: Answers | None = None,
) -> Tested:
    """Open the test part for the selected head, and score it; `answers`: a task not its own."""
    part = data.TestPart(folder)
    features = part.open(selected)
    if features.views.shape[-1] != shape.dim:
        raise StageError(
            f"{folder.uri}: test features have {features.views.shape[-1]} dimensions, the head "
            f"takes {shape.dim}; extract both with the same encoder"
        )
    rows = data.plain_rows(features, classes, step.task)
    heads = StackedHeads.single(shape, selected.state)
    if answers is None:
        loss, predicted = evaluate(heads, rows.rows, _CPU)
    else:
        loss, predicted = answers.evaluate(heads, rows.rows)
    scores = judge(rows.rows.labels, predicted, len(classes.names))
    return Tested(rows, predicted[0], scores, float(loss), part.reads, data.digest(rows))


def _own_metric(step: TuneStep, scores: Judged) -> float:
    return float(scores.of(step.task.metric))


def _of_classes(scores: Judged, name: str, member: int = 0) -> float | None:
    """A score of classes; none where the target is a number."""
    return float(getattr(scores, name)[member]) if isinstance(scores, Scores) else None


def _metrics(part: Literal["validation", "test"], cell: cells.Cell) -> dict[str, float]:
    """A part's scores in short: of classes accuracy (and F1 of the test), of numbers their own."""
    found = {
        "accuracy": cell.validation_accuracy if part == "validation" else cell.test_accuracy,
        "macro_f1": None if part == "validation" else cell.test_macro_f1,
    }
    if cell.n_classes == 0:
        own = cell.validation_metric if part == "validation" else cell.test_metric
        found = {cell.metric: own}
    return {f"tune/{part}_{name}": value for name, value in found.items() if value is not None}


def _id_cell(step: TuneStep, fit: Fit, tested: Tested) -> cells.Cell:
    last, configuration = fit.trained.epochs[-1], fit.configurations[fit.chosen]
    return cells.Cell(
        task=step.task.name,
        domain=step.task.domain,
        trained_on=None,
        method=step.method_name,
        head=step.method.head,
        fraction=step.fraction,
        label_noise=step.label_noise,
        tuning_seed=step.seed,
        metric=step.task.metric,
        test_metric=_own_metric(step, tested.scores),
        test_accuracy=_of_classes(tested.scores, "accuracy"),
        test_macro_f1=_of_classes(tested.scores, "macro_f1"),
        test_mean_per_class_accuracy=_of_classes(tested.scores, "mean_per_class_accuracy"),
        test_loss=tested.loss,
        validation_metric=float(last.validation.of(last.metric)[fit.chosen]),
        validation_accuracy=_of_classes(last.validation, "accuracy", fit.chosen),
        validation_macro_f1=_of_classes(last.validation, "macro_f1", fit.chosen),
        validation_loss=float(last.validation_loss[fit.chosen]),
        n_train=len(fit.training.keys),
        n_validation=len(fit.validation.keys),
        n_test=len(tested.predicted),
        n_classes=fit.shape.classes,
        views=fit.views,
        dim=fit.shape.dim,
        configurations=len(fit.configurations),
        configurations_failed=fit.failed,
        epochs=step.epochs,
        batch_size=step.batch_size,
        selected=fit.chosen,
        lr=configuration.lr,
        weight_decay=configuration.weight_decay,
        mse=configuration.mse,
        cov=configuration.cov,
        svd=configuration.svd,
        l2=configuration.l2,
        test_reads=tested.reads,
        test_digest=tested.digest,
    )


# -- files -----------------------------------------------------------------------------------------


def _tried(fit: Fit) -> list[cells.Tried]:
    """Every configuration's row; a number that is not finite is null."""
    last = fit.trained.epochs[-1]
    rows = []
    for index, configuration in enumerate(fit.configurations):
        failure = fit.trained.failures[index]
        validated: dict[str, float | None] = {
            "validation_metric": float(last.validation.of(last.metric)[index]),
            "validation_accuracy": _of_classes(last.validation, "accuracy", index),
            "validation_macro_f1": _of_classes(last.validation, "macro_f1", index),
            "validation_loss": float(last.validation_loss[index]),
        }
        trained: dict[str, float | None] = {
            f"train_{term}": _finite(last.train[term][index]) if term in last.train else None
            for term in TERMS
        }
        if failure is not None:
            validated = dict.fromkeys(validated)
            trained = dict.fromkeys(trained)
        rows.append(
            cells.Tried(
                configuration=index,
                lr=configuration.lr,
                weight_decay=configuration.weight_decay,
                mse=configuration.mse,
                cov=configuration.cov,
                svd=configuration.svd,
                l2=configuration.l2,
                epochs=fit.trained.trained_for[index],
                **validated,
                **trained,
                selected=index == fit.chosen,
                dropped=fit.trained.dropped[index],
                failed=failure,
            )
        )
    return rows


def _finite(value: torch.Tensor) -> float | None:
    return float(value) if value.isfinite() else None


def _curves(fit: Fit) -> list[cells.Point]:
    """The selected configuration's numbers, epoch by epoch, as long as it was trained."""
    points = []
    mine = fit.trained.epochs[: fit.trained.trained_for[fit.chosen]]
    for number, epoch in enumerate(mine, start=1):
        curves = {f"train/{name}": values for name, values in epoch.train.items()}
        shown = _SHOWN if isinstance(epoch.validation, Scores) else ("pearson", "spearman")
        curves |= {f"validation/{name}": getattr(epoch.validation, name) for name in shown}
        curves["validation/loss"] = epoch.validation_loss
        points += [
            cells.Point(name, number, float(values[fit.chosen]))
            for name, values in curves.items()
            if values[fit.chosen].isfinite()
        ]
    return points


def _write_result(output: Folder, cell: cells.Cell, tested: Tested) -> None:
    of_classes, of_numbers = cells.schema(cells.Prediction), cells.schema(cells.Estimate)
    columns = [tested.rows.keys, tested.rows.rows.labels.numpy(), tested.predicted.numpy()]
    predictions = pa.table(columns, schema=of_classes if cell.n_classes else of_numbers)
    output.write_table(cells.PREDICTIONS, predictions)
    output.write_table(cells.CELL, cells.to_table(cells.Cell, [cell]))


def _write_head(output: Folder, shape: Shape, selected: data.Selected) -> None:
    output.write_bytes(cells.HEAD, safetensors.torch.save(dict(selected.state)))
    card = {"kind": shape.kind, "dim": shape.dim, "classes": list(selected.classes)}
    output.write_json(cells.HEAD_CARD, card)


def read_head(source: Folder, step: TuneStep) -> tuple[Shape, data.Selected, cells.Cell]:
    """The head an ID cell selected, and that cell's row."""
    try:
        card = source.read_json(cells.HEAD_CARD)
        state = safetensors.torch.load(source.read_bytes(cells.HEAD))
        (cell,) = cells.from_table(cells.Cell, source.read_table(cells.CELL))
    except (FileNotFoundError, ValueError, pa.ArrowInvalid, safetensors.SafetensorError) as error:
        raise StageError(
            f"{source.uri} is not the output of an ID cell ({error}); run that cell again"
        ) from error
    wanted = (step.task.trained_on, step.method_name, step.fraction, step.label_noise, step.seed)
    found = (cell.task, cell.method, cell.fraction, cell.label_noise, cell.tuning_seed)
    if found != wanted:
        raise StageError(
            f"{source.uri} holds the head of {cell.task}/{cell.method}/fraction={cell.fraction:g}/"
            f"label_noise={cell.label_noise:g}/seed={cell.tuning_seed}, "
            f"not of {'/'.join(map(str, wanted))}; run it again"
        )
    shape = Shape(card["kind"], int(card["dim"]), len(card["classes"]))
    return shape, data.Selected(state, tuple(card["classes"])), cell

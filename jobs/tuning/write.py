"""Writes the files of a cell whose selected configuration has been tested, and reads a head back.

Takes the results of training and testing; writes the tables and the head into `Work.output` as
`jobs.tuning.schema` describes them, and gives the cell's `Outcome`. Accuracies and F1 are
percentages, 0-100. A task whose target is a number has neither; it has only its own metric.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

import pyarrow as pa
import safetensors
import safetensors.torch
import torch

from jobs import records
from jobs.contract import Outcome, StageError, Work
from jobs.storage.folder import Folder
from jobs.tuning import schema
from jobs.tuning.heads import Shape
from jobs.tuning.methods import HeadKind
from jobs.tuning.metrics import Judged
from jobs.tuning.rows import TaskRows
from jobs.tuning.spec import TuneStep
from jobs.tuning.target import Target
from jobs.tuning.targets import target_of
from jobs.tuning.trained import TERMS, Fit, Selected, step_of


@dataclass(frozen=True)
class Tested:
    """A selected head's predictions on a test part."""

    target: Target
    rows: TaskRows
    predicted: torch.Tensor  # [N], in the units of the target
    predictions: pa.Table  # the same as `Target.predictions` gives them
    scores: Judged  # of one member
    loss: float
    reads: int
    digest: str  # of what was tested, see `jobs.tuning.digest`


def record(work: Work, fit: Fit, tested: Tested, selected: Selected) -> Outcome:
    """Write the files of an ID cell whose selected configuration has been tested."""
    cell = _id_cell(step_of(work), fit, tested)
    _keep_source(work)
    _write_head(work.output, fit.shape, selected)
    work.output.write_table(schema.CONFIGURATIONS, schema.to_table(schema.Tried, _tried(fit)))
    work.output.write_table(schema.CURVES, schema.to_table(schema.Point, _curves(fit)))
    _write_result(work.output, cell, tested)
    if step_of(work).source is not None:
        rows = schema.to_table(schema.Own, _own(fit))
        work.output.write_table(schema.HYPERPARAMETERS, rows)
    return Outcome(
        counts={
            "n_train": cell.n_train,
            "n_validation": cell.n_validation,
            "n_test": cell.n_test,
            "configurations": cell.configurations,
            "configurations_failed": cell.configurations_failed,
            "configurations_dropped": sum(d is not None for d in fit.trained.dropped),
            "test_reads": cell.test_reads,
            "distinct_predictions": len(torch.unique(tested.predicted)),
            "train_other_classes": fit.training.other_classes,
            "train_beyond_fraction": fit.training.beyond_fraction,
            "validation_other_classes": fit.validation.other_classes,
            "test_other_classes": tested.rows.other_classes,
            **({"test_dropped": tested.rows.dropped} if step_of(work).drop_overlap else {}),
            **({"trained_one_by_one": len(fit.configurations)} if fit.trained.unstackable else {}),
        },
        metrics=_metrics("validation", cell) | _metrics("test", cell),
    )


def record_transfer(work: Work, trained: schema.Cell, tested: Tested) -> Outcome:
    """Write the files of an OOD cell: the ID cell's row `trained` with new test results."""
    step = step_of(work)
    _keep_source(work)
    cell = replace(
        trained,
        task=step.task.name,
        domain=step.task.domain,
        trained_on=step.task.trained_on,
        metric=step.task.metric,
        test_metric=_own_metric(step, tested.scores),
        test_accuracy=tested.scores.value("accuracy"),
        test_macro_f1=tested.scores.value("macro_f1"),
        test_mean_per_class_accuracy=tested.scores.value("mean_per_class_accuracy"),
        test_loss=tested.loss,
        n_test=len(tested.predicted),
        n_classes=tested.target.classes,
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
            "distinct_predictions": len(torch.unique(tested.predicted)),
            "test_other_classes": tested.rows.other_classes,
            **({"test_dropped": tested.rows.dropped} if step_of(work).drop_overlap else {}),
        },
        metrics=_metrics("test", cell),
    )


# -- rows ------------------------------------------------------------------------------------------


def _own_metric(step: TuneStep, scores: Judged) -> float:
    return float(scores.of(step.task.metric))


def _metrics(part: Literal["validation", "test"], cell: schema.Cell) -> dict[str, float]:
    """A part's scores for the outcome: the task's own metric, accuracy, and the test's F1."""
    own = cell.validation_metric if part == "validation" else cell.test_metric
    scores = {
        cell.metric: own,
        "accuracy": cell.validation_accuracy if part == "validation" else cell.test_accuracy,
        "macro_f1": None if part == "validation" else cell.test_macro_f1,
    }
    return {f"tune/{part}_{name}": value for name, value in scores.items() if value is not None}


def _id_cell(step: TuneStep, fit: Fit, tested: Tested) -> schema.Cell:
    last, configuration = fit.trained.epochs[-1], fit.configurations[fit.chosen]
    return schema.Cell(
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
        test_accuracy=tested.scores.value("accuracy"),
        test_macro_f1=tested.scores.value("macro_f1"),
        test_mean_per_class_accuracy=tested.scores.value("mean_per_class_accuracy"),
        test_loss=tested.loss,
        validation_metric=float(last.validation.of(last.metric)[fit.chosen]),
        validation_accuracy=last.validation.value("accuracy", fit.chosen),
        validation_macro_f1=last.validation.value("macro_f1", fit.chosen),
        validation_loss=float(last.validation_loss[fit.chosen]),
        n_train=len(fit.training.keys),
        n_validation=len(fit.validation.keys),
        n_test=len(tested.predicted),
        n_classes=fit.shape.target.classes,
        views=fit.views,
        dim=fit.shape.dim,
        configurations=len(fit.configurations),
        configurations_failed=fit.failed,
        epochs=step.settings.epochs,
        batch_size=step.settings.batch_size,
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


def _tried(fit: Fit) -> list[schema.Tried]:
    """A row for each configuration; numbers that are not finite are null."""
    last = fit.trained.epochs[-1]
    rows = []
    for index, configuration in enumerate(fit.configurations):
        failure = fit.trained.failures[index]
        validated: dict[str, float | None] = {
            "validation_metric": float(last.validation.of(last.metric)[index]),
            "validation_accuracy": last.validation.value("accuracy", index),
            "validation_macro_f1": last.validation.value("macro_f1", index),
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
            schema.Tried(
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


def _own(fit: Fit) -> list[schema.Own]:
    """A row for each of an extension's hyper-parameters in each configuration."""
    return [
        schema.Own(index, name, value, index == fit.chosen)
        for index, configuration in enumerate(fit.configurations)
        for name, value in configuration.own.items()
    ]


def _finite(value: torch.Tensor) -> float | None:
    return float(value) if value.isfinite() else None


def _curves(fit: Fit) -> list[schema.Point]:
    """The selected configuration's losses and scores after each epoch that it was trained for."""
    points = []
    trained = fit.trained.epochs[: fit.trained.trained_for[fit.chosen]]
    for number, epoch in enumerate(trained, start=1):
        curves = {f"train/{name}": values for name, values in epoch.train.items()}
        scores = fit.shape.target.curves
        curves |= {f"validation/{name}": getattr(epoch.validation, name) for name in scores}
        curves["validation/loss"] = epoch.validation_loss
        points += [
            schema.Point(name, number, float(values[fit.chosen]))
            for name, values in curves.items()
            if values[fit.chosen].isfinite()
        ]
    return points


def _keep_source(work: Work) -> None:
    """Write copies of the extensions that have the head and a trained encoder."""
    step = step_of(work)
    for source in (step.source, step.encoder.source if step.encoder else None):
        if source is not None:
            source.keep(work.output)


def _write_result(output: Folder, cell: schema.Cell, tested: Tested) -> None:
    output.write_table(schema.PREDICTIONS, tested.predictions)
    output.write_table(schema.CELL, schema.to_table(schema.Cell, [cell]))


def _write_head(output: Folder, shape: Shape, selected: Selected) -> None:
    output.write_bytes(schema.HEAD, safetensors.torch.save(dict(selected.state)))
    card = _HeadCard(shape.kind, shape.dim, selected.classes)
    output.write_json(schema.HEAD_CARD, asdict(card))


@dataclass(frozen=True)
class _HeadCard:
    """The record beside a head's weights."""

    kind: HeadKind
    dim: int
    classes: tuple[str, ...]


def read_head(source: Folder, step: TuneStep) -> tuple[Shape, Selected, schema.Cell]:
    """The head that an ID cell selected, and that cell's row.

    Raises StageError when the files are damaged or belong to another cell than `step` needs.
    """
    remedy = "delete that cell's folder and run it again"
    try:
        card = records.read(source, schema.HEAD_CARD, _HeadCard, remedy)
        state = safetensors.torch.load(source.read_bytes(schema.HEAD))
        (cell,) = schema.from_table(schema.Cell, source.read_table(schema.CELL))
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
            f"not of {'/'.join(map(str, wanted))}; run that cell again"
        )
    target = target_of(step.task, len(card.classes))
    shape = Shape(card.kind, card.dim, target, step.method.residual, step.part)
    return shape, Selected(state, card.classes), cell

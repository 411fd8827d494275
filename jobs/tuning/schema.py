"""The result schema of the tuning stage: every table a cell writes, each column with its meaning.

A cell's output folder holds

    cell.parquet            one row, `Cell`
    predictions.parquet     one `Prediction` for each row of the test part, or one `Estimate`; of
                            masks one `Segmented` for each image
    configurations.parquet  one `Tried` for each configuration           (ID cells)
    curves.parquet          `Point`s of the selected configuration       (ID cells)
    head.safetensors, head.json  the selected configuration's head       (ID cells)
    model.safetensors, encoder.json      the fine-tuned encoder          (ID cells of `ft`)
    adapter.safetensors, adapter.json    the encoder's adapters          (ID cells of `lora`)
    hyperparameters.parquet              `Own` ones of each configuration (ID cells of extensions)
    extension/                           a copy of the extension's file  (cells of extensions)

An OOD cell tests the head of the ID cell that its task names (`trained_on`). It repeats that
cell's columns about training, validation and the selected configuration. Accuracies and F1 are
percentages, 0-100; correlations are times 100. A task whose target is a number has no accuracy and
no F1: these columns are null. A cell records only what its own step knows. Its address contains the
noise level, the pre-training seed and the encoder; a reader of many cells joins them. A loss is
null when no configuration of the cell gives it a weight, or when the configuration failed.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa

CELL = "cell.parquet"
CONFIGURATIONS = "configurations.parquet"
PREDICTIONS = "predictions.parquet"
CURVES = "curves.parquet"
HEAD = "head.safetensors"
HEAD_CARD = "head.json"
HYPERPARAMETERS = "hyperparameters.parquet"


def _column(meaning: str) -> Any:
    return field(metadata={"meaning": meaning})


@dataclass(frozen=True)
class Cell:
    """The result of one cell."""

    task: str = _column("task file's name")
    domain: str = _column("id or ood")
    trained_on: str | None = _column("ood: the ID task whose head is tested here")
    method: str = _column("the method's name in the experiment")
    head: str = _column("linear, paper, released, ridge, lbfgs, zero_shot, or file:Class")
    fraction: float = _column("percent of each class's training rows that were used")
    label_noise: float = _column("percent of those rows whose label was made wrong; nowhere else")
    tuning_seed: int = _column("seed of weights, batch order, fraction and configurations")
    metric: str = _column("the task's own metric: accuracy, matthews, ... (jobs/tasks/spec.py)")
    test_metric: float = _column("the task's own metric on the test part, percent or times 100")
    test_accuracy: float | None = _column("percent; null: the target is a number")
    test_macro_f1: float | None = _column(
        "percent, over classes with a label or a prediction; null: the target is a number"
    )
    test_mean_per_class_accuracy: float | None = _column(
        "percent, over classes with a label; null: the target is a number"
    )
    test_loss: float = _column(
        "mean cross-entropy on the test part, nats; of numbers the mean squared error, in units of "
        "the variance of the training targets; of masks the mean over patches"
    )
    validation_metric: float = _column(
        "what it was selected by: `metric` on validation; ood: its ID's"
    )
    validation_accuracy: float | None = _column(
        "of the selected configuration, percent; ood: its ID's; null: the target is a number"
    )
    validation_macro_f1: float | None = _column(
        "of the selected configuration, percent; ood: its ID's; null: the target is a number"
    )
    validation_loss: float = _column("of the selected configuration, as test_loss; ood: its ID's")
    n_train: int = _column("training samples (each has all its views); of masks: patches")
    n_validation: int = _column("validation samples")
    n_test: int = _column("test samples")
    n_classes: int = _column("classes of the task; 0: the target is a number")
    views: int = _column("augmented views of a training sample; 0: the plain image alone")
    dim: int = _column("dimensions of the features")
    configurations: int = _column("configurations tried")
    configurations_failed: int = _column("configurations whose loss became non-finite")
    epochs: int = _column("epochs each configuration could be trained for")
    batch_size: int = _column("samples a step, each with all its views")
    selected: int = _column("index of the selected configuration, in drawing order")
    lr: float = _column("of the selected configuration")
    weight_decay: float = _column("of the selected configuration")
    mse: float = _column("loss weight of the selected configuration, scale included")
    cov: float = _column("loss weight of the selected configuration, scale included")
    svd: float = _column("loss weight of the selected configuration, scale included")
    l2: float = _column("of the selected configuration; 0: its head has none")
    test_reads: int = _column("times the test part was read, always after selection: 1")
    test_digest: str = _column(
        "of the test features (lora, ft: images) and labels: equal where the samples are"
    )


@dataclass(frozen=True)
class Tried:
    """One configuration of a cell, selected or not, after its last epoch."""

    configuration: int = _column("index in drawing order")
    lr: float = _column("base learning rate; 0: solved, not trained by steps")
    weight_decay: float = _column("AdamW's decoupled weight decay")
    mse: float = _column("loss weight, scale included")
    cov: float = _column("loss weight, scale included")
    svd: float = _column("loss weight, scale included")
    l2: float = _column("ridge and lbfgs: their penalty; else 0")
    epochs: int = _column("epochs it was trained for; 1 for a head that is solved")
    validation_metric: float | None = _column(
        "the task's own metric, percent or times 100; null if it failed"
    )
    validation_accuracy: float | None = _column("percent; null if it failed, and of numbers")
    validation_macro_f1: float | None = _column("percent; null if it failed, and of numbers")
    validation_loss: float | None = _column("as the cell's test_loss; null if it failed")
    train_loss: float | None = _column("weighted sum, mean of the last epoch")
    train_ce: float | None = _column("cross-entropy, mean of the last epoch; null: of numbers")
    train_squared_error: float | None = _column(
        "of numbers, in units of the training targets' variance, mean of the last epoch; else null"
    )
    train_mse: float | None = _column("unweighted, mean of the last epoch; null: no weight")
    train_cov: float | None = _column("unweighted, mean of the last epoch; null: no weight")
    train_svd: float | None = _column("unweighted, mean of the last epoch; null: no weight")
    selected: bool = _column("whether this is the cell's configuration")
    dropped: str | None = _column("why it was not trained to the end; null: it could win")
    failed: str | None = _column("why it was frozen; null if its losses stayed finite")


@dataclass(frozen=True)
class Own:
    """One hyper-parameter of an extension in one configuration of a cell."""

    configuration: int = _column("index in drawing order")
    name: str = _column("as the extension declares it")
    value: float = _column("as it was drawn")
    selected: bool = _column("whether this is the cell's configuration")


@dataclass(frozen=True)
class Prediction:
    """The selected head's prediction for one test sample; intervals can be paired by sample."""

    key: str = _column("the sample's key")
    label: int = _column("class index, in the order of the task's classes")
    predicted: int = _column("class index, in the order of the task's classes")


@dataclass(frozen=True)
class Estimate:
    """The selected head's prediction for one test sample whose target is a number."""

    key: str = _column("the sample's key")
    target: float = _column("the number, in the task's units")
    predicted: float = _column("the head's number, in the task's units")


@dataclass(frozen=True)
class Segmented:
    """The selected head's prediction for one test image with a mask, and its scores by class."""

    key: str = _column("the image's key")
    patches: tuple[int, ...] = _column(
        "rows of the test part, P * P for each image, that have a class"
    )
    predicted: tuple[int, ...] = _column("class index of each of these patches")
    classes: tuple[int, ...] = _column("class indices that occur in the image or its prediction")
    intersection: tuple[int, ...] = _column(
        "pixels of each of these classes that are predicted as it"
    )
    predicted_pixels: tuple[int, ...] = _column(
        "pixels that are predicted as each of these classes"
    )
    labelled_pixels: tuple[int, ...] = _column("pixels of each of these classes in the mask")


@dataclass(frozen=True)
class Point:
    """One number of a training curve."""

    metric: str = _column(
        "train/{loss,ce,mse,cov,svd}, validation/{accuracy,macro_f1,loss}; of numbers "
        "train/squared_error and validation/{pearson,spearman} in place of ce, accuracy, macro_f1"
    )
    step: int = _column("epoch, from 1")
    value: float = _column("mean of the epoch (train), or after it (validation)")


Row = TypeVar("Row", Cell, Tried, Own, Prediction, Estimate, Segmented, Point)

_ARROW = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    tuple[int, ...]: pa.list_(pa.int64()),
}


def of(kind: type[Cell | Tried | Own | Prediction | Estimate | Segmented | Point]) -> pa.Schema:
    """The Arrow schema of a table of `kind`; each field's metadata holds its meaning."""
    hints = get_type_hints(kind)
    columns = []
    for column in fields(kind):
        hint = hints[column.name]
        optional = get_origin(hint) is types.UnionType
        plain = get_args(hint)[0] if optional else hint
        meaning = {"meaning": column.metadata["meaning"]}
        columns.append(pa.field(column.name, _ARROW[plain], nullable=optional, metadata=meaning))
    return pa.schema(columns)


def to_table(kind: type[Row], rows: Sequence[Row]) -> pa.Table:
    """Rows as a table of `kind`'s schema."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=of(kind))


def from_table(kind: type[Row], table: pa.Table) -> list[Row]:
    """The rows of a table that `to_table` made. Raises ValueError when its columns differ."""
    expected = of(kind)
    if not table.schema.equals(expected):
        raise ValueError(f"columns {table.schema.names} are not those of {kind.__name__}")
    return [kind(**row) for row in table.to_pylist()]

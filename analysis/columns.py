"""What every column of every table is, beside the schemas that fix their order and types.

Takes the schemas, gives a table's columns with their types and descriptions, for people: the
documentation's reference of tables. A column has one meaning in all tables, unless a table gives it
another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from analysis import schemas
from analysis.report.verdicts import COLUMNS as CLAIMS

COLUMNS = {
    "accuracy": "test accuracy, percent, mean over tuning seeds; null where targets are numbers",
    "address": "the step's name in the store, and its folder there",
    "changed": "rows that were changed",
    "cka": "linear CKA with the clean encoder's features, 0-1",
    "claim": "the claim's id, as `nml-orch plan --claims` lists it",
    "clean": "the class before the noise",
    "comparison": "what is compared, in words; empty: nothing was measured",
    "configurations": "configurations that were tried",
    "configurations_failed": "of these: those whose loss was not finite",
    "correct": "whether each test sample is classified correctly, in the order of the keys; null: "
    "a task of masks",
    "correction": "how p values are corrected: Holm over so many claims, or none (exploratory)",
    "corpus": "the pre-training corpus; null: pretrained encoders, or none",
    "cov": "the selected configuration's weight of NMTune's covariance term",
    "deviation": "standard deviation of `score` over tuning seeds; null for one",
    "domain": "id: heads are trained on the task; ood: it only tests heads",
    "draw": "the seed of the draw; null where nothing is drawn",
    "dtype": "the coarsest type that the measured features had",
    "effective_rank": "the exponential of `sve`: about how many directions the features use",
    "eligible": "rows that could change",
    "encoder": "the pretrained encoder; null for one that was trained here",
    "exact": "exact copies, summed over pre-training and training samples",
    "fraction": "percent of the task's training rows that the head was trained on",
    "head": "what the method trains: linear, paper, released, ...",
    "high": "upper end of the 95 % t interval over pre-training seeds; null for fewer than three",
    "images": "the data set",
    "k": "dimensions of the subspaces that are compared",
    "label_noise": "percent of the task's training labels that were made wrong",
    "left_out": "members that are not at every level and seed, and therefore at none",
    "level": "the noise level that was asked for, percent",
    "low": "lower end of the 95 % t interval over pre-training seeds; null for fewer than three",
    "lr": "the selected configuration's learning rate",
    "lsvr": "largest singular value ratio: minus the log of the largest one's share, in nats",
    "macro_f1": "test macro F1, percent, mean over tuning seeds",
    "mean": "the mean over members, then over seeds",
    "members": "the tasks or data sets that the mean is over",
    "method": "the method's name in the experiment file",
    "metric": "the task's own metric; null: accuracy",
    "metrics": "of a `score` over tasks with several metrics: these metrics, in words",
    "mse": "the selected configuration's weight of NMTune's consistency term",
    "n_test": "test samples",
    "n_train": "training rows that were used",
    "n_validation": "validation samples",
    "near": "rescaled or re-encoded copies, summed over pre-training and training samples",
    "noise": "the pre-training noise level, percent; 0 is clean",
    "noise_kind": "the kind of pre-training noise",
    "noisy": "the class after the noise",
    "note": "why a task is not compared",
    "overlap": "test samples that have a copy among the samples that are trained on",
    "p_against": "corrected p value that the comparison goes against the claim",
    "p_for": "corrected p value that the comparison goes as the claim says",
    "part": "train, validation or test",
    "preprocessing": "what is done to features before their spectrum: raw, released or centred",
    "pretrain_seed": "the pre-training seed: the replicate",
    "pretraining": "of `overlap`: those in the pre-training samples; null: unknown",
    "realised_percent": "changed rows, as a percentage of what the level is a percentage of",
    "reason": "why, in a sentence",
    "rows": "training rows",
    "sample_high": "upper end of the 95 % interval over seeds and test samples",
    "sample_low": "lower end of the 95 % interval over seeds and test samples",
    "samples": "a digest of the test samples' keys",
    "scope": "what all replicates share, so that the verdict speaks for it alone",
    "score": "test score by the task's own metric, mean over tuning seeds",
    "seed": "the pre-training seed: the replicate",
    "seeds": "pre-training seeds behind the mean",
    "seeds_needed": "replicates that would show an effect of a declared size; empty: too many",
    "seeds_needed_least": "the same, if the spread over seeds is as small as it may be",
    "seeds_needed_most": "the same, if the spread over seeds is as large as it may be",
    "sentence": "the claim in a sentence",
    "shares": "of masks: what each test image adds to the score, in the order of the keys; the "
    "mean is the score, 0-1",
    "singular_values": "the singular values of the features, largest first",
    "source": "where the claim was published",
    "status": "failed, blocked, missing, skipped, quarantined, constant, ...",
    "step": "the epoch",
    "stored": "the type in which the features are stored",
    "svd": "the selected configuration's weight of NMTune's dominant-singular-value term",
    "sve": "singular value entropy of the features, in nats",
    "task": "the downstream task",
    "test_accuracy": "test accuracy, percent",
    "test_images": "test samples; null: not compared",
    "test_macro_f1": "test macro F1, percent",
    "test_metric": "test score by the task's own metric, named by `metric`",
    "train_accuracy_clean": "training accuracy in the last epoch, on samples left alone",
    "train_accuracy_flipped": "the same on changed samples, by their noisy labels",
    "train_loss_clean": "training loss in the last epoch, on samples left alone",
    "train_loss_flipped": "the same on changed samples; null: there are none",
    "trained_on": "OOD: the ID task whose head is tested",
    "training": "of `overlap`: those in the training rows of the task of its heads",
    "tuning_seed": "the seed of the head's initial weights, batches and search",
    "tuning_seeds": "tuning seeds behind the mean",
    "undecodable": "of the test samples: those that cannot be decoded, and are not compared",
    "unit": "the unit of the comparison: points of the score, nats, or Fisher's z",
    "val_accuracy": "validation accuracy on clean labels, percent; null: there are no labels",
    "val_image_to_text_r1": "R@1 of retrieving the caption of an image, percent",
    "val_text_to_image_r1": "R@1 of retrieving the image of a caption, percent",
    "validation_accuracy": "validation accuracy of the selected configuration, percent",
    "validation_metric": "its validation score by the task's own metric, which selected it",
    "value": "its value in this epoch",
    "verdict": "supported, not supported, undecided, or exploratory (no verdict)",
    "weight_decay": "the selected configuration's weight decay",
}
"""Column -> what it is, in every table that says nothing else."""


@dataclass(frozen=True)
class TableColumns:
    """A table: what holds it, what a row is, and its columns."""

    title: str  # the file of a report, or the table of a `Readout`
    rows: str  # what a row is
    columns: Mapping[str, pa.DataType]
    other: Mapping[str, str] = field(default_factory=dict)  # meanings that only this table has

    def described(self) -> Iterator[tuple[str, str, str]]:
        """Name, type and meaning of each column, in the table's order.

        Raises KeyError for a column without a meaning.
        """
        for name, kind in self.columns.items():
            yield name, _words(kind), self.other.get(name) or COLUMNS[name]


def _words(kind: pa.DataType) -> str:
    """A column's type in words."""
    if pa.types.is_list(kind):
        return f"list of {_words(kind.value_type)}"
    plain = {
        pa.string(): "text",
        pa.binary(): "bytes",
        pa.int64(): "whole number",
        pa.bool_(): "true or false",
    }
    return plain.get(kind, "number")


def _of(schema: pa.Schema) -> dict[str, pa.DataType]:
    return {column.name: column.type for column in schema}


_SUMMARY = {
    "metric": "such as `id/lp/accuracy`: domain, method and measure; or of the features, the "
    "pre-training or the noise",
    "seeds": "pre-training seeds behind the mean; 0: a count, which is exact",
    "dtype": "of the feature space's metrics: the type of the measured features; several are "
    "joined by +",
    "preprocessing": "of the feature space's metrics: raw, released or centred",
}
_CLAIM_NUMBERS = ("mean", "low", "high", "sample_low", "sample_high", "p_for", "p_against")
_CLAIM_COUNTS = ("seeds", "seeds_needed", "seeds_needed_least", "seeds_needed_most")
_CLAIMS = {
    name: pa.float64() if name in _CLAIM_NUMBERS else pa.string() for name in CLAIMS
} | dict.fromkeys(_CLAIM_COUNTS, pa.int64())

TABLES = (
    TableColumns("table.csv", "One row for each finished cell.", _of(schemas.CELLS_SCHEMA)),
    TableColumns(
        "summary.csv",
        "One row for each averaged metric and noise level.",
        _of(schemas.SUMMARY_SCHEMA),
        _SUMMARY,
    ),
    TableColumns(
        "claims.csv",
        "One row for each claim and comparison that tests it.",
        {name: _CLAIMS[name] for name in CLAIMS},
        {"mean": "the comparison's mean over pre-training seeds"},
    ),
    TableColumns(
        "encoders.csv",
        "One row for each finished cell of a pretrained encoder.",
        _of(schemas.PRETRAINED_CELLS_SCHEMA),
    ),
    TableColumns(
        "encoders.parquet",
        "One row for each pretrained encoder, task, method and fraction.",
        _of(schemas.PRETRAINED_SUMMARY_SCHEMA),
    ),
    TableColumns(
        "label-noise.csv",
        "One row for each finished cell with downstream label noise. No clean average has it.",
        _of(schemas.LABEL_NOISE_CELLS_SCHEMA),
    ),
    TableColumns(
        "spectra.csv",
        "One row for each encoder, data set, part and preprocessing. `singular_values` are in "
        "`Readout.spectra` alone, and `Readout.pretrained_spectra` has the column `encoder` in "
        "place of `noise` and `pretrain_seed`.",
        _of(schemas.SPECTRA_SCHEMA),
    ),
    TableColumns(
        "iou.csv",
        "One row for each class of each finished cell of a task of masks, at the largest fraction.",
        _of(schemas.CLASS_IOU_SCHEMA),
        {
            "class": "the class whose pixels are meant",
            "iou": "intersection over union, percent; null: neither labelled nor predicted",
            "pixels": "pixels of the class in the test masks",
            "noise": "noise level, percent; null: a pretrained encoder",
            "encoder": "the pretrained encoder; null: trained here",
        },
    ),
    TableColumns(
        "Readout.scenes",
        "One row for each picture of some test images of tasks of masks, in the order shown.",
        _of(schemas.SCENES_SCHEMA),
        {
            "key": "the test image's key",
            "title": "what the picture shows",
            "is_mask": "whether it is a mask or a prediction",
            "picture": "PNG; of masks: class numbers, 255 where there is no class",
        },
    ),
    TableColumns(
        "rotation.csv",
        "One row for each encoder and data set: its features against those of the clean encoder "
        "of the same seed (`report --rotation`). `angles` are in `Readout.rotation` alone.",
        _of(schemas.ROTATION_SCHEMA),
        {
            "rows": "test samples that are compared",
            "angles": "principal angles of the two subspaces, degrees, rising",
            "overlap": "mean cos² of the angles, 0-1",
        },
    ),
    TableColumns(
        "pretraining.csv",
        "One row for each encoder that was trained here.",
        _of(schemas.PRETRAINING_SCHEMA),
    ),
    TableColumns("noise.csv", "One row for each noise level and draw.", _of(schemas.NOISE_SCHEMA)),
    TableColumns(
        "problems.csv",
        "One row for each step without a result, or with something left out. A column is null if "
        "the step has no such thing.",
        _of(schemas.PROBLEMS_SCHEMA),
    ),
    TableColumns(
        "overlaps.csv",
        "One row for each task and kind of encoder: its test samples that are trained on.",
        _of(schemas.OVERLAPS_SCHEMA),
    ),
    TableColumns(
        "Readout.pretraining_curves",
        "One row for each encoder, metric and epoch. No file of the report.",
        _of(schemas.CURVES_SCHEMA),
        {"metric": "train_accuracy_clean, train_loss_flipped, val_accuracy, ..."},
    ),
    TableColumns(
        "Readout.predictions",
        "One row for each cell of the largest fraction. No file of the report.",
        _of(schemas.PREDICTIONS_SCHEMA),
    ),
    TableColumns(
        "Readout.transition",
        "Training rows by label before and after the noise, at the highest level; pairs that "
        "occur. No file of the report.",
        _of(schemas.TRANSITION_SCHEMA),
    ),
)
"""Every table that a person may read: the files of a report first."""

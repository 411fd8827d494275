"""The Arrow schemas of the tables that a report is made of, and of the summaries it gives.

Percent, 0-100, for every noise level, accuracy and F1. What a column is: `analysis/columns.py`.
Computes nothing.
"""

from __future__ import annotations

import pyarrow as pa

OWN = "test_metric"
"""The column of CELLS_SCHEMA with each task's own metric, by which all is averaged and judged."""

CORRELATIONS = ("matthews", "pearson", "spearman", "pearson_spearman")
"""The metrics that are correlations, times 100: they go from -100 to 100."""

CELLS_SCHEMA = pa.schema(
    [
        pa.field("address", pa.string(), nullable=False),
        pa.field("noise_kind", pa.string(), nullable=False),
        pa.field("noise", pa.float64(), nullable=False),
        pa.field("pretrain_seed", pa.int64(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("trained_on", pa.string()),
        pa.field("method", pa.string(), nullable=False),
        pa.field("head", pa.string()),
        pa.field("fraction", pa.float64(), nullable=False),
        pa.field("tuning_seed", pa.int64(), nullable=False),
        pa.field("test_accuracy", pa.float64()),
        pa.field("test_macro_f1", pa.float64()),
        pa.field("test_metric", pa.float64()),
        pa.field("metric", pa.string()),
        pa.field("validation_metric", pa.float64()),
        pa.field("validation_accuracy", pa.float64()),
        pa.field("n_train", pa.int64()),
        pa.field("n_validation", pa.int64()),
        pa.field("n_test", pa.int64()),
        pa.field("configurations", pa.int64()),
        pa.field("configurations_failed", pa.int64()),
        pa.field("lr", pa.float64()),
        pa.field("weight_decay", pa.float64()),
        pa.field("mse", pa.float64()),
        pa.field("cov", pa.float64()),
        pa.field("svd", pa.float64()),
    ]
)
"""One row for each finished cell."""

PREDICTIONS_SCHEMA = pa.schema(
    [
        pa.field("noise", pa.float64(), nullable=False),
        pa.field("pretrain_seed", pa.int64(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("tuning_seed", pa.int64(), nullable=False),
        pa.field("samples", pa.string(), nullable=False),
        pa.field("correct", pa.list_(pa.bool_())),
        pa.field("shares", pa.list_(pa.float64())),
    ]
)
"""What each test sample adds to a head's score: a row for each cell of the largest fraction.

Of classes: whether it is right. Of masks: what an image adds to a score of all pixels, to first
order (`orchestrator.results.masks`).
"""

CLASS_IOU_SCHEMA = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("noise", pa.float64()),
        pa.field("pretrain_seed", pa.int64()),
        pa.field("encoder", pa.string()),
        pa.field("method", pa.string(), nullable=False),
        pa.field("tuning_seed", pa.int64(), nullable=False),
        pa.field("class", pa.string(), nullable=False),
        pa.field("iou", pa.float64()),
        pa.field("pixels", pa.int64(), nullable=False),
    ]
)
"""IoU of each class of a task of masks: rows for each cell of the largest fraction."""

SCENES_SCHEMA = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("is_mask", pa.bool_(), nullable=False),
        pa.field("picture", pa.binary(), nullable=False),
    ]
)
"""Some test images of tasks of masks, beside their masks and predictions, in the order shown."""

ROTATION_SCHEMA = pa.schema(
    [
        pa.field("noise", pa.float64(), nullable=False),
        pa.field("pretrain_seed", pa.int64(), nullable=False),
        pa.field("images", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("k", pa.int64(), nullable=False),
        pa.field("angles", pa.list_(pa.float64()), nullable=False),
        pa.field("overlap", pa.float64(), nullable=False),
        pa.field("cka", pa.float64(), nullable=False),
    ]
)
"""An encoder's features against the clean encoder's of the same seed, for each data set."""

TRANSITION_SCHEMA = pa.schema(
    [
        pa.field("level", pa.float64(), nullable=False),
        pa.field("clean", pa.string(), nullable=False),
        pa.field("noisy", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
    ]
)
"""Training rows by label before and after the noise, at the highest level; pairs that occur."""

SPECTRA_SCHEMA = pa.schema(
    [
        pa.field("address", pa.string(), nullable=False),
        pa.field("noise", pa.float64(), nullable=False),
        pa.field("pretrain_seed", pa.int64(), nullable=False),
        pa.field("images", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        pa.field("preprocessing", pa.string(), nullable=False),
        pa.field("sve", pa.float64(), nullable=False),
        pa.field("lsvr", pa.float64(), nullable=False),
        pa.field("effective_rank", pa.float64(), nullable=False),
        pa.field("singular_values", pa.list_(pa.float64())),
        pa.field("dtype", pa.string()),
        pa.field("stored", pa.string()),
    ]
)
"""One row for each encoder, data set, part and preprocessing."""

PRETRAINING_SCHEMA = pa.schema(
    [
        pa.field("address", pa.string(), nullable=False),
        pa.field("noise", pa.float64(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("val_accuracy", pa.float64()),
        pa.field("val_image_to_text_r1", pa.float64()),
        pa.field("val_text_to_image_r1", pa.float64()),
        pa.field("train_loss_clean", pa.float64()),
        pa.field("train_loss_flipped", pa.float64()),
        pa.field("train_accuracy_clean", pa.float64()),
        pa.field("train_accuracy_flipped", pa.float64()),
    ]
)
"""One row for each encoder trained here."""

VALIDATION = ("val_accuracy", "val_image_to_text_r1", "val_text_to_image_r1")
"""The measures on held-out samples, in percent; the objective decides which of them exist."""

CURVES_SCHEMA = pa.schema(
    [
        pa.field("address", pa.string(), nullable=False),
        pa.field("noise", pa.float64(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)
"""One row for each encoder, metric and epoch."""

NOISE_SCHEMA = pa.schema(
    [
        pa.field("level", pa.float64(), nullable=False),
        pa.field("draw", pa.int64()),
        pa.field("eligible", pa.int64(), nullable=False),
        pa.field("changed", pa.int64(), nullable=False),
        pa.field("realised_percent", pa.float64(), nullable=False),
    ]
)
"""One row for each noise level and draw."""

PROBLEMS_SCHEMA = pa.schema(
    [
        pa.field("address", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("noise", pa.float64()),
        pa.field("seed", pa.int64()),
        pa.field("task", pa.string()),
        pa.field("method", pa.string()),
        pa.field("label_noise", pa.float64()),
        pa.field("reason", pa.string()),
    ]
)
"""One row for each step without a result, or with something left out or quarantined.

A column is null if the step has no such thing: a corpus has no noise level, features have no task,
a pretrained encoder's cells have no noise level and no pre-training seed.
"""

CONSTANT = "constant"
"""The status in PROBLEMS_SCHEMA of a cell that predicts the same for every test sample."""

OVERLAPS_SCHEMA = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("corpus", pa.string()),
        pa.field("test_images", pa.int64()),
        pa.field("undecodable", pa.int64()),
        pa.field("overlap", pa.int64()),
        pa.field("pretraining", pa.int64()),
        pa.field("training", pa.int64()),
        pa.field("exact", pa.int64()),
        pa.field("near", pa.int64()),
        pa.field("note", pa.string(), nullable=False),
    ]
)
"""One row for each task and kind of encoder: its test samples that are trained on."""

SUMMARY_SCHEMA = pa.schema(
    [
        pa.field("metric", pa.string(), nullable=False),
        pa.field("noise", pa.float64(), nullable=False),
        pa.field("mean", pa.float64(), nullable=False),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("seeds", pa.int64(), nullable=False),
        pa.field("members", pa.list_(pa.string()), nullable=False),
        pa.field("left_out", pa.list_(pa.string()), nullable=False),
        pa.field("preprocessing", pa.string()),
        pa.field("dtype", pa.string()),
        pa.field("metrics", pa.string()),
    ]
)
"""One row for each metric and noise level."""


def _pretrained(of_levels: pa.Schema) -> pa.Schema:
    """A table's schema with the encoder's name in place of the noise level and the seed."""
    left_out = ("noise_kind", "noise", "pretrain_seed")
    kept = [column for column in of_levels if column.name not in left_out]
    return pa.schema([pa.field("encoder", pa.string(), nullable=False), *kept])


def _with_label_noise(cells: pa.Schema) -> pa.Schema:
    """The cells' schema with the label noise; level and seed are null for a pretrained encoder."""
    nullable = ("noise", "pretrain_seed")
    kept = [column.with_nullable(True) if column.name in nullable else column for column in cells]
    return pa.schema(
        [
            *kept,
            pa.field("encoder", pa.string()),
            pa.field("label_noise", pa.float64(), nullable=False),
        ]
    )


PRETRAINED_CELLS_SCHEMA = _pretrained(CELLS_SCHEMA)
"""One row for each finished cell of a pretrained encoder."""

PRETRAINED_SPECTRA_SCHEMA = _pretrained(SPECTRA_SCHEMA)
"""One row for each pretrained encoder, data set, part and preprocessing."""

LABEL_NOISE_CELLS_SCHEMA = _with_label_noise(CELLS_SCHEMA)
"""One row for each finished cell with downstream label noise; no clean average includes it."""

PRETRAINED_SUMMARY_SCHEMA = pa.schema(
    [
        pa.field("encoder", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("fraction", pa.float64(), nullable=False),
        pa.field("accuracy", pa.float64()),
        pa.field("macro_f1", pa.float64()),
        pa.field("metric", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("deviation", pa.float64()),
        pa.field("tuning_seeds", pa.int64(), nullable=False),
    ]
)
"""One row for each pretrained encoder, task, method and fraction."""

CLEAN = 0.0
"""The noise level, in percent, that the others are compared with."""

SLIGHT = 10.0
"""Up to this level, in percent, the papers call noise slight."""

DOMAINS = ("id", "ood")
REGULARISERS = ("mse", "cov", "svd")
PREPROCESSINGS = ("raw", "released", "centred")
"""What is done to features before their spectrum is computed."""

PREPROCESSING = "released"
"""The preprocessing of the metrics `features/<domain>/sve` and `.../lsvr`: the papers'."""

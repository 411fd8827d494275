"""What a report is made of: the tables of one experiment, and the tidy summary of them.

Takes Arrow tables that somebody read from a store, checks them against the schemas below, and
gives averages by noise level. Percent, 0-100, for every noise level, accuracy and F1. Reads no
store and draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from analysis import named, relabelled
from analysis.averages import Average, Score, average

CELLS_SCHEMA = pa.schema(
    [
        pa.field("address", pa.string(), nullable=False),
        pa.field("noise_kind", pa.string(), nullable=False),
        pa.field("noise", pa.float64(), nullable=False),  # level, percent
        pa.field("pretrain_seed", pa.int64(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),  # "id" or "ood"
        pa.field("trained_on", pa.string()),  # OOD: the ID task whose head is tested
        pa.field("method", pa.string(), nullable=False),
        pa.field("head", pa.string()),  # what the method trains: linear, paper, released, ...
        pa.field("fraction", pa.float64(), nullable=False),  # of the training rows, percent
        pa.field("tuning_seed", pa.int64(), nullable=False),
        pa.field("test_accuracy", pa.float64()),
        pa.field("test_macro_f1", pa.float64()),
        pa.field("test_metric", pa.float64()),  # the task's own, named by `metric`
        pa.field("metric", pa.string()),
        pa.field("validation_accuracy", pa.float64()),
        pa.field("n_train", pa.int64()),
        pa.field("n_validation", pa.int64()),
        pa.field("n_test", pa.int64()),
        pa.field("configurations", pa.int64()),  # tried
        pa.field("configurations_failed", pa.int64()),
        pa.field("lr", pa.float64()),  # of the selected configuration, as are the next four
        pa.field("weight_decay", pa.float64()),
        pa.field("mse", pa.float64()),
        pa.field("cov", pa.float64()),
        pa.field("svd", pa.float64()),
    ]
)
"""One row a finished cell."""

ANSWERS_SCHEMA = pa.schema(
    [
        pa.field("noise", pa.float64(), nullable=False),
        pa.field("pretrain_seed", pa.int64(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("tuning_seed", pa.int64(), nullable=False),
        pa.field("samples", pa.string(), nullable=False),  # digest of the test samples' keys
        pa.field("correct", pa.list_(pa.bool_()), nullable=False),  # in order of the keys
    ]
)
"""One row a finished cell of the largest fraction: which test samples its head got right."""

ROTATION_SCHEMA = pa.schema(
    [
        pa.field("noise", pa.float64(), nullable=False),
        pa.field("pretrain_seed", pa.int64(), nullable=False),
        pa.field("images", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),  # test samples compared
        pa.field("k", pa.int64(), nullable=False),  # dimensions of the subspaces
        pa.field("angles", pa.list_(pa.float64()), nullable=False),  # degrees, rising
        pa.field("overlap", pa.float64(), nullable=False),  # mean cos^2 of the angles, 0-1
        pa.field("cka", pa.float64(), nullable=False),  # linear, 0-1
    ]
)
"""One row an encoder and image set, against the clean encoder of the same seed."""

TRANSITION_SCHEMA = pa.schema(
    [
        pa.field("level", pa.float64(), nullable=False),
        pa.field("clean", pa.string(), nullable=False),  # class name
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
        pa.field("images", pa.string(), nullable=False),  # the image set
        pa.field("domain", pa.string(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        pa.field("preprocessing", pa.string(), nullable=False),  # raw, released or centred
        pa.field("sve", pa.float64(), nullable=False),
        pa.field("lsvr", pa.float64(), nullable=False),
        pa.field("effective_rank", pa.float64(), nullable=False),
        pa.field("singular_values", pa.list_(pa.float64())),
    ]
)
"""One row an encoder, image set, part and preprocessing."""

PRETRAINING_SCHEMA = pa.schema(
    [
        pa.field("address", pa.string(), nullable=False),
        pa.field("noise", pa.float64(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("val_accuracy", pa.float64()),  # on clean labels; null without labels
        pa.field("val_image_to_text_r1", pa.float64()),  # R@1, percent; null without captions
        pa.field("val_text_to_image_r1", pa.float64()),
        pa.field("train_loss_clean", pa.float64()),  # last epoch, samples left alone
        pa.field("train_loss_flipped", pa.float64()),  # last epoch, changed samples; null if none
        pa.field("train_accuracy_clean", pa.float64()),
        pa.field("train_accuracy_flipped", pa.float64()),  # on their noisy labels
    ]
)
"""One row an encoder."""

VALIDATION = ("val_accuracy", "val_image_to_text_r1", "val_text_to_image_r1")
"""What an encoder's held-out samples are asked, in percent; which of them, its objective says."""

CURVES_SCHEMA = pa.schema(
    [
        pa.field("address", pa.string(), nullable=False),
        pa.field("noise", pa.float64(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),  # train_accuracy_clean, ..., any prefix/
        pa.field("step", pa.int64(), nullable=False),  # epoch
        pa.field("value", pa.float64(), nullable=False),
    ]
)
"""One row an encoder, metric and epoch."""

NOISE_SCHEMA = pa.schema(
    [
        pa.field("level", pa.float64(), nullable=False),  # asked for, percent
        pa.field("eligible", pa.int64(), nullable=False),  # rows that could change
        pa.field("changed", pa.int64(), nullable=False),
        pa.field("realised_percent", pa.float64(), nullable=False),
    ]
)
"""One row a noise level."""

PROBLEMS_SCHEMA = pa.schema(
    [
        pa.field("address", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # failed, blocked, missing, skipped, ...
        pa.field("reason", pa.string()),
    ]
)
"""One row a step without a result, or with something left out or quarantined."""

SUMMARY_SCHEMA = pa.schema(
    [
        pa.field("metric", pa.string(), nullable=False),  # id/<method>/accuracy, features/sve, ...
        pa.field("noise", pa.float64(), nullable=False),
        pa.field("mean", pa.float64(), nullable=False),
        pa.field("low", pa.float64()),  # 95 % t interval over seeds; null for one seed
        pa.field("high", pa.float64()),
        pa.field("seeds", pa.int64(), nullable=False),  # pre-training seeds; 0: a count, exact
        pa.field("members", pa.list_(pa.string()), nullable=False),  # what the mean is over
        pa.field("left_out", pa.list_(pa.string()), nullable=False),  # not at every level and seed
        pa.field("preprocessing", pa.string()),  # of the feature space's metrics
    ]
)
"""One row a metric and noise level."""

NAMED_SCHEMA = named.schema_of(CELLS_SCHEMA)
"""One row a finished cell of an encoder that was named, not trained here."""

NAMED_SPECTRA_SCHEMA = named.schema_of(SPECTRA_SCHEMA)
"""One row such an encoder, image set, part and preprocessing."""

RELABELLED_SCHEMA = relabelled.schema_of(CELLS_SCHEMA)
"""One row a finished cell whose training labels were made wrong; in no average of clean cells."""

DOMAINS = ("id", "ood")
REGULARISERS = ("mse", "cov", "svd")
PREPROCESSING = "released"
"""The preprocessing that `features/sve` and `features/lsvr` speak of: the papers' own."""


Place = tuple[float, int, str, str, float, int]
"""Where a cell stands: noise, pre-training seed, task, method, fraction, tuning seed."""


@dataclass(frozen=True)
class Question:
    """What the experiment set out to measure; its gaps are seen against this."""

    title: str
    corpus: str
    noise_kind: str
    objective: str
    recipe: str
    encoder: str  # the model's name
    levels: tuple[float, ...]
    seeds: tuple[int, ...]  # of pre-training
    id_tasks: tuple[str, ...]
    ood_tasks: tuple[str, ...]
    methods: tuple[str, ...]
    fractions: tuple[float, ...]
    tuning_seeds: tuple[int, ...]
    encoders: tuple[str, ...] = ()  # named, not trained here
    label_noise: tuple[float, ...] = (0.0,)  # of the tasks' own training labels, percent
    cells: frozenset[Place] | None = None  # none: every task, method, fraction and seed at each

    def asked(self) -> frozenset[Place]:
        """The clean cells that were asked for, of encoders trained here."""
        if self.cells is not None:
            return self.cells
        tasks = (*self.id_tasks, *self.ood_tasks)
        encoders = product(self.levels, self.seeds, tasks)
        heads = list(product(self.methods, self.fractions, self.tuning_seeds))
        return frozenset((*encoder, *head) for encoder in encoders for head in heads)

    def tasks(self, domain: str) -> tuple[str, ...]:
        """The tasks of "id" or "ood"."""
        return self.id_tasks if domain == "id" else self.ood_tasks


@dataclass(frozen=True)
class Readout:
    """The tables of one experiment, each of its schema above; ValueError when one is not."""

    experiment: str
    question: Question
    cells: pa.Table
    spectra: pa.Table = field(default_factory=SPECTRA_SCHEMA.empty_table)
    pretraining: pa.Table = field(default_factory=PRETRAINING_SCHEMA.empty_table)
    pretraining_curves: pa.Table = field(default_factory=CURVES_SCHEMA.empty_table)
    noise: pa.Table = field(default_factory=NOISE_SCHEMA.empty_table)
    problems: pa.Table = field(default_factory=PROBLEMS_SCHEMA.empty_table)
    answers: pa.Table = field(default_factory=ANSWERS_SCHEMA.empty_table)
    rotation: pa.Table = field(default_factory=ROTATION_SCHEMA.empty_table)
    transition: pa.Table = field(default_factory=TRANSITION_SCHEMA.empty_table)
    named: pa.Table = field(default_factory=NAMED_SCHEMA.empty_table)
    named_spectra: pa.Table = field(default_factory=NAMED_SPECTRA_SCHEMA.empty_table)
    relabelled: pa.Table = field(default_factory=RELABELLED_SCHEMA.empty_table)
    provenance: Mapping[str, Any] = field(default_factory=dict)  # JSON values, nested as it likes

    def __post_init__(self) -> None:
        if not self.question.fractions:
            raise ValueError("question.fractions is empty; name at least one, in percent")
        for name, schema in _TABLES.items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), schema))

    @property
    def levels(self) -> tuple[float, ...]:
        """Every noise level asked for or found, rising."""
        found = {
            *self.question.levels,
            *self.cells["noise"].to_pylist(),
            *self.pretraining["noise"].to_pylist(),
        }
        return tuple(sorted(found))

    @property
    def fraction(self) -> float:
        """The fraction that summaries speak of: the largest asked for."""
        return max(self.question.fractions)

    def seeds(self) -> tuple[int, ...]:
        """The pre-training seeds with finished cells."""
        return tuple(sorted(set(self.cells["pretrain_seed"].to_pylist())))

    def domains(self) -> tuple[str, ...]:
        """The domains with finished cells, ID first."""
        found = set(self.cells["domain"].to_pylist())
        return tuple(domain for domain in DOMAINS if domain in found)

    def methods(self) -> tuple[str, ...]:
        """The methods asked for, in their order, then others found in the cells."""
        found = sorted(set(self.cells["method"].to_pylist()) - set(self.question.methods))
        return (*self.question.methods, *found)

    def terms(self, method: str) -> frozenset[str]:
        """The regularisers that any finished cell of the method gave a weight."""
        cells = self.cells.filter(pc.field("method") == method)
        return frozenset(
            term for term in REGULARISERS if any(w for w in cells[term].unique().to_pylist())
        )

    def head(self, method: str) -> str | None:
        """What the method trains, as its cells say."""
        found = self.cells.filter(pc.field("method") == method)["head"].drop_null()
        return found[0].as_py() if len(found) else None

    def variants(self) -> tuple[str, ...]:
        """The methods that are NMTune whole: of its name, and not short of a regulariser."""
        named = (method for method in self.methods() if method.startswith("nmtune"))
        return tuple(m for m in named if len(self.terms(m)) in (0, len(REGULARISERS)))

    def accuracy(
        self,
        domain: str,
        method: str,
        measure: str = "test_accuracy",
        *,
        fraction: float | None = None,
        task: str | None = None,
    ) -> Average:
        """A measure of the cells over tasks, by level (one task alone when it is named).

        `measure` is a column of CELLS_SCHEMA; `fraction` defaults to the largest asked for.
        """
        where = (
            (pc.field("domain") == domain)
            & (pc.field("method") == method)
            & (pc.field("fraction") == (self.fraction if fraction is None else fraction))
        )
        if task is not None:
            where &= pc.field("task") == task
        places = ["noise", "pretrain_seed", "task", "tuning_seed"]
        return average(
            Score(row["noise"], row["pretrain_seed"], row["task"], value, row["tuning_seed"])
            for row, value in _valued(self.cells.filter(where), places, measure)
        )

    def space(
        self, measure: str, *, domain: str = "id", preprocessing: str = PREPROCESSING
    ) -> Average:
        """A measure of the test parts' feature spaces over a domain's image sets, by level."""
        where = (
            (pc.field("domain") == domain)
            & (pc.field("part") == "test")
            & (pc.field("preprocessing") == preprocessing)
        )
        return average(
            Score(row["noise"], row["pretrain_seed"], row["images"], value)
            for row, value in _valued(
                self.spectra.filter(where), ["noise", "pretrain_seed", "images"], measure
            )
        )

    def turned(self, measure: str, domain: str) -> Average:
        """A measure of ROTATION_SCHEMA over a domain's image sets, by level; none at 0 %."""
        return average(
            Score(row["noise"], row["pretrain_seed"], row["images"], value)
            for row, value in _valued(
                self.rotation.filter(pc.field("domain") == domain),
                ["noise", "pretrain_seed", "images"],
                measure,
            )
        )

    def probe(self) -> str:
        """The method that shows the encoder, not the head: the linear probe where it was run."""
        methods = self.methods()
        return "lp" if "lp" in methods or not methods else methods[0]

    def pretrained(self, measure: str) -> Average:
        """A column of the pre-training table over the runs, by level."""
        return average(
            Score(row["noise"], row["seed"], self.question.corpus, value)
            for row, value in _valued(self.pretraining, ["noise", "seed"], measure)
        )


_TABLES = {
    "cells": CELLS_SCHEMA,
    "spectra": SPECTRA_SCHEMA,
    "pretraining": PRETRAINING_SCHEMA,
    "pretraining_curves": CURVES_SCHEMA,
    "noise": NOISE_SCHEMA,
    "problems": PROBLEMS_SCHEMA,
    "answers": ANSWERS_SCHEMA,
    "rotation": ROTATION_SCHEMA,
    "transition": TRANSITION_SCHEMA,
    "named": NAMED_SCHEMA,
    "named_spectra": NAMED_SPECTRA_SCHEMA,
    "relabelled": RELABELLED_SCHEMA,
}


def _checked(name: str, table: pa.Table, schema: pa.Schema) -> pa.Table:
    missing = [column for column in schema.names if column not in table.column_names]
    if missing:
        raise ValueError(f"the readout's {name} table lacks {', '.join(missing)}; add them")
    chosen = table.select(schema.names)
    for column in schema:
        if not column.nullable and chosen[column.name].null_count:
            raise ValueError(f"the readout's {name} table has a row without {column.name}")
    return chosen.cast(schema)


def _valued(
    table: pa.Table, places: list[str], measure: str
) -> Iterator[tuple[dict[str, Any], float]]:
    """The rows' places, and the measure, wherever it holds a finite number."""
    rows = table.select(places).to_pylist()
    for row, value in zip(rows, table[measure].to_pylist(), strict=True):
        if value is not None and math.isfinite(value):
            yield row, float(value)


def summary(readout: Readout) -> pa.Table:
    """Every averaged metric by noise level, as SUMMARY_SCHEMA: figures and tracking draw this.

    Metrics: `<domain>/<method>/accuracy` and `/macro_f1` (test part, largest fraction),
    `features/sve` and `features/lsvr` (ID test parts, preprocessing `released`),
    `pretrain/` and each of VALIDATION, `noise/realised_percent`.
    """
    rows: list[dict[str, Any]] = []
    for domain in readout.domains():
        for method in readout.methods():
            for column, name in (("test_accuracy", "accuracy"), ("test_macro_f1", "macro_f1")):
                found = readout.accuracy(domain, method, column)
                rows += _rows(f"{domain}/{method}/{name}", found)
    for measure in ("sve", "lsvr"):
        rows += _rows(f"features/{measure}", readout.space(measure), PREPROCESSING)
    for measure in VALIDATION:
        rows += _rows(f"pretrain/{measure}", readout.pretrained(measure))
    rows += [
        {
            "metric": "noise/realised_percent",
            "noise": row["level"],
            "mean": row["realised_percent"],
            "seeds": 0,
            "members": [readout.question.corpus],
            "left_out": [],
        }
        for row in sorted(readout.noise.to_pylist(), key=lambda row: row["level"])
    ]
    return pa.Table.from_pylist(rows, schema=SUMMARY_SCHEMA)


def _rows(
    metric: str, found: Average, preprocessing: str | None = None
) -> Iterator[dict[str, Any]]:
    for noise in sorted(found.levels):
        interval = found.interval(noise)
        if interval is not None:
            yield {
                "metric": metric,
                "noise": noise,
                "mean": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "seeds": interval.n,
                "members": list(found.members),
                "left_out": list(found.left_out),
                "preprocessing": preprocessing,
            }

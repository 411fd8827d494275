"""The tables of one experiment, and the averages by noise level that are taken of them.

Takes Arrow tables that somebody read from a store, checks them against `analysis.schemas`. Percent,
0-100, for every noise level, accuracy and F1. Reads no store and draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from analysis.averages import PERCENT, Average, Bounds, Score, average
from analysis.own_claim import OwnClaim
from analysis.registration import Registration
from analysis.schemas import (
    CELLS_SCHEMA,
    CLASS_IOU_SCHEMA,
    CORRELATIONS,
    CURVES_SCHEMA,
    DOMAINS,
    LABEL_NOISE_CELLS_SCHEMA,
    NOISE_SCHEMA,
    OVERLAPS_SCHEMA,
    OWN,
    PREDICTIONS_SCHEMA,
    PREPROCESSING,
    PRETRAINED_CELLS_SCHEMA,
    PRETRAINED_SPECTRA_SCHEMA,
    PRETRAINING_SCHEMA,
    PROBLEMS_SCHEMA,
    REGULARISERS,
    ROTATION_SCHEMA,
    SCENES_SCHEMA,
    SPECTRA_SCHEMA,
    TRANSITION_SCHEMA,
)
from analysis.statistics import LEAST_SEEDS

NoiseDraws = Literal["own", "shared", "given"]
"""Whether each replicate has its own draw of noise, all have one, or the labels are given."""

CellKey = tuple[float, int, str, str, float, int]
"""Noise level, pre-training seed, task, method, fraction, tuning seed."""


@dataclass(frozen=True)
class Question:
    """What the experiment set out to measure. Cells that are asked for here and absent are gaps."""

    title: str
    corpus: str
    noise_kind: str
    objective: str
    recipe: str
    encoder: str  # the model's name
    levels: tuple[float, ...]
    seeds: tuple[int, ...]  # of pre-training: one replicate each
    id_tasks: tuple[str, ...]
    ood_tasks: tuple[str, ...]
    methods: tuple[str, ...]
    fractions: tuple[float, ...]
    tuning_seeds: tuple[int, ...]  # of every encoder; none: each replicate's own seed
    encoders: tuple[str, ...] = ()  # pretrained ones, not trained here
    apis: Mapping[str, int] = field(default_factory=dict)  # those behind APIs -> model changes
    label_noise: tuple[float, ...] = (0.0,)  # of the tasks' own training labels, percent
    cells: frozenset[CellKey] | None = None  # None: every combination of the above
    noise_draws: NoiseDraws = "own"
    controls: Mapping[str, str] = field(default_factory=dict)  # of each regularised method
    registrations: tuple[Registration, ...] = ()  # of claims, oldest first
    titles: Mapping[str, str] = field(default_factory=dict)  # of the tasks, by name

    def registered(self) -> tuple[str, ...] | None:
        """The ids of the registered claims; None if none is, and all share the correction."""
        last = self.registrations[-1].claims if self.registrations else None
        return None if last is None else tuple(last)

    def asked(self) -> frozenset[CellKey]:
        """The requested cells without label noise, of encoders trained here."""
        if self.cells is not None:
            return self.cells
        tasks = (*self.id_tasks, *self.ood_tasks)
        return frozenset(
            (level, seed, task, method, fraction, tuning_seed)
            for level, seed, task in product(self.levels, self.seeds, tasks)
            for method, fraction in product(self.methods, self.fractions)
            for tuning_seed in self.tuning_seeds or (seed,)
        )

    @property
    def scope(self) -> str:
        """What all replicates share, so that a verdict speaks for it alone; else empty."""
        if len(self.seeds) < 2:
            return ""
        shared = {"own": [], "shared": ["this draw of noise"], "given": ["these given labels"]}
        parts = shared[self.noise_draws]
        if self.tuning_seeds:
            several = "seeds" if len(self.tuning_seeds) > 1 else "seed"
            parts = [*parts, f"tuning {several} {', '.join(map(str, self.tuning_seeds))}"]
        return f"for {' and '.join(parts)}" if parts else ""

    def tasks(self, domain: str) -> tuple[str, ...]:
        """The tasks of "id" or "ood"."""
        return self.id_tasks if domain == "id" else self.ood_tasks


@dataclass(frozen=True)
class Readout:
    """The tables of one experiment; raises ValueError when one does not fit its schema."""

    experiment: str
    question: Question
    cells: pa.Table
    spectra: pa.Table = field(default_factory=SPECTRA_SCHEMA.empty_table)
    pretraining: pa.Table = field(default_factory=PRETRAINING_SCHEMA.empty_table)
    pretraining_curves: pa.Table = field(default_factory=CURVES_SCHEMA.empty_table)
    noise: pa.Table = field(default_factory=NOISE_SCHEMA.empty_table)
    problems: pa.Table = field(default_factory=PROBLEMS_SCHEMA.empty_table)
    overlaps: pa.Table = field(default_factory=OVERLAPS_SCHEMA.empty_table)
    predictions: pa.Table = field(default_factory=PREDICTIONS_SCHEMA.empty_table)
    rotation: pa.Table = field(default_factory=ROTATION_SCHEMA.empty_table)
    transition: pa.Table = field(default_factory=TRANSITION_SCHEMA.empty_table)
    pretrained_cells: pa.Table = field(default_factory=PRETRAINED_CELLS_SCHEMA.empty_table)
    pretrained_spectra: pa.Table = field(default_factory=PRETRAINED_SPECTRA_SCHEMA.empty_table)
    label_noise_cells: pa.Table = field(default_factory=LABEL_NOISE_CELLS_SCHEMA.empty_table)
    class_iou: pa.Table = field(default_factory=CLASS_IOU_SCHEMA.empty_table)
    scenes: pa.Table = field(default_factory=SCENES_SCHEMA.empty_table)
    provenance: Mapping[str, Any] = field(default_factory=dict)  # JSON values, nested
    run_pages: Mapping[str, str] = field(default_factory=dict)  # a cell's address -> its run's page
    own_claims: tuple[OwnClaim, ...] = ()

    def __post_init__(self) -> None:
        if not self.question.fractions:
            raise ValueError("question.fractions is empty; name at least one, in percent")
        for name, schema in _TABLES.items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), schema))

    @property
    def levels(self) -> tuple[float, ...]:
        """Every noise level that was requested or found, rising."""
        found = {
            *self.question.levels,
            *self.cells["noise"].to_pylist(),
            *self.pretraining["noise"].to_pylist(),
        }
        return tuple(sorted(found))

    @property
    def fraction(self) -> float:
        """The fraction that summaries use: the largest requested, in percent of the rows."""
        return max(self.question.fractions)

    def finished_keys(self) -> frozenset[CellKey]:
        """The requested cells that are finished."""
        names = ("noise", "pretrain_seed", "task", "method", "fraction", "tuning_seed")
        columns = [self.cells[name].to_pylist() for name in names]
        return self.question.asked() & set(zip(*columns, strict=True))

    def finished(self) -> tuple[int, int]:
        """How many of the requested cells are finished, and how many were requested."""
        return len(self.finished_keys()), len(self.question.asked())

    def sorted_cells(self) -> list[dict[str, Any]]:
        """The cells as rows, sorted by domain, task, method, fraction, noise, seeds and address."""
        keys = ("domain", "task", "method", "fraction", "noise", "pretrain_seed", "tuning_seed")
        rows: list[dict[str, Any]] = self.cells.to_pylist()
        return sorted(rows, key=lambda row: (*(row[key] for key in keys), row["address"]))

    def seeds(self) -> tuple[int, ...]:
        """The pre-training seeds with finished cells."""
        return tuple(sorted(set(self.cells["pretrain_seed"].to_pylist())))

    def several(self) -> bool:
        """Whether there are replicates enough for intervals and verdicts."""
        return len(self.seeds()) >= LEAST_SEEDS

    def domains(self) -> tuple[str, ...]:
        """The domains with finished cells, ID first."""
        found = set(self.cells["domain"].to_pylist())
        return tuple(domain for domain in DOMAINS if domain in found)

    def methods(self) -> tuple[str, ...]:
        """The requested methods in their order, then others found in the cells."""
        found = sorted(set(self.cells["method"].to_pylist()) - set(self.question.methods))
        return (*self.question.methods, *found)

    def regularisers(self, method: str) -> frozenset[str]:
        """The regularisers that have a weight above 0 in any finished cell of the method."""
        cells = self.cells.filter(pc.field("method") == method)
        return frozenset(
            term for term in REGULARISERS if any(w for w in cells[term].unique().to_pylist())
        )

    def head(self, method: str) -> str | None:
        """The head that the method trains, as its cells record it; None when none does."""
        found = self.cells.filter(pc.field("method") == method)["head"].drop_null()
        return found[0].as_py() if len(found) else None

    def nmtune_variants(self) -> tuple[str, ...]:
        """The methods that are full NMTune: named so, and with all regularisers."""
        controls = set(self.question.controls.values())
        called = (m for m in self.methods() if m.startswith("nmtune") and m not in controls)
        return tuple(m for m in called if len(self.regularisers(m)) in (0, len(REGULARISERS)))

    def control(self, method: str) -> str | None:
        """The same head, views and budget without regularisers; None if there is none."""
        return self.question.controls.get(method)

    def scores(
        self,
        domain: str,
        method: str,
        measure: str = OWN,
        *,
        fraction: float | None = None,
        task: str | None = None,
    ) -> Average:
        """A measure of the cells over tasks, by noise level; of one task alone when it is given.

        `measure` is a column of CELLS_SCHEMA, each task's own metric if none is given; `fraction`
        defaults to the largest requested.
        """
        where = (
            (pc.field("domain") == domain)
            & (pc.field("method") == method)
            & (pc.field("fraction") == (self.fraction if fraction is None else fraction))
        )
        if task is not None:
            where &= pc.field("task") == task
        keys = ["noise", "pretrain_seed", "task", "tuning_seed"]
        cells = self.cells.filter(where)
        bounds = bounds_of(cells["metric"].unique().to_pylist()) if measure == OWN else PERCENT
        return average(
            (
                Score(row["noise"], row["pretrain_seed"], row["task"], value, row["tuning_seed"])
                for row, value in _valued(cells, keys, measure)
            ),
            bounds,
        )

    def metrics(self, domain: str | None = None) -> dict[str, str]:
        """Each task's own metric, of one domain or of both."""
        pairs = self.cells.filter(pc.field("domain") == domain) if domain else self.cells
        names = zip(pairs["task"].to_pylist(), pairs["metric"].to_pylist(), strict=True)
        return {task: metric or "accuracy" for task, metric in sorted(set(names))}

    def feature_space(
        self, measure: str, *, domain: str = "id", preprocessing: str = PREPROCESSING
    ) -> Average:
        """A measure of the test features over a domain's data sets, by noise level.

        `measure` is "sve", "lsvr" or "effective_rank".
        """
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

    def features_dtype(self, column: str = "dtype", *, domain: str | None = None) -> str:
        """The type of the measured test features, such as float32; several joined by "+".

        `column` is "dtype" or "stored", of SPECTRA_SCHEMA. Empty where nothing records it.
        """
        where = pc.field("part") == "test"
        if domain is not None:
            where &= pc.field("domain") == domain
        found = self.spectra.filter(where)[column].unique().drop_null().to_pylist()
        return "+".join(sorted(found))

    def feature_rotation(self, measure: str, domain: str) -> Average:
        """A column of ROTATION_SCHEMA over a domain's data sets, by noise level; 0 % has none."""
        return average(
            Score(row["noise"], row["pretrain_seed"], row["images"], value)
            for row, value in _valued(
                self.rotation.filter(pc.field("domain") == domain),
                ["noise", "pretrain_seed", "images"],
                measure,
            )
        )

    def probe(self) -> str:
        """The method that tells most of the encoder: the linear probe if it was run."""
        methods = self.methods()
        return "lp" if "lp" in methods or not methods else methods[0]

    def pretraining_average(self, measure: str) -> Average:
        """A column of PRETRAINING_SCHEMA over the runs, by noise level."""
        return average(
            (
                Score(row["noise"], row["seed"], self.question.corpus, value)
                for row, value in _valued(self.pretraining, ["noise", "seed"], measure)
            ),
            None if "loss" in measure else PERCENT,
        )


def bounds_of(metrics: Iterable[str | None]) -> Bounds:
    """What an average over tasks with these metrics can be: correlations go below zero."""
    return (-100.0, 100.0) if set(metrics) & set(CORRELATIONS) else PERCENT


_TABLES = {
    "cells": CELLS_SCHEMA,
    "spectra": SPECTRA_SCHEMA,
    "pretraining": PRETRAINING_SCHEMA,
    "pretraining_curves": CURVES_SCHEMA,
    "noise": NOISE_SCHEMA,
    "problems": PROBLEMS_SCHEMA,
    "overlaps": OVERLAPS_SCHEMA,
    "predictions": PREDICTIONS_SCHEMA,
    "rotation": ROTATION_SCHEMA,
    "transition": TRANSITION_SCHEMA,
    "pretrained_cells": PRETRAINED_CELLS_SCHEMA,
    "pretrained_spectra": PRETRAINED_SPECTRA_SCHEMA,
    "label_noise_cells": LABEL_NOISE_CELLS_SCHEMA,
    "class_iou": CLASS_IOU_SCHEMA,
    "scenes": SCENES_SCHEMA,
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
    table: pa.Table, keys: list[str], measure: str
) -> Iterator[tuple[dict[str, Any], float]]:
    """The key columns of each row, and its measure, where that is a finite number."""
    rows = table.select(keys).to_pylist()
    for row, value in zip(rows, table[measure].to_pylist(), strict=True):
        if value is not None and math.isfinite(value):
            yield row, float(value)

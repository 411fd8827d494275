"""The tracking runs that a plan's steps become, as values (`RunView`).

Each step is a run, except cells: 50,000 cells do not make 50,000 runs. The cells of one encoder and
one method are one run. It has a metric for each task, named by the task's own metric
(`<task>/matthews`), with accuracy and macro F1 beside it. The metric's step is the share of the
training rows in percent, or in the decimal part of a percent that the tag `nml.step_unit` names;
its value is the mean over tuning seeds. So the runs of all levels and methods can be compared
metric by metric. The artifact `cells.csv` has the cells.

Pure: this module knows neither the tracking library (`mlflow.py`) nor when to call it
(`mirror.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from orchestrator.plan.plan import Plan
from orchestrator.step.address import (
    CellsAddress,
    CorpusAddress,
    PretrainedAddress,
    RunAddress,
    kind_of,
    parse_as,
)
from orchestrator.step.fingerprint import fingerprint
from orchestrator.step.step import Step
from orchestrator.store.index import addressed, concatenated
from orchestrator.store.manifest import Manifest
from orchestrator.store.store import Store
from orchestrator.tracking import naming

CURVE_POINTS = 200  # a curve is thinned to this many points
CURVES = ("curves.parquet", "telemetry.parquet")  # files of (metric, step, value) rows
SPECTRUM = "spectrum.parquet"
DIGEST = 12  # characters of a fingerprint that identify a data set
NOTE = 7500  # characters of a description; a tag of a run holds 8,000
EXPERIMENT_NOTE = 4900  # an experiment's tag holds 5,000 on servers before MLflow 3.16
NOTES = ("verdicts.md", "report.md")  # a report's file for the description, best first
PARAMS = 100  # the most that a server accepts in one call
LABELS = ("noise", "draw", "seed", "encoder", "method", "images")
SHOWN = {
    "images": "data_set",
    "count.images": "count.samples",
    "count.test_images": "count.test_samples",
}
"""Names of labels and counts that MLflow shows under another: samples may be texts."""
CELLS_PROTOCOL = 1  # raised when the contents of the cells' runs change

Point = tuple[str, int, float]
"""Metric, step, value."""


@dataclass(frozen=True)
class Data:
    """A data set that a run read."""

    name: str
    digest: str  # the start of its step's fingerprint
    where: str  # kind of storage: local, s3, gs
    uri: str
    context: str  # its use: pre-training, tuning, ...
    profile: str  # counts of rows, JSON


@dataclass(frozen=True)
class RunView:
    """One run as a tracking page shows it."""

    address: str
    kind: str
    fingerprint: str  # if MLflow has the same, the run is not logged again
    name: str  # as `naming` gives it
    started: str  # ISO 8601
    finished: str
    labels: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    points: Sequence[Point] = ()
    data: Sequence[Data] = ()
    encoder: str = ""  # address of the step that made the encoder
    makes_model: bool = False
    commit: str = ""  # of the code
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepRecord:
    """What the parent run shows: one value for each metric and noise level, and files."""

    fingerprint: str  # of the report; if MLflow has the same, nothing is logged again
    points: tuple[tuple[str, float, float], ...]  # metric, noise level in percent, value
    folder: Path  # files to keep as artifacts
    status: str  # "done", or "incomplete" while cells are missing
    data: Sequence[Data] = ()  # the corpora that its steps read
    claims: str = ""  # ids of the registered ones
    features_dtype: str = ""  # of the features that SVE and LSVR are computed from
    constant: str = ""  # which cells predict the same for every test sample
    score: str = ""  # the metrics of `<domain>_score/<method>`, where tasks have several
    answer: str = ""  # what was found, in one sentence
    params: Mapping[str, str] = field(default_factory=dict)  # the experiment's fields

    def note(self, most: int = NOTE) -> str:
        """The run's description in Markdown: the answer, then a file of the report.

        What has more than `most` characters is cut at a line's end.
        """
        first = f"**{self.answer}**\n\n" if self.answer else ""
        for name in NOTES:
            path = self.folder / name
            if path.is_file():
                text = first + path.read_text(encoding="utf-8")
                return text if len(text) <= most else text[:most].rpartition("\n")[0] + "\n\n..."
        return first.strip()


@dataclass(frozen=True)
class CellGroup:
    """The cells of one encoder and method."""

    address: str
    cells: tuple[Step, ...]  # all that are planned
    unit: tuple[str, int] = ("percent", 1)  # of its metrics' steps; the same in a whole plan

    def fingerprint(self, done: Iterable[str]) -> str:
        """The fingerprint of the group's run, if the cells `done` are finished."""
        planned = {step.address: step.fingerprint for step in self.cells}
        unit = {} if self.unit[1] == 1 else {"step_unit": self.unit[0]}
        cells = {address: planned[address] for address in done}
        return fingerprint({"protocol": CELLS_PROTOCOL, "cells": cells, **unit})


def step_unit(levels: Iterable[float]) -> tuple[str, int]:
    """The unit of a metric's step, and the factor from percent to this unit.

    MLflow's steps are whole numbers, and two levels must never share one. So the unit is percent,
    or a decimal part of a percent if some level is not a whole number.
    """
    scale = 1
    while any(abs(level * scale - round(level * scale)) > 1e-9 for level in levels):
        scale *= 10
    return ("percent" if scale == 1 else f"1/{scale} percent"), scale


def groups(plan: Plan) -> dict[str, CellGroup]:
    """All groups of cells of a plan, by address."""
    found: dict[str, list[Step]] = {}
    for step in plan.of_kind("tune"):
        found.setdefault(group_of(plan, step), []).append(step)
    unit = step_unit({float(step.labels["fraction"]) for step in plan.of_kind("tune")})
    return {address: CellGroup(address, tuple(cells), unit) for address, cells in found.items()}


def group_of(plan: Plan, step: Step) -> str:
    """The address of the run that shows a cell."""
    pretrained = step.labels.get("encoder")
    of = PretrainedAddress(str(pretrained)) if pretrained else _parse_run(_encoder(plan, step))
    return str(CellsAddress(of, str(step.labels["method"])))


@lru_cache(maxsize=1024)
def _parse_run(address: str) -> RunAddress:
    """The address of a pre-training run, parsed once for its thousands of cells."""
    return parse_as(RunAddress, address)


def _encoder(plan: Plan, step: Step) -> str:
    """The address of the step that made the encoder which a step reads, itself or by its features.

    Empty for given features, which have no encoder.
    """
    if "encoder" in step.inputs:
        return step.inputs["encoder"]
    return plan.steps[step.inputs["features"]].inputs.get("encoder", "")


class RunViews:
    """Makes the runs of one plan's steps in one store."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self._plan, self._store = plan, store
        self._profiles: dict[str, str] = {}

    def step(self, step: Step, manifest: Manifest) -> RunView:
        """The run of a step other than a cell."""
        counts = {f"count.{name}": value for name, value in manifest.counts.items()}
        named = {**step.labels, **flatten(manifest.fields["spec"]), **counts}
        flat = {SHOWN.get(name, name): value for name, value in named.items()}
        flat |= self._spectrum_dtypes(manifest)
        seconds = float(manifest.provenance["seconds"])
        curves = [(naming.CURVE + name, at, value) for name, at, value in self._curves(manifest)]
        spent = f"{step.kind}/seconds" if curves else "seconds"  # else it stands before the curves
        summary = {**manifest.metrics, spent: seconds}
        return RunView(
            step.address,
            step.kind,
            manifest.fingerprint,
            naming.of_step(step),
            manifest.provenance["started"],
            manifest.provenance["finished"],
            labels=_labels(step),
            params=params_of(flat),
            points=[*curves, *((name, 0, value) for name, value in summary.items())],
            data=list(self._data([step])),
            encoder=step.inputs.get("encoder", ""),
            makes_model=step.kind in ("pretrain", "encoder"),
            commit=str(manifest.provenance.get("commit") or ""),
        )

    def cells(self, group: CellGroup, rows: pa.Table, times: Mapping[str, str]) -> RunView:
        """The run of a group's finished cells.

        `rows` are the cells' rows, `times` when each cell was finished (ISO 8601), by address.
        """
        first = group.cells[0]
        done = sorted(set(rows["address"].to_pylist()))
        spec = first.spec.semantic()
        settings = {name: value for name, value in spec.items() if name not in ("task", "seed")}
        of_group = ("noise", "seed", "encoder", "method")
        params = {n: v for n, v in first.labels.items() if n in of_group} | flatten(settings)
        moments = sorted(times[address] for address in done)
        return RunView(
            group.address,
            "tune",
            group.fingerprint(done),
            naming.of_cells(first),
            moments[0],
            moments[-1],
            labels={
                **_labels(first),
                "cells": f"{len(done)} of {len(group.cells)}",
                "step_unit": group.unit[0],
            },
            params=params_of({n: v for n, v in params.items() if n != "fraction"}),
            points=list(_scores(rows, group.unit[1])),
            data=list(self._data(group.cells)),
            encoder=_encoder(self._plan, first),
            files={"cells.csv": _csv(rows)},
        )

    def sweep_data(self) -> list[Data]:
        """Every corpus of the plan, with its uses."""
        return list(self._data(self._plan.steps.values()))

    def rows(self, addresses: Iterable[str]) -> pa.Table:
        """The rows of some cells, each read from its own folder."""
        read = self._store.cell
        return concatenated([addressed(read(address), address) for address in addresses])

    def _spectrum_dtypes(self, manifest: Manifest) -> dict[str, str]:
        """The types of the features that SVE and LSVR are computed from, and are stored in."""
        if SPECTRUM not in manifest.files:
            return {}
        row = self._store.committed(manifest.address).read_table(SPECTRUM).slice(0, 1).to_pylist()
        return {f"spectrum.{n}": row[0][n] for n in ("dtype", "stored") if row and n in row[0]}

    def _curves(self, manifest: Manifest) -> Iterator[Point]:
        for name in CURVES:
            if name in manifest.files:
                yield from thinned(self._store.committed(manifest.address).read_table(name))

    def _data(self, steps: Iterable[Step]) -> Iterator[Data]:
        """The corpora that steps read, one entry for each corpus and use."""
        uses: dict[tuple[str, str], None] = {}
        for step in steps:
            context = {"pretrain": "pre-training", "tune": "tuning"}.get(step.kind, step.kind)
            for address in step.inputs.values():
                read = self._plan.steps[address]
                kept = read.kind in ("features", "hashes")
                corpus = read.inputs.get("corpus", "") if kept else address
                if kind_of(corpus) == "corpus":
                    uses[corpus, context] = None
        for corpus, context in uses:
            folder = self._store.output(corpus)
            where = "local" if folder.is_local else folder.uri.partition(":")[0]
            name = parse_as(CorpusAddress, corpus).corpus
            digest = self._plan.steps[corpus].fingerprint[:DIGEST]
            yield Data(name, digest, where, folder.uri, context, self._profile(corpus))

    def _profile(self, corpus: str) -> str:
        if corpus not in self._profiles:
            manifest = self._store.manifest(corpus)
            self._profiles[corpus] = json.dumps(manifest.counts if manifest else {})
        return self._profiles[corpus]


def thinned(curves: pa.Table) -> Iterator[Point]:
    """The points of a curves table: about CURVE_POINTS for each metric, with first and last."""
    by_name: dict[str, list[Point]] = {}
    for row in curves.to_pylist():
        by_name.setdefault(row["metric"], []).append((row["metric"], row["step"], row["value"]))
    for points in by_name.values():
        stride = -(-len(points) // CURVE_POINTS)
        yield from points[::stride]
        if (len(points) - 1) % stride:
            yield points[-1]


def _scores(rows: pa.Table, scale: int) -> Iterator[Point]:
    """Mean test scores of each task and fraction over tuning seeds.

    Each task has its own metric, under the metric's name, and accuracy and macro F1. Cells with
    downstream label noise are left out; `cells.csv` has them.
    """
    if "label_noise" in rows.column_names:
        rows = rows.filter(pc.equal(rows["label_noise"], 0))
    for column, word in (("test_accuracy", "accuracy"), ("test_macro_f1", "macro_f1")):
        if column in rows.column_names:
            yield from _means(rows, column, word, scale)
    if {"metric", "test_metric"} <= set(rows.column_names):
        named = pa.array(["accuracy", "macro_f1"])
        by_own_metric = rows.filter(pc.invert(pc.is_in(rows["metric"], value_set=named)))
        for metric in pc.unique(by_own_metric["metric"].drop_null()).to_pylist():
            own = by_own_metric.filter(pc.equal(by_own_metric["metric"], metric))
            yield from _means(own, "test_metric", metric, scale)


def _means(rows: pa.Table, column: str, word: str, scale: int) -> Iterator[Point]:
    means = rows.group_by(["task", "fraction"]).aggregate([(column, "mean")]).to_pylist()
    for row in sorted(means, key=lambda row: (row["task"], row["fraction"])):
        if row[f"{column}_mean"] is not None:
            yield f"{row['task']}/{word}", round(row["fraction"] * scale), row[f"{column}_mean"]


def _csv(rows: pa.Table) -> bytes:
    """The rows as CSV. The long address comes last, for MLflow's preview of the file."""
    sink = pa.BufferOutputStream()
    ordered = rows.sort_by("address")
    pacsv.write_csv(
        ordered.drop_columns(["address"]).append_column("address", ordered["address"]), sink
    )
    return bytes(sink.getvalue().to_pybytes())


def _labels(step: Step) -> dict[str, str]:
    found = {name: step.labels.get(name) for name in LABELS}
    kept = {name: _text(value) for name, value in found.items() if value is not None}
    return {SHOWN.get(name, name): value for name, value in kept.items()}


def params_of(flat: Mapping[str, Any]) -> dict[str, str]:
    """Fields as a run's parameters: text, as many and as long as a server accepts."""
    return {name: _text(value)[:500] for name, value in sorted(flat.items())[:PARAMS]}


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    if isinstance(value, Mapping):
        return {
            name: inner
            for key, item in value.items()
            for name, inner in flatten(item, f"{path}.{key}" if path else str(key)).items()
        }
    return {path: value}


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

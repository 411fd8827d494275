"""What of a store a tracking page shows: one run a step, and one an encoder and method for cells.

50,000 cells do not make 50,000 runs. The cells of one encoder and method are one run: a metric a
task, `<task>/accuracy`, its step the share of the training rows in percent (or the decimal part of
it that its tag `nml.step_unit` names), its value the mean over tuning seeds, so that runs of all
levels and methods compare metric by metric; the cells themselves are its artifact `cells.csv`.
Every other step is a run of its own.

Pure: nothing here knows the tracking library (`mlflow.py`) or when to call it (`mirror.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
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
from orchestrator.store.index import addressed, joined
from orchestrator.store.manifest import CELL_TABLE, Manifest
from orchestrator.store.store import Store

CURVE_POINTS = 200  # a curve is thinned to this many points
CURVES = ("curves.parquet", "telemetry.parquet")  # files of (metric, step, value) rows
DIGEST = 12  # characters of a fingerprint that tell data sets apart
PARAMS = 100  # a server takes no more in one call
LABELS = ("noise", "seed", "encoder", "method", "images")
CELLS_PROTOCOL = 1  # raised when the runs of cells show something else

Point = tuple[str, int, float]
"""Metric, step, value."""


@dataclass(frozen=True)
class Data:
    """A data set that a run read."""

    name: str
    digest: str  # the start of its step's fingerprint
    where: str  # kind of place: local, s3, gs
    uri: str
    context: str  # what it was read for
    profile: str  # counts of rows, JSON


@dataclass(frozen=True)
class Shown:
    """One run as a tracking page shows it."""

    address: str
    kind: str
    fingerprint: str  # an equal one is not logged again
    name: str  # sorts as levels and seeds do
    started: str  # ISO 8601
    finished: str
    labels: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    points: Sequence[Point] = ()
    data: Sequence[Data] = ()
    encoder: str = ""  # address of the pre-training step whose model was read
    makes_model: bool = False
    commit: str = ""  # of the source
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """The cells of one encoder and method."""

    address: str
    cells: tuple[Step, ...]  # all that are planned
    unit: tuple[str, int] = ("percent", 1)  # of its metrics' steps; one for a whole plan

    def fingerprint(self, done: Iterable[str]) -> str:
        """Of what a run of these finished cells shows."""
        here = {step.address: step.fingerprint for step in self.cells}
        unit = {} if self.unit[1] == 1 else {"step_unit": self.unit[0]}
        cells = {address: here[address] for address in done}
        return fingerprint({"protocol": CELLS_PROTOCOL, "cells": cells, **unit})


def step_unit(levels: Iterable[float]) -> tuple[str, int]:
    """The unit of a metric's step and its factor: percent, or a decimal part of it if need be.

    MLflow's steps are whole numbers, and two levels must never share one.
    """
    scale = 1
    while any(abs(level * scale - round(level * scale)) > 1e-9 for level in levels):
        scale *= 10
    return ("percent" if scale == 1 else f"1/{scale} percent"), scale


def groups(plan: Plan) -> dict[str, Group]:
    """Every group of cells, by address."""
    found: dict[str, list[Step]] = {}
    for step in plan.of_kind("tune"):
        found.setdefault(group_of(plan, step), []).append(step)
    unit = step_unit({float(step.labels["fraction"]) for step in plan.of_kind("tune")})
    return {address: Group(address, tuple(cells), unit) for address, cells in found.items()}


def group_of(plan: Plan, step: Step) -> str:
    """The address of the run that shows a cell: its encoder's, its method's name last."""
    named = step.labels.get("encoder")
    of = PretrainedAddress(str(named)) if named else _run_of(_encoder(plan, step))
    return str(CellsAddress(of, str(step.labels["method"])))


@lru_cache(maxsize=1024)
def _run_of(encoder: str) -> RunAddress:
    """The run that an address says, read once for the thousands of cells that it has."""
    return parse_as(RunAddress, encoder)


def _encoder(plan: Plan, step: Step) -> str:
    """The address of the step that made the encoder a step reads, if need be through another's.

    Empty for features that were given, without an encoder.
    """
    if "encoder" in step.inputs:
        return step.inputs["encoder"]
    return plan.steps[step.inputs["features"]].inputs.get("encoder", "")


class Showing:
    """Makes runs of one plan's steps in one store."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self._plan, self._store = plan, store
        self._profiles: dict[str, str] = {}

    def step(self, step: Step, manifest: Manifest) -> Shown:
        """The run of a step that is not a cell."""
        counts = {f"count.{name}": value for name, value in manifest.counts.items()}
        flat = {**step.labels, **_flatten(manifest.fields["spec"]), **counts}
        seconds = float(manifest.provenance["seconds"])
        summary = {**manifest.metrics, "seconds": seconds}
        curves = [point for point in self._curves(manifest) if point[0] not in summary]
        return Shown(
            step.address,
            step.kind,
            manifest.fingerprint,
            run_name(step, str(step.labels.get("images", ""))),
            manifest.provenance["started"],
            manifest.provenance["finished"],
            labels=_labels(step),
            params=_params(flat),
            points=[*((name, 0, value) for name, value in summary.items()), *curves],
            data=list(self._data([step])),
            encoder=step.inputs.get("encoder", ""),
            makes_model=step.kind in ("pretrain", "encoder"),
            commit=str(manifest.provenance.get("commit") or ""),
        )

    def cells(self, group: Group, rows: pa.Table, times: Mapping[str, str]) -> Shown:
        """The run of a group's finished cells: their rows, and when each was finished."""
        first = group.cells[0]
        done = sorted(set(rows["address"].to_pylist()))
        spec = first.spec.semantic()
        settings = {name: value for name, value in spec.items() if name not in ("task", "seed")}
        shown = ("noise", "seed", "encoder", "method")
        params = {n: v for n, v in first.labels.items() if n in shown} | _flatten(settings)
        moments = sorted(times[address] for address in done)
        return Shown(
            group.address,
            "tune",
            group.fingerprint(done),
            run_name(first, str(first.labels["method"])),
            moments[0],
            moments[-1],
            labels={
                **_labels(first),
                "cells": f"{len(done)} of {len(group.cells)}",
                "step_unit": group.unit[0],
            },
            params=_params({n: v for n, v in params.items() if n != "fraction"}),
            points=list(_accuracies(rows, group.unit[1])),
            data=list(self._data(group.cells)),
            encoder=_encoder(self._plan, first),
            files={"cells.csv": _csv(rows)},
        )

    def sweep_data(self) -> list[Data]:
        """Every corpus of the plan, with what it is for."""
        return list(self._data(self._plan.steps.values()))

    def rows(self, addresses: Iterable[str]) -> pa.Table:
        """The rows of some cells, each read from its own folder."""
        output = self._store.output
        return joined([addressed(output(a).read_table(CELL_TABLE), a) for a in addresses])

    def _curves(self, manifest: Manifest) -> Iterator[Point]:
        for name in CURVES:
            if name in manifest.files:
                yield from thinned(self._store.output(manifest.address).read_table(name))

    def _data(self, steps: Iterable[Step]) -> Iterator[Data]:
        """The corpora that steps read, each once for each use."""
        uses: dict[tuple[str, str], None] = {}
        for step in steps:
            context = {"pretrain": "pre-training", "tune": "tuning"}.get(step.kind, step.kind)
            for address in step.inputs.values():
                read = self._plan.steps[address]
                corpus = read.inputs.get("corpus", "") if read.kind == "features" else address
                if kind_of(corpus) == "corpus":
                    uses[corpus, context] = None
        for corpus, context in uses:
            folder = self._store.output(corpus)
            where = "local" if folder.is_local else folder.uri.partition(":")[0]
            name = parse_as(CorpusAddress, corpus).corpus
            mark = self._plan.steps[corpus].fingerprint
            yield Data(name, mark[:DIGEST], where, folder.uri, context, self._profile(corpus))

    def _profile(self, corpus: str) -> str:
        if corpus not in self._profiles:
            manifest = self._store.manifest(corpus)
            self._profiles[corpus] = json.dumps(manifest.counts if manifest else {})
        return self._profiles[corpus]


def thinned(curves: pa.Table) -> Iterator[Point]:
    """The points of a curves table, at most about CURVE_POINTS a metric, ends kept."""
    by_name: dict[str, list[Point]] = {}
    for row in curves.to_pylist():
        by_name.setdefault(row["metric"], []).append((row["metric"], row["step"], row["value"]))
    for points in by_name.values():
        stride = -(-len(points) // CURVE_POINTS)
        yield from points[::stride]
        if (len(points) - 1) % stride:
            yield points[-1]


def run_name(step: Step, detail: str = "") -> str:
    """A short name that sorts as levels and seeds do, for columns that cut long ones off.

    Corpus, noise and recipe are an experiment's own and stand in the run's address, params and
    data sets. A step that no level is of is named by its address.
    """
    level = step.labels.get("noise")
    if level is None:
        return f"{step.address} {detail}".rstrip()
    words = [step.kind, f"noise={_padded(float(level))}"]
    if "seed" in step.labels:
        words.append(f"seed={int(step.labels['seed']):02d}")
    return " ".join([*words, *filter(None, [detail])])


def _padded(level: float) -> str:
    return f"{level:g}" if level >= 10 else f"0{level:g}"


def _accuracies(rows: pa.Table, scale: int) -> Iterator[Point]:
    """Mean test accuracy and macro F1 of each task and fraction over tuning seeds.

    A task whose target is a number has its own metric, under that metric's name. Of clean
    downstream labels alone; cells of others stand in `cells.csv`.
    """
    if "label_noise" in rows.column_names:
        rows = rows.filter(pc.equal(rows["label_noise"], 0))
    for column, word in (("test_accuracy", "accuracy"), ("test_macro_f1", "macro_f1")):
        if column in rows.column_names:
            yield from _means(rows, column, word, scale)
    if {"metric", "test_metric", "test_accuracy"} <= set(rows.column_names):
        by_own_metric = rows.filter(pc.is_null(rows["test_accuracy"]))
        for metric in pc.unique(by_own_metric["metric"].drop_null()).to_pylist():
            own = by_own_metric.filter(pc.equal(by_own_metric["metric"], metric))
            yield from _means(own, "test_metric", metric, scale)


def _means(rows: pa.Table, column: str, word: str, scale: int) -> Iterator[Point]:
    means = rows.group_by(["task", "fraction"]).aggregate([(column, "mean")]).to_pylist()
    for row in sorted(means, key=lambda row: (row["task"], row["fraction"])):
        if row[f"{column}_mean"] is not None:
            yield f"{row['task']}/{word}", round(row["fraction"] * scale), row[f"{column}_mean"]


def _csv(rows: pa.Table) -> bytes:
    """The rows as a page previews them: the long address, which says it all again, comes last."""
    sink = pa.BufferOutputStream()
    ordered = rows.sort_by("address")
    pacsv.write_csv(
        ordered.drop_columns(["address"]).append_column("address", ordered["address"]), sink
    )
    return bytes(sink.getvalue().to_pybytes())


def _labels(step: Step) -> dict[str, str]:
    found = {name: step.labels.get(name) for name in LABELS}
    return {name: _text(value) for name, value in found.items() if value is not None}


def _params(flat: Mapping[str, Any]) -> dict[str, str]:
    return {name: _text(value)[:500] for name, value in sorted(flat.items())[:PARAMS]}


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {
            name: inner
            for key, item in value.items()
            for name, inner in _flatten(item, f"{path}.{key}" if path else str(key)).items()
        }
    return {path: value}


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

"""What MLflow shows of a store. The only module that imports mlflow.

One parent run a sweep, one child run a step, each found again by its tags, so that nothing is ever
logged twice. Names of tags and metrics are given here and nowhere else. When to call it, and what
to do when MLflow does not answer, is `mirror.py`'s.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from orchestrator.plan import Step
from orchestrator.store import Manifest

if TYPE_CHECKING:
    from mlflow import MlflowClient

CURVE_POINTS = 200  # a child run's curve is thinned to this many points
BATCH = 900  # metrics in one call; the server's limit is 1,000
_SETTINGS = {
    # One call to a dead server blocks for minutes with MLflow's own settings.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",  # it loses data silently
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


def resolve_uri(configured: str | None) -> str:
    """The tracking URI: the experiment's, else the environment's, else a database right here."""
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    return uri


@dataclass(frozen=True)
class SweepRecord:
    """What the parent run shows: one value a metric and noise level, and files."""

    fingerprint: str  # of the readout; an equal one is not logged again
    points: tuple[tuple[str, float, float], ...]  # metric, noise level in percent, value
    folder: Path  # files to keep as artifacts
    status: str  # "done", or "incomplete" while cells are missing


@dataclass
class _Child:
    run_id: str
    fingerprint: str
    complete: bool


@dataclass
class Mirror:
    """The calls to MLflow, for one experiment of one store. Not thread-safe; may raise anything."""

    uri: str
    name: str
    store_id: str
    client: MlflowClient = field(init=False)
    experiment_id: str = field(init=False)
    parent_id: str = field(init=False, default="")
    parent_fingerprint: str = field(init=False, default="")
    children: dict[str, _Child] = field(init=False, default_factory=dict)

    def open(self) -> None:
        """Find or make the experiment and the parent run, and learn what is mirrored already."""
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        _quieten()
        self.client = MlflowClient(tracking_uri=self.uri)
        experiment = self.client.get_experiment_by_name(self.name)
        if experiment is None:
            location = None
            if self.uri.startswith("sqlite:////"):
                database = Path(self.uri.removeprefix("sqlite:///"))
                location = (database.parent / "mlartifacts" / self.name).as_uri()
            self.experiment_id = self.client.create_experiment(self.name, location)
        else:
            if experiment.lifecycle_stage == "deleted":
                self.client.restore_experiment(experiment.experiment_id)
            self.experiment_id = experiment.experiment_id
        self.children = {}
        for run in self._runs():
            tags = run.data.tags
            if tags.get("nml.kind") == "sweep":
                self.parent_id = run.info.run_id
                self.parent_fingerprint = tags.get("nml.fingerprint", "")
            elif "nml.address" in tags:
                self.children[tags["nml.address"]] = _Child(
                    run.info.run_id,
                    tags.get("nml.fingerprint", ""),
                    tags.get("nml.status") == "done",
                )
        if not self.parent_id:
            self.parent_id = self._new_parent()

    def _runs(self) -> Iterable[Any]:
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id],
                filter_string=f"tags.`nml.store` = '{self.store_id}'",
                max_results=5000,
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _new_parent(self) -> str:
        run = self.client.create_run(
            self.experiment_id,
            run_name=f"sweep {self.name}",
            tags={
                "nml.kind": "sweep",
                "nml.address": f"sweep/{self.name}",
                "nml.store": self.store_id,
                "nml.status": "running",
            },
        )
        return str(run.info.run_id)

    def holds(self, address: str, fingerprint: str) -> bool:
        """Whether a step is mirrored, whole, as it is now."""
        child = self.children.get(address)
        return child is not None and child.complete and child.fingerprint == fingerprint

    def step(self, step: Step, manifest: Manifest, curves: pa.Table | None) -> None:
        """Mirror one committed step, in place of what an earlier fingerprint left."""
        from mlflow.entities import Metric, Param, RunTag

        known = self.children.get(step.address)
        if known is not None and known.fingerprint != manifest.fingerprint:
            self.client.delete_run(known.run_id)  # to MLflow's trash: redone with --force
            known = None
        started = _milliseconds(manifest.provenance["started"])
        finished = _milliseconds(manifest.provenance["finished"])
        run_id = known.run_id if known else self._new_child(step, manifest, started)
        self.children[step.address] = _Child(run_id, manifest.fingerprint, False)
        metrics = [Metric(name, value, finished, 0) for name, value in manifest.metrics.items()]
        metrics += [
            Metric(name, value, finished, at)
            for name, at, value in _thinned(curves)
            if name not in manifest.metrics
        ]
        metrics.append(Metric("seconds", float(manifest.provenance["seconds"]), finished, 0))
        counts = {f"count.{name}": value for name, value in manifest.counts.items()}
        flat = {**_flatten(manifest.fields["spec"]), **counts}
        params = [Param(name, str(value)[:500]) for name, value in sorted(flat.items())[:100]]
        for start in range(BATCH, len(metrics), BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + BATCH])
        self.client.log_batch(
            run_id,
            metrics=metrics[:BATCH],
            params=[] if known else params,
            tags=[RunTag("nml.status", "done")],
        )
        self.client.set_terminated(run_id, "FINISHED", finished)
        self.children[step.address].complete = True

    def _new_child(self, step: Step, manifest: Manifest, started: int) -> str:
        tags = {
            "mlflow.parentRunId": self.parent_id,
            "nml.kind": step.kind,
            "nml.address": step.address,
            "nml.fingerprint": manifest.fingerprint,
            "nml.store": self.store_id,
            "nml.status": "mirroring",
        }
        for name in ("noise", "seed", "encoder", "task", "method"):
            if name in step.labels:
                tags[f"nml.{name}"] = _label(step.labels[name])
        if manifest.provenance.get("commit"):
            tags["mlflow.source.git.commit"] = str(manifest.provenance["commit"])
        run = self.client.create_run(
            self.experiment_id, start_time=started, tags=tags, run_name=_run_name(step)
        )
        return str(run.info.run_id)

    def sweep(self, record: SweepRecord) -> None:
        """Bring the parent run up to the readout: metrics by noise level, files, status."""
        from mlflow.entities import Metric, RunTag

        if record.fingerprint == self.parent_fingerprint:
            return
        unit, scale = step_unit([level for _, level, _ in record.points])
        now = int(datetime.now().timestamp() * 1000)
        if self._contradicts(record, scale):
            self._replace_parent()
        metrics = [
            Metric(name, value, now, round(level * scale)) for name, level, value in record.points
        ]
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(self.parent_id, metrics=metrics[start : start + BATCH])
        self.client.log_artifacts(self.parent_id, str(record.folder))
        tags = {
            "nml.fingerprint": record.fingerprint,
            "nml.status": record.status,
            "nml.step_unit": unit,
        }
        self.client.log_batch(self.parent_id, tags=[RunTag(k, v) for k, v in tags.items()])
        self.client.set_terminated(self.parent_id, "FINISHED")
        self.parent_fingerprint = record.fingerprint

    def _contradicts(self, record: SweepRecord, scale: int) -> bool:
        """Whether the parent already shows another value at some metric's level.

        MLflow cannot take a logged point back, and a chart with two points at a level misleads.
        """
        wanted = {(name, round(level * scale)): value for name, level, value in record.points}
        logged = set(self.client.get_run(self.parent_id).data.metrics)
        for name in sorted({name for name, _, _ in record.points} & logged):
            for old in self.client.get_metric_history(self.parent_id, name):
                if wanted.get((name, old.step)) != old.value:
                    return True
        return False

    def _replace_parent(self) -> None:
        old, self.parent_id = self.parent_id, self._new_parent()
        for child in self.children.values():
            self.client.set_tag(child.run_id, "mlflow.parentRunId", self.parent_id)
        self.client.delete_run(old)


def step_unit(levels: Iterable[float]) -> tuple[str, int]:
    """The unit of a metric's step and its factor: percent, or a decimal part of it if need be.

    MLflow's steps are whole numbers, and two levels must never share one.
    """
    scale = 1
    while any(abs(level * scale - round(level * scale)) > 1e-9 for level in levels):
        scale *= 10
    return ("percent" if scale == 1 else f"1/{scale} percent"), scale


# -- small parts -----------------------------------------------------------------------------------


def _thinned(curves: pa.Table | None) -> list[tuple[str, int, float]]:
    """(metric, step, value) of a curves table, at most CURVE_POINTS a metric, ends kept."""
    if curves is None:
        return []
    by_name: dict[str, list[tuple[str, int, float]]] = {}
    for row in curves.to_pylist():
        by_name.setdefault(row["metric"], []).append((row["metric"], row["step"], row["value"]))
    kept: list[tuple[str, int, float]] = []
    for points in by_name.values():
        stride = -(-len(points) // CURVE_POINTS)
        kept += points[::stride]
        if (len(points) - 1) % stride:
            kept.append(points[-1])
    return kept


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {
            name: inner
            for key, item in value.items()
            for name, inner in _flatten(item, f"{path}.{key}" if path else str(key)).items()
        }
    return {path: value}


def _run_name(step: Step) -> str:
    """A step's address with noise levels padded, so that runs sort as their levels do."""
    name = step.address
    if "noise" in step.labels:
        level = float(step.labels["noise"])
        padded = f"{level:g}" if level >= 10 else f"0{level:g}"
        for word in ("noise", "level"):
            name = name.replace(f"/{word}={level:g}", f"/{word}={padded}")
    return name


def _label(value: str | float | int) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _milliseconds(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1000)


def _quieten() -> None:
    import logging

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def pages(uri: str, host: str) -> dict[str, str]:
    """Each experiment's page on a server at `host`, newest first; raises what the client raises.

    MLflow's own front page opens on its views for language-model traces; these links do not.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    _quieten()
    found = MlflowClient(tracking_uri=uri).search_experiments(max_results=50)
    return {
        experiment.name: f"{host}/#/experiments/{experiment.experiment_id}/runs"
        f"?workflowType=machine_learning"
        for experiment in found
        if experiment.name != "Default"
    }

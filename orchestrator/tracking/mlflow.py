"""Writes a store's runs to MLflow. The only module that imports mlflow.

A sweep is one parent run. Below it are the runs that `runs.py` makes. Tags identify each run, so
nothing is logged twice. Only this module names the tags. `mirror.py` decides when to call it, and
what to do when MLflow does not answer.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import NmlError
from orchestrator.step.address import SweepAddress
from orchestrator.tracking import naming, sqlite
from orchestrator.tracking.methods import METHOD, of_methods
from orchestrator.tracking.runs import EXPERIMENT_NOTE, Data, RunView, SweepRecord, step_unit
from orchestrator.tracking.server import check_answers, named, reason

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = 900  # metrics in one call; the server's limit is 1,000
KIND_TAG = "mlflow.experimentKind"
NOTE_TAG = "mlflow.note.content"  # the description
_SETTINGS = {
    # With MLflow's own settings, one call to a dead server blocks for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",  # it loses data silently
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


@dataclass
class _Child:
    run_id: str
    fingerprint: str
    complete: bool
    model: str = ""  # id of the model that the run made
    nested: bool = True  # below the sweep's run


@dataclass
class Mirror:
    """The calls to MLflow, for one experiment of one store. Not thread-safe; may raise anything."""

    uri: str
    name: str
    store_id: str
    params: Mapping[str, str] = field(default_factory=dict)  # of the parent run
    client: MlflowClient = field(init=False)
    experiment_id: str = field(init=False)
    parent_id: str = field(init=False, default="")
    parent_fingerprint: str = field(init=False, default="")
    children: dict[str, _Child] = field(init=False, default_factory=dict)

    def open(self) -> None:
        """Find or make the experiment and the parent run, and list the runs that MLflow has."""
        self.client = connect(self.uri)
        self.experiment_id = self._experiment()
        # Without this tag, the pages open with views for language-model applications.
        self.client.set_experiment_tag(self.experiment_id, KIND_TAG, "custom_model_development")
        self.children, self.parent_id, self.parent_fingerprint = {}, "", ""
        parents: dict[str, str] = {}
        for run in self._runs():
            tags = run.data.tags
            if tags.get("nml.kind") == "sweep":
                self.parent_id = run.info.run_id
                self.parent_fingerprint = tags.get("nml.fingerprint", "")
            elif "nml.address" in tags:
                if tags.get("nml.kind") != METHOD:
                    parents[run.info.run_id] = tags.get("mlflow.parentRunId", "")
                self.children[tags["nml.address"]] = _Child(
                    run.info.run_id,
                    tags.get("nml.fingerprint", ""),
                    tags.get("nml.status") == "done",
                    tags.get("nml.model", ""),
                    tags.get("nml.kind") != METHOD,
                )
        if not self.parent_id:
            self.parent_id = self._new_parent()
        elif dict(self.client.get_run(self.parent_id).data.params) != dict(self.params):
            self._replace_parent()  # a logged parameter cannot be changed
            self.parent_fingerprint = ""
            return
        for run_id, parent in parents.items():
            if parent != self.parent_id:  # it was deleted, or replaced by a sweep that was stopped
                self.client.set_tag(run_id, "mlflow.parentRunId", self.parent_id)

    def _experiment(self) -> str:
        """The id of the experiment, made or restored if need be."""
        from mlflow.exceptions import MlflowException

        experiment = self.client.get_experiment_by_name(self.name)
        if experiment is None:
            database = sqlite.path_of(self.uri)
            folder = database.parent / "mlartifacts" / self.name if database else None
            location = folder.as_uri() if folder else None
            try:
                return str(self.client.create_experiment(self.name, location))
            except MlflowException:  # another sweep may have made it meanwhile
                experiment = self.client.get_experiment_by_name(self.name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

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
        from mlflow.entities import Param

        run = self.client.create_run(
            self.experiment_id,
            run_name=f"sweep {self.name}",
            tags={
                "nml.kind": "sweep",
                "nml.address": str(SweepAddress(self.name)),
                "nml.store": self.store_id,
                "nml.status": "running",
            },
        )
        if self.params:
            params = [Param(name, value) for name, value in self.params.items()]
            self.client.log_batch(run.info.run_id, params=params)
        return str(run.info.run_id)

    def has_run(self, address: str, fingerprint: str) -> bool:
        """Whether MLflow has the complete run of this address and fingerprint."""
        child = self.children.get(address)
        return child is not None and child.complete and child.fingerprint == fingerprint

    def drop(self, address: str) -> None:
        """Send a child run and the model that it made to MLflow's trash."""
        known = self.children.pop(address)
        if known.model:
            self.client.delete_logged_model(known.model)
        self.client.delete_run(known.run_id)

    def child(self, view: RunView) -> None:
        """Write one run. A run of an earlier fingerprint goes to the trash."""
        from mlflow.entities import Metric, Param, RunTag

        known = self.children.get(view.address)
        if known is not None and known.fingerprint != view.fingerprint:
            self.drop(view.address)
            known = None
        if known is None:
            nested = view.kind != METHOD
            known = _Child(self._new_child(view), view.fingerprint, False, nested=nested)
            self.children[view.address] = known
            self._log_lineage(known, view)
        finished = _milliseconds(view.finished)
        metrics = [Metric(name, value, finished, at) for name, at, value in view.points]
        for start in range(BATCH, len(metrics), BATCH):
            self.client.log_batch(known.run_id, metrics=metrics[start : start + BATCH])
        for name, content in view.files.items():
            self._log_file(known.run_id, name, content)
        self.client.log_batch(
            known.run_id,
            metrics=metrics[:BATCH],
            params=[Param(name, value) for name, value in view.params.items()],
            tags=[RunTag("nml.status", "done")],
        )
        self.client.set_terminated(known.run_id, "FINISHED", finished)
        known.complete = True

    def _new_child(self, view: RunView) -> str:
        below = {"mlflow.parentRunId": self.parent_id} if view.kind != METHOD else {}
        tags = {
            **below,
            "nml.kind": view.kind,
            "nml.address": view.address,
            "nml.fingerprint": view.fingerprint,
            "nml.store": self.store_id,
            "nml.status": "mirroring",
            **{f"nml.{name}": value for name, value in view.labels.items()},
        }
        if view.commit:
            tags["mlflow.source.git.commit"] = view.commit
        run = self.client.create_run(
            self.experiment_id,
            start_time=_milliseconds(view.started),
            tags=tags,
            run_name=view.name,
        )
        return str(run.info.run_id)

    def _log_lineage(self, known: _Child, view: RunView) -> None:
        """Log the data and the encoder that a run read, and the model that it made."""
        from mlflow.entities import LoggedModelInput, LoggedModelOutput

        encoder = self.children.get(view.encoder)
        models = [LoggedModelInput(encoder.model)] if encoder and encoder.model else []
        if view.data or models:
            self.client.log_inputs(known.run_id, _inputs(view.data), models)
        if view.makes_model:
            model = self.client.create_logged_model(
                self.experiment_id,
                name=naming.model(view.name),
                source_run_id=known.run_id,
                tags={"nml.address": view.address, "nml.fingerprint": view.fingerprint},
                model_type="encoder",
            )
            self.client.log_outputs(known.run_id, [LoggedModelOutput(model.model_id, 0)])
            self.client.finalize_logged_model(model.model_id, "READY")
            self.client.set_tag(known.run_id, "nml.model", model.model_id)
            known.model = model.model_id

    def _log_file(self, run_id: str, name: str, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / name).write_bytes(content)
            self.client.log_artifact(run_id, f"{folder}/{name}")

    def sweep(self, record: SweepRecord) -> None:
        """Update the parent run from a report: metrics by noise level, files, status."""
        from mlflow.entities import Metric, RunTag

        if record.fingerprint == self.parent_fingerprint:
            return
        unit, scale = step_unit([level for _, level, _ in record.points])
        now = int(datetime.now().timestamp() * 1000)
        wanted = {
            (naming.average(name), round(level * scale)): value
            for name, level, value in record.points
        }
        there = self._points()
        if not there.items() <= wanted.items():
            self._replace_parent()
            there = {}
        metrics = [
            Metric(name, value, now, step)
            for (name, step), value in wanted.items()
            if (name, step) not in there
        ]
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(self.parent_id, metrics=metrics[start : start + BATCH])
        self.client.log_artifacts(self.parent_id, str(record.folder))
        if record.data:
            self.client.log_inputs(self.parent_id, _inputs(record.data))
        tags = {
            "nml.fingerprint": record.fingerprint,
            "nml.status": record.status,
            "nml.step_unit": unit,
            "nml.claims": record.claims or "none registered",
            "nml.constant_cells": record.constant or "none",
            "nml.score": record.score or "one metric, which names the score",
            "nml.features_dtype": record.features_dtype or "none",
        }
        if note := record.note():
            tags[NOTE_TAG] = note
            note = record.note(EXPERIMENT_NOTE)
            self.client.set_experiment_tag(self.experiment_id, NOTE_TAG, note)
        self.client.log_batch(self.parent_id, tags=[RunTag(k, v) for k, v in tags.items()])
        self._methods(record)
        self.client.set_terminated(self.parent_id, "FINISHED")
        self.parent_fingerprint = record.fingerprint

    def _methods(self, record: SweepRecord) -> None:
        """Write the run of each method; those of methods that are gone go to the trash."""
        views = {view.address: view for view in of_methods(self.name, record)}
        prefix = f"{SweepAddress(self.name)}/"
        for address in [a for a in self.children if a.startswith(prefix) and a not in views]:
            self.drop(address)
        for view in views.values():
            if not self.has_run(view.address, view.fingerprint):
                self.child(view)

    def _points(self) -> dict[tuple[str, int], float]:
        """The values that the parent run has, by metric and step."""
        names = sorted(self.client.get_run(self.parent_id).data.metrics)
        return {
            (name, point.step): point.value
            for name in names
            for point in self.client.get_metric_history(self.parent_id, name)
        }

    def _replace_parent(self) -> None:
        """Make a new parent run: a logged point cannot be removed, and two at a level mislead."""
        old, self.parent_id = self.parent_id, self._new_parent()
        for child in filter(lambda one: one.nested, self.children.values()):
            self.client.set_tag(child.run_id, "mlflow.parentRunId", self.parent_id)
        self.client.delete_run(old)


# -- small parts -----------------------------------------------------------------------------------


def error_kind(error: Exception) -> str:
    """The kind of an error of MLflow's client.

    "unreachable", "refused" (the server refuses the call), "no driver" (the Python package of the
    database is not installed) or "ours" (a defect of nml-orch).
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    chain: list[BaseException] = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(below)
    if any(isinstance(e, (RequestException, SQLAlchemyError, ConnectionError)) for e in chain):
        return "unreachable"
    if any(isinstance(e, ModuleNotFoundError) for e in chain):
        return "no driver"
    for found in chain:
        if isinstance(found, MlflowException):
            code = found.get_http_status_code()
            return "refused" if 400 <= code < 500 and code not in (408, 429) else "unreachable"
    return "ours"


def error_message(error: Exception, uri: str) -> str:
    """What went wrong, with the reason: MLflow's fault or a defect of our own."""
    if isinstance(error, NmlError):
        return str(error)
    where = named(uri)
    message = {
        "unreachable": f"MLflow at {where} does not answer",
        "refused": f"MLflow at {where} refuses the request",
        "no driver": f"MLflow cannot open {where} here",
        "ours": "mirroring to MLflow failed: a defect of nml-orch, or a store that cannot be read",
    }[error_kind(error)]
    return f"{message} ({reason(error)})"


def _inputs(data: Iterable[Data]) -> list[Any]:
    """Data sets as MLflow's entities. A data set with two uses is listed once, with both."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    uses: dict[Data, list[str]] = {}
    for item in data:
        uses.setdefault(replace(item, context=""), []).append(item.context)
    return [
        DatasetInput(
            Dataset(d.name, d.digest, d.where, json.dumps({"uri": d.uri}), profile=d.profile),
            [InputTag("mlflow.data.context", ", ".join(contexts))],
        )
        for d, contexts in uses.items()
    ]


def _milliseconds(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1000)


def connect(uri: str) -> MlflowClient:
    """A client of a server or database; makes the database. TrackingError if its file is no use."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    check_answers(uri)
    from mlflow import MlflowClient

    _quiet_loggers()
    if (path := sqlite.path_of(uri)) is not None:
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        with sqlite.alone(path):
            sqlite.check(path)
            # MLflow writes the artifacts' path into its SQL; a URI has no quotes or colons.
            SqlAlchemyStore(uri, (path.parent / "mlartifacts").as_uri())
            sqlite.remove_stray(uri, path)
    return MlflowClient(tracking_uri=uri)


def _quiet_loggers() -> None:
    import logging

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not os.environ.get("NML_DEBUG"):  # the caller tells the error, in a sentence
        logging.getLogger("mlflow.store").setLevel(logging.CRITICAL)

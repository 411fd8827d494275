"""What MLflow shows of a store. The only module that imports mlflow.

One parent run a sweep; below it the runs that `runs.py` makes, each found again by its tags, so
that nothing is ever logged twice. Tags are named here and nowhere else. When to call it, and what
to do when MLflow does not answer, is `mirror.py`'s.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.step.address import SweepAddress
from orchestrator.store.provenance import redact
from orchestrator.tracking.runs import Data, Shown, step_unit

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = 900  # metrics in one call; the server's limit is 1,000
VIEW = "workflowType=machine_learning"  # of a page's address
KIND_TAG = "mlflow.experimentKind"
NOTE = 7500  # characters of a description; a tag holds 8,000
NOTES = ("verdicts.md", "report.md")  # the file of a report that describes it, best first
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
    data: Sequence[Data] = ()  # the corpora it rests on

    @property
    def note(self) -> str:
        """The run's description in Markdown: the report's own words, cut at a line's end."""
        for name in NOTES:
            path = self.folder / name
            if path.is_file():
                text = path.read_text(encoding="utf-8")
                return text if len(text) <= NOTE else text[:NOTE].rpartition("\n")[0] + "\n\n..."
        return ""


@dataclass
class _Child:
    run_id: str
    fingerprint: str
    complete: bool
    model: str = ""  # id of the model that the run made


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
        # Without it the pages open among views for language-model applications.
        self.client.set_experiment_tag(self.experiment_id, KIND_TAG, "custom_model_development")
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
                    tags.get("nml.model", ""),
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
                "nml.address": str(SweepAddress(self.name)),
                "nml.store": self.store_id,
                "nml.status": "running",
            },
        )
        return str(run.info.run_id)

    def holds(self, address: str, fingerprint: str) -> bool:
        """Whether a step is mirrored, whole, as it is now."""
        child = self.children.get(address)
        return child is not None and child.complete and child.fingerprint == fingerprint

    def drop(self, address: str) -> None:
        """Send a child run, and the model it made, to MLflow's trash."""
        known = self.children.pop(address)
        if known.model:
            self.client.delete_logged_model(known.model)
        self.client.delete_run(known.run_id)

    def child(self, shown: Shown) -> None:
        """Mirror one run, in place of what an earlier fingerprint left."""
        from mlflow.entities import Metric, Param, RunTag

        known = self.children.get(shown.address)
        if known is not None and known.fingerprint != shown.fingerprint:
            self.drop(shown.address)
            known = None
        if known is None:
            known = _Child(self._new_child(shown), shown.fingerprint, False)
            self.children[shown.address] = known
            self._lineage(known, shown)
        finished = _milliseconds(shown.finished)
        metrics = [Metric(name, value, finished, at) for name, at, value in shown.points]
        for start in range(BATCH, len(metrics), BATCH):
            self.client.log_batch(known.run_id, metrics=metrics[start : start + BATCH])
        for name, content in shown.files.items():
            self._log_file(known.run_id, name, content)
        self.client.log_batch(
            known.run_id,
            metrics=metrics[:BATCH],
            params=[Param(name, value) for name, value in shown.params.items()],
            tags=[RunTag("nml.status", "done")],
        )
        self.client.set_terminated(known.run_id, "FINISHED", finished)
        known.complete = True

    def _new_child(self, shown: Shown) -> str:
        tags = {
            "mlflow.parentRunId": self.parent_id,
            "nml.kind": shown.kind,
            "nml.address": shown.address,
            "nml.fingerprint": shown.fingerprint,
            "nml.store": self.store_id,
            "nml.status": "mirroring",
            **{f"nml.{name}": value for name, value in shown.labels.items()},
        }
        if shown.commit:
            tags["mlflow.source.git.commit"] = shown.commit
        run = self.client.create_run(
            self.experiment_id,
            start_time=_milliseconds(shown.started),
            tags=tags,
            run_name=shown.name,
        )
        return str(run.info.run_id)

    def _lineage(self, known: _Child, shown: Shown) -> None:
        """Which data and which encoder a run read, and the model it made."""
        from mlflow.entities import LoggedModelInput, LoggedModelOutput

        encoder = self.children.get(shown.encoder)
        models = [LoggedModelInput(encoder.model)] if encoder and encoder.model else []
        if shown.data or models:
            self.client.log_inputs(known.run_id, _inputs(shown.data), models)
        if shown.makes_model:
            model = self.client.create_logged_model(
                self.experiment_id,
                name=_model_name(shown.name),
                source_run_id=known.run_id,
                tags={"nml.address": shown.address, "nml.fingerprint": shown.fingerprint},
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
        """Bring the parent run up to the readout: metrics by noise level, files, status."""
        from mlflow.entities import Metric, RunTag

        if record.fingerprint == self.parent_fingerprint:
            return
        unit, scale = step_unit([level for _, level, _ in record.points])
        now = int(datetime.now().timestamp() * 1000)
        wanted = {(name, round(level * scale)): value for name, level, value in record.points}
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
        }
        if record.note:
            tags["mlflow.note.content"] = record.note
            self.client.set_experiment_tag(self.experiment_id, "mlflow.note.content", record.note)
        self.client.log_batch(self.parent_id, tags=[RunTag(k, v) for k, v in tags.items()])
        self.client.set_terminated(self.parent_id, "FINISHED")
        self.parent_fingerprint = record.fingerprint

    def _points(self) -> dict[tuple[str, int], float]:
        """What the parent shows, by metric and step."""
        names = sorted(self.client.get_run(self.parent_id).data.metrics)
        return {
            (name, point.step): point.value
            for name in names
            for point in self.client.get_metric_history(self.parent_id, name)
        }

    def _replace_parent(self) -> None:
        """Begin the parent anew: no logged point can be taken back, and two at a level mislead."""
        old, self.parent_id = self.parent_id, self._new_parent()
        for child in self.children.values():
            self.client.set_tag(child.run_id, "mlflow.parentRunId", self.parent_id)
        self.client.delete_run(old)


# -- small parts -----------------------------------------------------------------------------------


def trouble(error: Exception) -> str:
    """Whose fault an error of MLflow's client is: "unreachable", "refused" (MLflow said no), "no
    driver" (a database's Python package is not installed) or "ours".
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


def story(error: Exception, uri: str) -> str:
    """What happened to MLflow, told apart from a mistake of our own."""
    told = {
        "unreachable": f"MLflow at {redact(uri)} does not answer",
        "refused": f"MLflow at {redact(uri)} refuses what it is told",
        "no driver": f"MLflow cannot open {redact(uri)} here",
        "ours": "mirroring to MLflow failed by a defect of nml-orch or a store that cannot be read",
    }[trouble(error)]
    return f"{told} ({reason(error)})"


def reason(error: Exception) -> str:
    """The last, most telling part of an error's words."""
    cause: BaseException = error
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__ or cause
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return redact(lines[0])[:160] if lines else type(cause).__name__


def _inputs(data: Iterable[Data]) -> list[Any]:
    """Data sets as MLflow takes them; one that a run read for two ends is named once, with both."""
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


def _model_name(run_name: str) -> str:
    """A model's name: a run's without the marks that MLflow forbids."""
    return re.sub(r"[^\w=-]+", "_", run_name.removeprefix("pretrain "))


def _milliseconds(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1000)


def _quieten() -> None:
    import logging

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def pages(uri: str, host: str) -> dict[str, str]:
    """Each experiment's pages on a server at `host`: its runs, and its newest sweep's charts.

    Raises what the client raises. MLflow's own front page opens on its views for language-model
    traces; these links do not.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    _quieten()
    client = MlflowClient(tracking_uri=uri)
    found: dict[str, str] = {}
    for experiment in client.search_experiments(max_results=50):
        if experiment.name == "Default":
            continue
        runs, view = f"{host}/#/experiments/{experiment.experiment_id}/runs", f"?{VIEW}"
        found[experiment.name] = f"{runs}{view}"
        sweeps = client.search_runs(
            [experiment.experiment_id], "tags.`nml.kind` = 'sweep'", max_results=1
        )
        for sweep in sweeps:
            charts = f"{runs}/{sweep.info.run_id}/model-metrics{view}"
            found[f"{experiment.name}: the curves over noise"] = charts
    return found

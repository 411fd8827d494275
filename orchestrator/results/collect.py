"""From the store to the report: collects the tables that `analysis` reads, keeps what it writes.

The report is a view, not evidence: it has no drift. It is written anew whenever the steps it reads
have changed, and kept under `report/<experiment>` in the store, its own manifest last.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis import pretrained, schemas
from analysis.readout import CellKey, Question, Readout
from analysis.summary import summary as summarised
from jobs.storage.folder import Folder
from orchestrator.errors import UserError
from orchestrator.experiment.last_sweep import written
from orchestrator.plan.assess import look
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepState, StepStatus
from orchestrator.results import derived
from orchestrator.step.address import ReportAddress
from orchestrator.step.fingerprint import fingerprint
from orchestrator.step.step import Step
from orchestrator.store import provenance
from orchestrator.store.manifest import MANIFEST, Record
from orchestrator.store.store import Store
from orchestrator.tracking.mlflow import SweepRecord
from orchestrator.tracking.runs import Data, Showing

PROTOCOL = 6  # raised when the report's contents change
SUMMARY = "summary.parquet"
NAMED = "encoders.parquet"


@dataclass(frozen=True)
class Report:
    """A written report."""

    place: Folder
    fingerprint: str
    summary: pa.Table  # of analysis.schemas.SUMMARY_SCHEMA
    named: pa.Table  # of analysis.schemas.PRETRAINED_SUMMARY_SCHEMA
    complete: bool  # every step of the plan was there
    data: tuple[Data, ...]  # the corpora that it rests on

    def record(self, folder: Path) -> SweepRecord:
        """What MLflow's parent run shows of it; `folder` holds the report's files.

        Named encoders have metrics of their own, at step 0 for want of a noise level.
        """
        points = [(row["metric"], row["noise"], row["mean"]) for row in self.summary.to_pylist()]
        points += [
            (
                f"encoders/{row['encoder']}/{row['task']}/{row['method']}/"
                f"{row['metric'] if row['accuracy'] is None else 'accuracy'}/"
                f"fraction_{row['fraction']:g}",
                0.0,
                pretrained.main_score(row),
            )
            for row in self.named.to_pylist()
        ]
        return SweepRecord(
            fingerprint=self.fingerprint,
            points=tuple(points),
            folder=folder,
            status="done" if self.complete else "incomplete",
            data=self.data,
        )


def collect(plan: Plan, store: Store) -> Readout:
    """What the store holds of a plan, as the tables that `analysis` reads."""
    return _Found(plan, store).readout({}, ())


def refresh(
    plan: Plan,
    store: Store,
    problems: Mapping[str, StepStatus] | None = None,
    *,
    rotation: bool = False,
) -> Report:
    """The report of what the store holds, written only if that has changed.

    `problems` are the steps that this run could not finish; without them, they are read from the
    store. `rotation` measures how far the feature spaces have turned, which reads all
    test features; once measured it stays in the report. Raises UserError while there is nothing to
    report.
    """
    found = _Found(plan, store)
    turned = list(derived.rotations(found.done("features"), store, rotation))
    if problems is None:
        found_now = look(plan, store)
        problems = {a: s for a, s in found_now.items() if s.state is not StepState.DONE}
    mark = fingerprint(
        {
            "protocol": PROTOCOL,
            "title": plan.experiment.title,
            "steps": {address: r.fingerprint for address, r in found.records.items()},
            "made": {address: r.finished for address, r in found.records.items()},
            "rotation": len(turned),
            "problems": {a: [p.state, p.reason] for a, p in problems.items()},
        }
    )
    folder = store.root / str(ReportAddress(plan.experiment.name))
    complete = len(found.records) == len(plan.steps)
    if folder.exists(MANIFEST) and folder.read_json(MANIFEST).get("fingerprint") == mark:
        summary, reached = folder.read_table(SUMMARY), folder.read_table(NAMED)
        return Report(folder, mark, summary, reached, complete, found.data())
    return _write(found, folder, mark, problems, complete, turned)


def _write(
    found: _Found,
    place: Folder,
    mark: str,
    problems: Mapping[str, StepStatus],
    complete: bool,
    turned: Sequence[dict[str, Any]],
) -> Report:
    from analysis.report.write import write

    if not found.records:
        raise UserError(f"nothing to report: {place.uri} has no finished step; run a sweep first")
    readout = found.readout(problems, turned)
    summary, reached = summarised(readout), pretrained.summary(readout)
    with tempfile.TemporaryDirectory() as folder:
        write(readout, Path(folder))
        (Path(folder) / "experiment.yaml").write_text(written(found.plan.experiment))
        pq.write_table(summary, Path(folder) / SUMMARY)
        pq.write_table(reached, Path(folder) / NAMED)
        place.delete()
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        for path in files:
            place.write_bytes(path.relative_to(folder).as_posix(), path.read_bytes())
    place.write_json(
        MANIFEST,
        {
            "fingerprint": mark,
            "kind": "report",
            "provenance": {**provenance.environment(), "finished": provenance.now()},
        },
    )
    return Report(place, mark, summary, reached, complete, found.data())


@contextmanager
def local(report: Report) -> Iterator[Path]:
    """A local folder that holds the report's files, for as long as the block lasts."""
    if report.place.is_local:
        yield report.place.local_path()
        return
    with tempfile.TemporaryDirectory() as folder:
        copy(report, Path(folder))
        yield Path(folder)


def copy(report: Report, target: Path) -> None:
    """Copy the report's files into a local folder."""
    for name, _ in report.place.files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if report.place.is_local:
            shutil.copyfile(report.place.local_path() / name, target / name)
        else:
            (target / name).write_bytes(report.place.read_bytes(name))


class _Found:
    """The plan's finished steps, and their tables."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store = plan, store
        self.records = {
            address: record
            for address, record in store.records(plan.steps).items()
            if record.fingerprint == plan.steps[address].fingerprint
        }

    def readout(
        self, problems: Mapping[str, StepStatus], turned: Sequence[dict[str, Any]]
    ) -> Readout:
        """Everything the report is made of; UserError where a task would be counted twice."""
        cells = self._cells()
        largest = max(self.plan.experiment.tuning.fractions)
        remarks = list(derived.quarantined(self.done("corpus")))
        answers = list(derived.answers(self.done("tune"), self.store, largest, remarks))
        transition = list(derived.transition(self.done("noise"), self.store, remarks))
        unfinished = [
            {"address": address, "status": problem.state, "reason": problem.reason}
            for address, problem in problems.items()
        ]
        return Readout(
            experiment=self.plan.experiment.name,
            question=self._question(),
            cells=cells,
            spectra=_table(self._in_domains(self._spectra()), schemas.SPECTRA_SCHEMA),
            pretraining=_table(self._pretraining(), schemas.PRETRAINING_SCHEMA),
            pretraining_curves=_table(self._curves(), schemas.CURVES_SCHEMA),
            noise=_table(self._noise(), schemas.NOISE_SCHEMA),
            problems=_table([*unfinished, *remarks], schemas.PROBLEMS_SCHEMA),
            predictions=_table(answers, schemas.PREDICTIONS_SCHEMA),
            rotation=_table(self._in_domains(turned), schemas.ROTATION_SCHEMA),
            transition=_table(transition, schemas.TRANSITION_SCHEMA),
            pretrained_cells=_table(self._named(), schemas.PRETRAINED_CELLS_SCHEMA),
            label_noise_cells=_table(self._relabelled(), schemas.LABEL_NOISE_CELLS_SCHEMA),
            pretrained_spectra=_table(self._named_spectra(), schemas.PRETRAINED_SPECTRA_SCHEMA),
            provenance={**provenance.environment(), "written": provenance.now()},
        )

    def data(self) -> tuple[Data, ...]:
        """The corpora of the plan."""
        return tuple(Showing(self.plan, self.store).sweep_data())

    def _question(self) -> Question:
        experiment = self.plan.experiment
        tasks = self.plan.tasks
        recipe = experiment.pretrain.recipe if experiment.pretrain else None
        return Question(
            title=experiment.title or experiment.name,
            corpus=experiment.corpus.name if experiment.corpus else "",
            noise_kind=experiment.noise.kind if experiment.noise else "",
            objective=recipe.objective if recipe else "",
            recipe=recipe.name if recipe else "",
            encoder=recipe.model if recipe else "",
            levels=experiment.noise.levels if experiment.noise else (),
            seeds=experiment.pretrain.seeds if experiment.pretrain else (),
            id_tasks=tuple(task.name for task in tasks if task.domain == "id"),
            ood_tasks=tuple(task.name for task in tasks if task.domain == "ood"),
            methods=tuple(experiment.tuning.methods),
            fractions=experiment.tuning.fractions,
            tuning_seeds=experiment.tuning.seeds,
            encoders=tuple(encoder.name for encoder in experiment.encoders),
            label_noise=experiment.tuning.label_noise,
            cells=frozenset(self._asked()),
        )

    def _asked(self) -> Iterator[CellKey]:
        """The clean cells of the plan, of encoders trained here."""
        for step in self.plan.of_kind("tune"):
            row = step.labels
            if "encoder" not in row and not row["label_noise"]:
                task, method = str(row["task"]), str(row["method"])
                head = float(row["fraction"]), int(row["tuning_seed"])
                yield float(row["noise"]), int(row["seed"]), task, method, *head

    def done(self, kind: str, *, named: bool = False) -> Iterator[tuple[Step, Record]]:
        """Finished steps of a kind, of the encoders trained here or of the named ones.

        Cells of labels made wrong on purpose are left out: an axis that no average may mix in.
        """
        for step in self.plan.of_kind(kind):
            if step.address not in self.records or step.labels.get("label_noise"):
                continue
            if ("encoder" in step.labels) == named:
                yield step, self.records[step.address]

    def _relabelled(self) -> Iterator[dict[str, Any]]:
        """The rows of the cells that `done` leaves out, of all encoders."""
        left_out = [
            step.address
            for step in self.plan.of_kind("tune")
            if step.labels.get("label_noise") and step.address in self.records
        ]
        noise = self.plan.experiment.noise
        for labels, row in self._cell_rows(left_out):
            yield {
                **row,
                "noise_kind": noise.kind if noise and "noise" in labels else "",
                "noise": labels.get("noise"),
                "pretrain_seed": labels.get("seed"),
                "encoder": labels.get("encoder"),
                "label_noise": labels["label_noise"],
            }

    def _read(self, step: Step, name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.store.output(step.address).read_table(name).to_pylist()
        return rows

    def _cells(self) -> pa.Table:
        """The cells' own rows, with what their addresses say beside them.

        Raises UserError where a task would be counted twice.
        """
        found = self.store.cells([step.address for step, _ in self.done("tune")])
        if found is None:
            return schemas.CELLS_SCHEMA.empty_table()
        labels = [self.plan.steps[address].labels for address in found["address"].to_pylist()]
        noise = self.plan.experiment.noise
        joined: dict[str, Sequence[Any]] = {
            "noise_kind": [noise.kind if noise else ""] * len(labels),
            "noise": [row["noise"] for row in labels],
            "pretrain_seed": [row["seed"] for row in labels],
        }
        derived.refuse_counted_twice(found, joined["noise"], joined["pretrain_seed"])
        columns = []
        for column in schemas.CELLS_SCHEMA:
            if column.name in joined:
                columns.append(pa.array(joined[column.name], column.type))
            elif column.name in found.column_names:
                columns.append(found[column.name].cast(column.type))
            else:
                columns.append(pa.nulls(found.num_rows, column.type))
        made = pa.Table.from_arrays(columns, schema=schemas.CELLS_SCHEMA)
        places = {address: at for at, address in enumerate(self.plan.steps)}
        rank = pa.array([places[address] for address in found["address"].to_pylist()])
        return made.take(pc.sort_indices(rank))

    def _spectra(self) -> Iterator[dict[str, Any]]:
        for step, _ in self.done("features"):
            for row in self._read(step, "spectrum.parquet"):
                yield {
                    **row,
                    "address": step.address,
                    "noise": step.labels["noise"],
                    "pretrain_seed": step.labels["seed"],
                    "images": step.labels["images"],
                }

    def _in_domains(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Each row of an image set in every domain that has a task over it: the test images of an
        ID task may be another's OOD test too.
        """
        domains: dict[str, set[str]] = {}
        for task in self.plan.tasks:
            domains.setdefault(task.images, set()).add(task.domain)
        for row in rows:
            for domain in sorted(domains[row["images"]]):
                yield {**row, "domain": domain}

    def _named(self) -> Iterator[dict[str, Any]]:
        """The rows of the cells of the named encoders alone."""
        cells = [step.address for step, _ in self.done("tune", named=True)]
        for labels, row in self._cell_rows(cells):
            yield {**row, **labels}

    def _cell_rows(
        self, addresses: Sequence[str]
    ) -> Iterator[tuple[Mapping[str, str | float | int], dict[str, Any]]]:
        """The rows of some cells with their steps' labels, in the plan's order."""
        found = self.store.cells(addresses)
        rank = {address: at for at, address in enumerate(addresses)}
        rows = [] if found is None else found.to_pylist()
        for row in sorted(rows, key=lambda row: rank[row["address"]]):
            yield self.plan.steps[row["address"]].labels, row

    def _named_spectra(self) -> Iterator[dict[str, Any]]:
        """The spectra of the named encoders' features alone."""
        for step, _ in self.done("features", named=True):
            for row in self._read(step, "spectrum.parquet"):
                yield {**step.labels, **row, "address": step.address}

    def _pretraining(self) -> Iterator[dict[str, Any]]:
        for step, record in self.done("pretrain"):
            yield {
                "address": step.address,
                "noise": step.labels["noise"],
                "seed": step.labels["seed"],
                **{name.removeprefix("pretrain/"): v for name, v in record.metrics.items()},
            }

    def _curves(self) -> Iterator[dict[str, Any]]:
        for step, record in self.done("pretrain"):
            if "curves.parquet" in record.files:
                for row in self._read(step, "curves.parquet"):
                    yield {
                        **row,
                        "address": step.address,
                        "noise": step.labels["noise"],
                        "seed": step.labels["seed"],
                    }

    def _noise(self) -> Iterator[dict[str, Any]]:
        for step, record in self.done("noise"):
            yield {
                "level": step.labels["noise"],
                "eligible": record.counts["eligible"],
                "changed": record.counts["changed"],
                "realised_percent": record.metrics["noise/realised_percent"],
            }


def _table(
    rows: Iterator[dict[str, Any]] | Sequence[dict[str, Any]], schema: pa.Schema
) -> pa.Table:
    """Rows as a table of the schema; fields it does not name are left out."""
    return pa.Table.from_pylist(list(rows), schema=schema)

"""Reads the tables of a report from the finished steps of a plan.

Takes a plan and its store, gives a `Readout`. Never writes a report; `collect.py` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from analysis import schemas
from analysis.readout import CellKey, NoiseDraws, Question, Readout
from analysis.registration import Registration
from jobs.embeddings.ledger import LEDGERS, drifts
from jobs.encoders.api import ApiEncoder
from jobs.features.spec import FeaturesStep, GivenStep
from orchestrator.experiment import own_claims
from orchestrator.experiment.model import Experiment
from orchestrator.plan.assess import assess
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepState, StepStatus
from orchestrator.results import derived, masks
from orchestrator.step.address import (
    AddressError,
    CellAddress,
    FeaturesAddress,
    NoiseAddress,
    OverlapAddress,
    RunAddress,
    parse_as,
    parse_step,
)
from orchestrator.step.step import Step
from orchestrator.store import provenance
from orchestrator.store.manifest import Record
from orchestrator.store.store import Store
from orchestrator.tracking.pages import search
from orchestrator.tracking.runs import Data, RunViews, group_of


class FinishedSteps:
    """The finished steps of a plan, and their tables."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store = plan, store
        self.records = {
            address: found.record
            for address, found in assess(plan, store).items()
            if found.state is StepState.DONE and found.record is not None
        }

    def readout(
        self,
        problems: Mapping[str, StepStatus],
        rotations: Sequence[dict[str, Any]],
        claims: Sequence[Registration] = (),
        runs_page: str = "",
    ) -> Readout:
        """All tables of the report. Raises UserError if a task would be counted twice.

        `claims` is the history of the experiment's registered claims, `runs_page` the page of its
        runs on a tracking server.
        """
        cells = self._cells()
        largest = max(self.plan.experiment.tuning.fractions)
        remarks = [
            *derived.quarantined(self.done("corpus")),
            *derived.damaged(self.done("pretrain")),
            *derived.coarse(self.done("features"), self.store),
            *derived.coarse(self.done("features", of_pretrained=True), self.store),
        ]
        cells_with_noise = [
            (step, self.records[step.address])
            for step in self.plan.of_kind("tune")
            if step.address in self.records
        ]
        remarks += derived.constant(cells_with_noise, self.store)
        predictions = list(derived.predictions(self.done("tune"), self.store, largest, remarks))
        transition = list(derived.transition(self.done("noise"), self.store, remarks))
        unfinished = [
            {"address": address, "status": problem.state, "reason": problem.reason}
            for address, problem in problems.items()
        ]
        return Readout(
            experiment=self.plan.experiment.name,
            own_claims=own_claims.of(self.plan.experiment),
            question=replace(self._question(), registrations=tuple(claims)),
            cells=cells,
            spectra=_table(self._in_domains(self._spectra()), schemas.SPECTRA_SCHEMA),
            pretraining=_table(self._pretraining(), schemas.PRETRAINING_SCHEMA),
            pretraining_curves=_table(self._curves(), schemas.CURVES_SCHEMA),
            noise=_table(self._noise(), schemas.NOISE_SCHEMA),
            problems=_table(
                [{**row, **_coordinates(row["address"])} for row in (*unfinished, *remarks)],
                schemas.PROBLEMS_SCHEMA,
            ),
            overlaps=_table(self._overlaps(), schemas.OVERLAPS_SCHEMA),
            predictions=_table(predictions, schemas.PREDICTIONS_SCHEMA),
            rotation=_table(self._in_domains(rotations), schemas.ROTATION_SCHEMA),
            transition=_table(transition, schemas.TRANSITION_SCHEMA),
            pretrained_cells=_table(self._pretrained_cells(), schemas.PRETRAINED_CELLS_SCHEMA),
            label_noise_cells=_table(self._label_noise_cells(), schemas.LABEL_NOISE_CELLS_SCHEMA),
            pretrained_spectra=_table(
                self._pretrained_spectra(), schemas.PRETRAINED_SPECTRA_SCHEMA
            ),
            class_iou=_table(self._class_iou(largest), schemas.CLASS_IOU_SCHEMA),
            scenes=_table(
                masks.scenes(self.plan, self._all_done(), self.store), schemas.SCENES_SCHEMA
            ),
            provenance={**provenance.environment(), "written": provenance.now()},
            run_pages=self._run_pages(runs_page) if runs_page else {},
        )

    def _run_pages(self, runs_page: str) -> dict[str, str]:
        """The page of the run that has each finished cell."""
        return {
            step.address: search(runs_page, group_of(self.plan, step))
            for step, _ in self.done("tune")
        }

    def _all_done(self) -> list[tuple[Step, Record]]:
        """The finished clean cells of all encoders, those trained here first."""
        return [*self.done("tune"), *self.done("tune", of_pretrained=True)]

    def _class_iou(self, fraction: float) -> Iterator[dict[str, Any]]:
        return masks.class_iou(self._all_done(), self.store, fraction)

    def data(self) -> tuple[Data, ...]:
        """The corpora of the plan."""
        return tuple(RunViews(self.plan, self.store).sweep_data())

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
            tuning_seeds=experiment.tuning.seeds or (),
            encoders=tuple(encoder.name for encoder in experiment.encoders),
            apis={
                encoder.name: len(drifts(self.store.root / LEDGERS / encoder.ledger))
                for encoder in experiment.encoders
                if isinstance(encoder, ApiEncoder)
            },
            label_noise=experiment.tuning.label_noise,
            cells=frozenset(self._planned_cells()),
            noise_draws=_draws(experiment),
            controls=experiment.tuning.controls,
            titles={task.name: task.title for task in tasks},
        )

    def _planned_cells(self) -> Iterator[CellKey]:
        """The clean cells in the plan of encoders trained here."""
        for step in self.plan.of_kind("tune"):
            row = step.labels
            if "encoder" not in row and not row["label_noise"]:
                task, method = str(row["task"]), str(row["method"])
                head = float(row["fraction"]), int(row["tuning_seed"])
                yield float(row["noise"]), int(row["seed"]), task, method, *head

    def done(self, kind: str, *, of_pretrained: bool = False) -> Iterator[tuple[Step, Record]]:
        """Finished steps of a kind, of encoders trained here or else of pretrained ones.

        Cells with downstream label noise are left out: no average may mix them in.
        """
        for step in self.plan.of_kind(kind):
            if step.address not in self.records or step.labels.get("label_noise"):
                continue
            if ("encoder" in step.labels) == of_pretrained:
                yield step, self.records[step.address]

    def _label_noise_cells(self) -> Iterator[dict[str, Any]]:
        """The rows of the cells with downstream label noise, of all encoders."""
        noisy = [
            step.address
            for step in self.plan.of_kind("tune")
            if step.labels.get("label_noise") and step.address in self.records
        ]
        noise = self.plan.experiment.noise
        for labels, row in self._cell_rows(noisy):
            yield {
                **row,
                "noise_kind": noise.kind if noise and "noise" in labels else "",
                "noise": labels.get("noise"),
                "pretrain_seed": labels.get("seed"),
                "encoder": labels.get("encoder"),
                "label_noise": labels["label_noise"],
            }

    def _read(self, step: Step, name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.store.committed(step.address).read_table(name).to_pylist()
        return rows

    def _cells(self) -> pa.Table:
        """The cells' own rows, with the noise and the seed of their encoders.

        Raises UserError if a task would be counted twice.
        """
        found = self.store.cells([step.address for step, _ in self.done("tune")])
        if found is None:
            return schemas.CELLS_SCHEMA.empty_table()
        labels = [self.plan.steps[address].labels for address in found["address"].to_pylist()]
        noise = self.plan.experiment.noise
        of_encoders: dict[str, Sequence[Any]] = {
            "noise_kind": [noise.kind if noise else ""] * len(labels),
            "noise": [row["noise"] for row in labels],
            "pretrain_seed": [row["seed"] for row in labels],
        }
        derived.refuse_counted_twice(found, of_encoders["noise"], of_encoders["pretrain_seed"])
        columns = []
        for column in schemas.CELLS_SCHEMA:
            if column.name in of_encoders:
                columns.append(pa.array(of_encoders[column.name], column.type))
            elif column.name in found.column_names:
                columns.append(found[column.name].cast(column.type))
            else:
                columns.append(pa.nulls(found.num_rows, column.type))
        cells = pa.Table.from_arrays(columns, schema=schemas.CELLS_SCHEMA)
        positions = {address: at for at, address in enumerate(self.plan.steps)}
        rank = pa.array([positions[address] for address in found["address"].to_pylist()])
        return cells.take(pc.sort_indices(rank))

    def _spectra(self) -> Iterator[dict[str, Any]]:
        for step, _ in self.done("features"):
            for row in self._read(step, "spectrum.parquet"):
                yield {
                    **_dtypes(step),
                    **row,
                    "address": step.address,
                    "noise": step.labels["noise"],
                    "pretrain_seed": step.labels["seed"],
                    "images": step.labels["images"],
                }

    def _in_domains(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Each row of a data set, once for each domain that has a task over its samples.

        The test samples of an ID task can be the OOD test of another task too.
        """
        domains: dict[str, set[str]] = {}
        for task in self.plan.tasks:
            domains.setdefault(task.images, set()).add(task.domain)
        for row in rows:
            for domain in sorted(domains[row["images"]]):
                yield {**row, "domain": domain}

    def _pretrained_cells(self) -> Iterator[dict[str, Any]]:
        """The rows of the cells of pretrained encoders."""
        cells = [step.address for step, _ in self.done("tune", of_pretrained=True)]
        for labels, row in self._cell_rows(cells):
            yield {**row, **labels}

    def _cell_rows(
        self, addresses: Sequence[str]
    ) -> Iterator[tuple[Mapping[str, str | float | int], dict[str, Any]]]:
        """The rows of some cells with their steps' labels, in the order of `addresses`."""
        found = self.store.cells(addresses)
        rank = {address: at for at, address in enumerate(addresses)}
        rows = [] if found is None else found.to_pylist()
        for row in sorted(rows, key=lambda row: rank[row["address"]]):
            yield self.plan.steps[row["address"]].labels, row

    def _pretrained_spectra(self) -> Iterator[dict[str, Any]]:
        """The spectra of pretrained encoders' features."""
        for step, _ in self.done("features", of_pretrained=True):
            for row in self._read(step, "spectrum.parquet"):
                yield {**_dtypes(step), **step.labels, **row, "address": step.address}

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

    def _overlaps(self) -> Iterator[dict[str, Any]]:
        """The counted overlaps of the compared tasks, and the tasks that have no samples."""
        for step, record in self.done("overlap"):
            counts, sets = record.counts, ("pretraining", "training")
            yield {
                "task": step.labels["task"],
                "corpus": parse_as(OverlapAddress, step.address).corpus,
                "test_images": counts["test_images"],
                "undecodable": counts["test_undecodable"],
                "overlap": counts["overlap"],
                **{name: counts.get(f"overlap_{name}") for name in sets},
                **{
                    kind: sum(counts.get(f"{kind}_{name}", 0) for name in sets)
                    for kind in ("exact", "near")
                },
                "note": "",
            }
        for task in self.plan.tasks:
            if task.corpus is None:
                yield {"task": task.name, "note": "not compared: given features, no samples"}

    def _noise(self) -> Iterator[dict[str, Any]]:
        for step, record in self.done("noise"):
            yield {
                "level": step.labels["noise"],
                "draw": step.labels.get("draw"),
                "eligible": record.counts["eligible"],
                "changed": record.counts["changed"],
                "realised_percent": record.metrics["noise/realised_percent"],
            }


def _draws(experiment: Experiment) -> NoiseDraws:
    """Whether each replicate has its own draw of noise."""
    noise = experiment.noise
    if noise is None or not noise.shared:
        return "own"
    return "given" if noise.kind == "given" else "shared"


def _dtypes(step: Step) -> dict[str, str]:
    """The types of features whose spectrum does not name them: it was made before it did.

    Those that stand are stored as float32; float16 features of that time are drift.
    """
    spec = step.spec
    assert isinstance(spec, FeaturesStep | GivenStep)
    measured = spec.precision if isinstance(spec, FeaturesStep) else spec.dtype
    return {"dtype": measured, "stored": spec.dtype}


def _coordinates(address: str) -> dict[str, Any]:
    """The columns of PROBLEMS_SCHEMA that an address gives; none for a text that is no step's."""
    try:
        step = parse_step(address)
    except AddressError:
        return {}
    found: dict[str, Any] = {}
    if isinstance(step, NoiseAddress):
        found["noise"] = step.level
    if isinstance(step, OverlapAddress):
        found["task"] = step.task
    run = step.of if isinstance(step, FeaturesAddress | CellAddress) else step
    if isinstance(run, RunAddress):
        found |= {"noise": run.level, "seed": run.seed}
    if isinstance(step, CellAddress):
        trial = step.trial
        found |= {"task": step.task, "method": trial.method, "label_noise": trial.label_noise}
    return found


def _table(
    rows: Iterator[dict[str, Any]] | Sequence[dict[str, Any]], schema: pa.Schema
) -> pa.Table:
    """Rows as a table of a schema, without the fields that the schema lacks."""
    return pa.Table.from_pylist(list(rows), schema=schema)

"""What the steps that are left to run will cost.

The unit is the GPU-hour of one pre-training worker. Without a GPU a worker is some CPUs.

    pre-training   samples seen / rate     rate: given, or what finished runs of this store recorded
    features       samples encoded / rate  rate: given, measured here, or FORWARD_SHARE of the above
    tuning         ID cells / rate         rate: given, or measured here (OOD cells train nothing)

Where this store has measured nothing, a rate may come from another sweep on this machine
(`speed.py`). A machine that has measured a rate counts as one GPU. A plan's hours on N GPUs are its
GPU-hours / N: levels and seeds run side by side. Time between stages (starts, waiting for data) is
not included.

Every figure names its source. What cannot be known yet is reported as unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from jobs.pretrain.spec import PretrainStep
from jobs.tuning.spec import TuneStep
from orchestrator.plan import units
from orchestrator.plan.assess import Assessment
from orchestrator.plan.counting import samples_of, training_rows
from orchestrator.plan.plan import Plan
from orchestrator.plan.speed import Given, rates_of
from orchestrator.plan.states import StepState


@dataclass(frozen=True)
class Cost:
    """The cost of the steps that are left to run."""

    pretrain_runs: int
    samples: int | None  # samples that pre-training reads; None while the corpus is not counted
    optimiser_steps: int | None
    hours: float | None  # GPU-hours of pre-training
    hours_rest_on: str
    feature_samples: int | None  # samples to encode, views counted
    feature_hours: float | None
    feature_hours_rest_on: str
    cells: int
    cells_trained: int  # the others are out-of-domain and only evaluated
    configurations: int
    tuning_hours: float | None
    tuning_hours_rest_on: str
    gpu_hours: float  # of what is known
    unknown: tuple[str, ...]  # stages that gpu_hours lacks
    gpus: int | None
    wall_hours: float | None  # on so many GPUs
    price: float | None
    bytes_stored: int  # by the steps that are done
    bytes_to_write: int | None  # for the rest, from done steps of the same kind
    on_cpu: bool = False  # no stage asks for a GPU: the hours are those of this machine

    def as_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The cost as lines of text."""
        if not (self.pretrain_runs or self.feature_samples != 0 or self.cells):
            return [f"Nothing left to run; {units.size(self.bytes_stored)} stored."]
        to_write = (
            "unknown" if self.bytes_to_write is None else f"about {units.size(self.bytes_to_write)}"
        )
        rows = "" if self.samples is not None else " (the corpus is not built yet; give --rows)"
        return [
            f"To pre-train: {self.pretrain_runs} encoders, {units.count(self.samples)} samples, "
            f"{units.count(self.optimiser_steps)} optimizer steps{rows}",
            f"  {self._time(self.hours)} ({self.hours_rest_on})",
            f"To encode: {units.count(self.feature_samples)} samples",
            f"  {self._time(self.feature_hours)} ({self.feature_hours_rest_on})",
            f"To tune: {self.cells:,} cells, {self.configurations:,} configurations",
            f"  {self._time(self.tuning_hours)} ({self.tuning_hours_rest_on})",
            self._total_line(),
            f"Bytes: {units.size(self.bytes_stored)} stored, {to_write} to write",
        ]

    def _time(self, hours: float | None) -> str:
        """A stage's time: GPU-hours, or minutes where no GPU is asked for."""
        if not self.on_cpu:
            return f"GPU-hours: {units.hours(hours)}"
        return f"Time on CPUs: {'unknown' if hours is None else units.minutes(hours)}"

    def _total_line(self) -> str:
        if self.unknown and self.gpu_hours == 0:
            if self.on_cpu:
                return "Together: unknown time; a sweep shows the time left once it runs"
            return "Together: unknown GPU-hours"
        total = f"Together: {units.hours(self.gpu_hours)} GPU-hours"
        if self.on_cpu:
            total = f"Together: {units.minutes(self.gpu_hours)} on CPUs"
        if self.unknown:
            *others, last = self.unknown
            total += f", without {', '.join(others)} and {last}" if others else f", without {last}"
        if self.wall_hours is not None:
            total += f"; {units.hours(self.wall_hours)} h on {self.gpus} GPUs"
        if self.price is not None:
            total += f"; price {self.price:,.2f}"
        return total


def estimate(plan: Plan, assessments: Mapping[str, Assessment], given: Given | None = None) -> Cost:
    """The cost of the steps that would run."""
    given = given or Given()
    todo = [s for a, s in plan.steps.items() if assessments[a].state is not StepState.DONE]
    runs = [step.spec for step in todo if isinstance(step.spec, PretrainStep)]
    rows = training_rows(plan, assessments, given.rows)
    samples = steps = 0 if not runs else None
    if rows is not None:
        schedules = [run.recipe.schedule for run in runs]
        each = [one.epochs * (rows // one.batch_size) for one in schedules]  # only whole batches
        steps = sum(each)
        samples = sum(own * one.batch_size for own, one in zip(each, schedules, strict=True))
    encoded = samples_of(plan, todo, assessments)
    cells = [step.spec for step in todo if isinstance(step.spec, TuneStep)]
    trained = [cell for cell in cells if cell.task.domain == "id"]
    training, encoding, tuning = rates_of(plan, assessments, given)
    hours = {
        "pre-training": training.hours(samples),
        "features": encoding.hours(encoded),
        "tuning": tuning.hours(len(trained)),
    }
    total = sum(known for known in hours.values() if known is not None)
    price = given.price_per_gpu_hour
    return Cost(
        pretrain_runs=len(runs),
        samples=samples,
        optimiser_steps=steps,
        hours=hours["pre-training"],
        hours_rest_on=training.basis,
        feature_samples=encoded,
        feature_hours=hours["features"],
        feature_hours_rest_on=encoding.basis,
        cells=len(cells),
        cells_trained=len(trained),
        configurations=sum(cell.settings.configurations for cell in trained),
        tuning_hours=hours["tuning"],
        tuning_hours_rest_on=tuning.basis,
        gpu_hours=total,
        unknown=tuple(stage for stage, known in hours.items() if known is None),
        gpus=given.gpus,
        wall_hours=total / given.gpus if given.gpus else None,
        price=None if price is None else total * price,
        bytes_stored=sum(_bytes(found) for found in assessments.values()),
        bytes_to_write=_bytes_to_write(plan, assessments),
        on_cpu=given.gpus is None and given.price_per_gpu_hour is None and _on_cpu(plan),
    )


def _on_cpu(plan: Plan) -> bool:
    """Whether no stage of the experiment asks for a GPU."""
    experiment = plan.experiment
    trained = experiment.pretrain.resources.gpus_per_worker if experiment.pretrain else 0
    return not (trained or experiment.features.gpus_per_worker or experiment.tuning.gpus)


# -- how large -------------------------------------------------------------------------------------


def _bytes(found: Assessment) -> int:
    return found.record.bytes if found.record else 0


def _bytes_to_write(plan: Plan, assessments: Mapping[str, Assessment]) -> int | None:
    """From the median size of done steps of each kind; None if a kind to write has none."""
    by_kind: dict[str, list[Assessment]] = {}
    for step in plan.steps.values():
        by_kind.setdefault(step.kind, []).append(assessments[step.address])
    total = 0.0
    for found in by_kind.values():
        done = [_bytes(f) for f in found if f.state is StepState.DONE]
        left = len(found) - len(done)
        if left and not done:
            return None
        total += left * (median(done) if done else 0)
    return round(total)

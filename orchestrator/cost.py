"""What the steps still to be run will cost, from what is known before they run.

Every figure names what it rests on; what cannot be known yet is said, not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from jobs.corpus.spec import Corpus
from jobs.pretrain.spec import PretrainStep
from jobs.tuning.spec import TuneStep
from orchestrator.plan import Assessment, Plan, Standing

SPEED_METRIC = "pretrain/images_per_s"


@dataclass(frozen=True)
class Cost:
    """The price of what is left of a plan."""

    pretrain_runs: int
    samples: int | None  # images pre-training will see; None while the corpus is not counted
    optimiser_steps: int | None
    hours: float | None  # of one pre-training worker group
    hours_rest_on: str
    cells: int
    configurations: int
    bytes_stored: int  # by the steps that are done
    bytes_to_write: int | None  # for the rest, from done steps of the same kind

    def as_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """What a person reads."""
        if self.pretrain_runs == 0 and self.cells == 0:
            return [f"Nothing left to run; {_size(self.bytes_stored)} stored."]
        seen = "?" if self.samples is None else f"{self.samples:,}"
        steps = "?" if self.optimiser_steps is None else f"{self.optimiser_steps:,}"
        hours = "unknown" if self.hours is None else f"{self.hours:.3g} h"
        to_write = (
            "unknown" if self.bytes_to_write is None else f"about {_size(self.bytes_to_write)}"
        )
        return [
            f"To pre-train: {self.pretrain_runs} encoders, {seen} samples, {steps} optimiser steps",
            f"  worker hours: {hours} ({self.hours_rest_on})",
            f"To tune: {self.cells} cells, {self.configurations:,} configurations",
            f"Bytes: {_size(self.bytes_stored)} stored, {to_write} to write",
        ]


def estimate(
    plan: Plan, assessments: Mapping[str, Assessment], images_per_second: float | None = None
) -> Cost:
    """The cost of the steps that would run."""
    todo = [s for a, s in plan.steps.items() if assessments[a].standing is not Standing.DONE]
    runs = [step for step in todo if isinstance(step.spec, PretrainStep)]
    rows = _training_rows(plan, assessments)
    samples = steps = None
    if rows is not None:
        schedules = [s.spec.recipe.schedule for s in runs if isinstance(s.spec, PretrainStep)]
        samples = sum(schedule.epochs * rows for schedule in schedules)
        steps = sum(schedule.epochs * -(-rows // schedule.batch_size) for schedule in schedules)
    rate, basis = _rate(assessments, images_per_second)
    cells = [step.spec for step in todo if isinstance(step.spec, TuneStep)]
    return Cost(
        pretrain_runs=len(runs),
        samples=samples,
        optimiser_steps=steps,
        hours=samples / rate / 3600 if samples is not None and rate else None,
        hours_rest_on=basis,
        cells=len(cells),
        configurations=sum(c.configurations for c in cells if c.task.domain == "id"),
        bytes_stored=sum(_bytes(found) for found in assessments.values()),
        bytes_to_write=_bytes_to_write(plan, assessments),
    )


def _training_rows(plan: Plan, assessments: Mapping[str, Assessment]) -> int | None:
    """Rows of the corpus's training part: counted if it is built, else as its reader declares."""
    corpus = plan.experiment.corpus
    if corpus is None:  # nothing is pre-trained
        return 0
    found = assessments[f"corpus/{corpus.name}"].record
    if found is not None and "rows_train" in found.counts:
        return found.counts["rows_train"]
    return _declared_rows(corpus)


def _declared_rows(corpus: Corpus) -> int | None:
    rows = corpus.reader.rows
    return None if rows is None else round(rows * corpus.parts.train)


def _rate(assessments: Mapping[str, Assessment], given: float | None) -> tuple[float | None, str]:
    if given is not None:
        return given, f"at the given {given:g} images/s"
    measured = [
        found.record.metrics[SPEED_METRIC]
        for found in assessments.values()
        if found.record is not None and SPEED_METRIC in found.record.metrics
    ]
    if measured:
        return median(measured), f"at {median(measured):.0f} images/s, measured in this store"
    return None, "nothing measured yet; give --images-per-second"


def _bytes(found: Assessment) -> int:
    return found.record.bytes if found.record else 0


def _bytes_to_write(plan: Plan, assessments: Mapping[str, Assessment]) -> int | None:
    """From the median size of done steps of each kind; None if some kind has none done."""
    total = 0.0
    for kind in {step.kind for step in plan.steps.values()}:
        found = [assessments[step.address] for step in plan.of_kind(kind)]
        done = [_bytes(f) for f in found if f.standing is Standing.DONE]
        left = len(found) - len(done)
        if left and not done:
            return None
        total += left * (median(done) if done else 0)
    return round(total)


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"

"""How fast the stages are: given, else measured in the store, else on this machine, else assumed.

Rates of features and tuning come from the times between the ends of the store's steps: the time
between two ends belongs to the later step, without any pause before its start. They hold for the
machine that made the store. `rates.py` keeps them for plans of other stores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from jobs.features.spec import FeaturesStep
from jobs.pretrain.spec import PretrainStep
from jobs.tuning.spec import TuneStep
from orchestrator.plan import rates
from orchestrator.plan.assess import Assessment
from orchestrator.plan.counting import rows_trained, samples_of
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepState
from orchestrator.step.step import Step
from orchestrator.store.manifest import Record

SPEED_METRIC = "pretrain/images_per_s"
FORWARD_SHARE = 3.0  # samples encoded in the time of training on one: backward costs two forward
PAUSE_SECONDS = 900.0  # a longer gap, from a step's end to the next one's start, is a pause


@dataclass(frozen=True)
class Given:
    """Rates of one GPU that the user gives where nothing is measured, or instead of it."""

    images_per_second: float | None = None  # pre-training
    features_per_second: float | None = None  # samples encoded
    cells_per_hour: float | None = None
    rows: int | None = None  # of the training part, while the corpus is not built
    gpus: int | None = None
    price_per_gpu_hour: float | None = None


@dataclass(frozen=True)
class Rate:
    """A rate per second and its source; None while it is unknown."""

    per_second: float | None
    basis: str

    def hours(self, count: float | None) -> float | None:
        """GPU-hours for a number of items; 0 for none, None if number or rate is unknown."""
        if count == 0:
            return 0.0
        return None if count is None or not self.per_second else count / self.per_second / 3600


def rates_of(
    plan: Plan, assessments: Mapping[str, Assessment], given: Given
) -> tuple[Rate, Rate, Rate]:
    """Rates of pre-training and of features in samples a second, of tuning in ID cells a second.

    Each is given, else measured in this store, else measured on this machine by another sweep.
    """
    done = [s for s in plan.steps.values() if assessments[s.address].state is StepState.DONE]
    todo = [s for s in plan.steps.values() if assessments[s.address].state is not StepState.DONE]
    runs, encodings, trained = _by_kind(todo)
    training = _training_rate(done, assessments, given.images_per_second)
    if training.per_second is None and (here := rates.known(plan, "pretrain", runs)):
        training = Rate(here.per_second, f"at {here.per_second:.0f} samples/s, {here.source}")
    timed, spent = _spent(done, assessments)
    if given.features_per_second is not None:
        encoding = _given_rate(given.features_per_second, "samples/s")
    elif (encoded := samples_of(plan, timed, assessments)) and spent.get("features"):
        encoding = _measured_rate(encoded / spent["features"], "samples/s")
    elif here := rates.known(plan, "features", encodings):
        encoding = Rate(here.per_second, f"at {here.per_second:.0f} samples/s, {here.source}")
    elif training.per_second is not None:
        basis = f"assumed: {FORWARD_SHARE:g} times the rate of pre-training"
        encoding = Rate(FORWARD_SHARE * training.per_second, basis)
    else:
        encoding = Rate(None, "nothing measured yet; give --features-per-second")
    cells = [s for s in timed if isinstance(s.spec, TuneStep) and s.spec.task.domain == "id"]
    if given.cells_per_hour is not None:
        tuning = Rate(given.cells_per_hour / 3600, f"at the given {given.cells_per_hour:g} cells/h")
    elif cells and spent.get("tune"):
        an_hour = 3600 * len(cells) / spent["tune"]
        tuning = Rate(an_hour / 3600, f"at {an_hour:.0f} cells/h, measured in this store")
    elif (here := rates.known(plan, "tune", trained)) and (
        rows := rows_trained(plan, trained, assessments)
    ):
        a_second = here.per_second * len(trained) / rows
        basis = f"at {here.per_second:,.0f} rows/s in all configurations and epochs, {here.source}"
        tuning = Rate(a_second, basis)
    else:
        tuning = Rate(None, "nothing measured yet; give --cells-per-hour")
    return training, encoding, tuning


def measured(plan: Plan, done: Mapping[str, Record]) -> dict[str, tuple[float, list[Step]]]:
    """The rates of steps that have just been done here, by kind, for `rates.remember`."""
    found = {
        address: Assessment(StepState.DONE, record=done[address])
        if address in done
        else Assessment(StepState.MISSING)
        for address in plan.steps
    }
    steps = [plan.steps[address] for address in plan.steps if address in done]
    timed, spent = _spent(steps, found)
    runs, encodings, trained = _by_kind(timed)
    kept: dict[str, tuple[float, list[Step]]] = {}
    if rate := _training_rate(runs, found, None).per_second:
        kept["pretrain"] = rate, runs
    if (encoded := samples_of(plan, encodings, found)) and spent.get("features"):
        kept["features"] = encoded / spent["features"], encodings
    if (rows := rows_trained(plan, trained, found)) and spent.get("tune"):
        kept["tune"] = rows / spent["tune"], trained
    return kept


def _by_kind(steps: Iterable[Step]) -> tuple[list[Step], list[Step], list[Step]]:
    """The pre-training runs, the features that are encoded here, and the ID cells."""
    runs, encodings, trained = list[Step](), list[Step](), list[Step]()
    for step in steps:
        if isinstance(step.spec, PretrainStep):
            runs.append(step)
        elif isinstance(step.spec, FeaturesStep) and step.spec.api is None:
            encodings.append(step)
        elif isinstance(step.spec, TuneStep) and step.spec.task.domain == "id":
            trained.append(step)
    return runs, encodings, trained


def _training_rate(
    done: Iterable[Step], assessments: Mapping[str, Assessment], given: float | None
) -> Rate:
    """The rate of one worker: the median over finished runs of rate / workers."""
    if given is not None:
        return _given_rate(given, "samples/s")
    measured = [
        record.metrics[SPEED_METRIC] / step.spec.resources.workers
        for step in done
        if isinstance(step.spec, PretrainStep)
        and (record := assessments[step.address].record) is not None
        and SPEED_METRIC in record.metrics
    ]
    if measured:
        return _measured_rate(median(measured), "samples/s")
    return Rate(None, "nothing measured yet; give --images-per-second")


def _spent(
    done: Iterable[Step], assessments: Mapping[str, Assessment]
) -> tuple[list[Step], dict[str, float]]:
    """The steps whose time is known, and their seconds by kind.

    A step's time runs from the previous end to its own. After a pause it is the time that the step
    recorded; a step that recorded none is left out.
    """
    ends = sorted(
        (
            (datetime.fromisoformat(record.finished).timestamp(), record, step)
            for step in done
            if (record := assessments[step.address].record) is not None and record.finished
        ),
        key=lambda found: found[0],
    )
    timed: list[Step] = []
    spent: dict[str, float] = {}
    before = float("-inf")
    for end, record, step in ends:
        seconds, before = end - before, end
        # Parse a record's facts only where they decide: there may be 50,000 records.
        if seconds > PAUSE_SECONDS and seconds - record.seconds > PAUSE_SECONDS:
            if not record.seconds:
                continue
            seconds = record.seconds
        timed.append(step)
        spent[step.kind] = spent.get(step.kind, 0.0) + seconds
    return timed, spent


def _given_rate(rate: float, unit: str) -> Rate:
    return Rate(rate, f"at the given {rate:g} {unit}")


def _measured_rate(rate: float, unit: str) -> Rate:
    return Rate(rate, f"at {rate:.0f} {unit}, measured in this store")

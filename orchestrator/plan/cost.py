"""What the steps that are left to run will cost.

The unit is the GPU-hour of one pre-training worker. Without a GPU a worker is some CPUs.

    pre-training   samples seen / rate     rate: given, or what finished runs of this store recorded
    features       samples encoded / rate  rate: given, measured here, or FORWARD_SHARE of the above
    tuning         ID cells / rate         rate: given, or measured here (OOD cells train nothing)

Rates of features and tuning come from the times between the ends of the store's steps: the time
between two ends belongs to the later step, without any pause before its start. They hold for the
machine that made the store, which counts as one GPU. A plan's hours on N GPUs are its GPU-hours /
N: levels and seeds run side by side. Time between stages (starts, waiting for data) is not
included.

Every figure names its source. What cannot be known yet is reported as unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from statistics import median
from typing import Any

from jobs.corpus.spec import Corpus
from jobs.features.spec import FeaturesStep, Part
from jobs.pretrain.spec import PretrainStep
from jobs.tuning.spec import TuneStep
from orchestrator.plan import units
from orchestrator.plan.assess import Assessment, lacking_parts
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepState
from orchestrator.step.address import CorpusAddress, parse_as
from orchestrator.step.step import Step

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
                return "Together: unknown time; a sweep tells the time left once it runs"
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
    rows = _training_rows(plan, assessments, given.rows)
    samples = steps = 0 if not runs else None
    if rows is not None:
        schedules = [run.recipe.schedule for run in runs]
        each = [one.epochs * (rows // one.batch_size) for one in schedules]  # only whole batches
        steps = sum(each)
        samples = sum(own * one.batch_size for own, one in zip(each, schedules, strict=True))
    encoded = samples_of(plan, todo, assessments)
    cells = [step.spec for step in todo if isinstance(step.spec, TuneStep)]
    trained = [cell for cell in cells if cell.task.domain == "id"]
    training, encoding, tuning = _rates(plan, assessments, given)
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


# -- how many --------------------------------------------------------------------------------------


def _training_rows(
    plan: Plan, assessments: Mapping[str, Assessment], given: int | None
) -> int | None:
    """Rows of the corpus's training part: counted if it is built, else given or declared."""
    corpus = plan.experiment.corpus
    if corpus is None:  # nothing is pre-trained
        return 0
    address = str(CorpusAddress(corpus.name))
    found = _rows(address, "train", plan, assessments)
    counted = assessments[address].record is not None
    return given if given is not None and not counted else found


def batch_fault(
    plan: Plan, assessments: Mapping[str, Assessment], given: int | None = None
) -> str | None:
    """One sentence when the training part does not fill a batch, so that no update would be made.

    None while its rows are unknown. Rows that are a share of a source are an estimate; then a batch
    is refused only above all rows of the source.
    """
    experiment = plan.experiment
    rows = _training_rows(plan, assessments, given)
    if experiment.corpus is None or experiment.pretrain is None or not rows:
        return None
    if not plan.of_kind("pretrain"):  # only the corpora are built
        return None
    if given is None and assessments[str(CorpusAddress(experiment.corpus.name))].record is None:
        rows = max(rows, experiment.corpus.reader.rows or 0)
    batch = experiment.pretrain.recipe.schedule.batch_size
    if batch <= rows:
        return None
    return (
        f"pretrain.recipe.schedule.batch_size is {batch:,}, but the training part of corpus "
        f"{experiment.corpus.name} has {rows:,} rows: they do not fill a batch; lower it"
    )


def _rows(address: str, part: str, plan: Plan, assessments: Mapping[str, Assessment]) -> int | None:
    """Rows of one part of a corpus: counted if it is built, else as its reader or task declares."""
    record = assessments[address].record
    if record is not None and f"rows_{part}" in record.counts:
        return record.counts[f"rows_{part}"]
    corpus = plan.steps[address].spec
    if not isinstance(corpus, Corpus):
        return None
    own = corpus.parts.sources.get(part)
    reader, source = (corpus.reader, "reader") if own is None else (own, part)
    rows = _sizes(address, plan).get(source) if reader.rows is None else reader.rows
    if rows is None or own is not None:
        return rows
    share: float = getattr(corpus.parts, part)
    return round(rows * share)


def _sizes(address: str, plan: Plan) -> Mapping[str, int]:
    """The rows of its readers that the task of a corpus declares."""
    corpus = parse_as(CorpusAddress, address).corpus
    for step in plan.of_kind("tune"):
        if isinstance(step.spec, TuneStep) and corpus == step.spec.task.scope:
            facts = step.spec.task.facts
            return dict(facts.sizes.items()) if facts else {}
    return {}


def samples_of(
    plan: Plan, steps: Iterable[Step], assessments: Mapping[str, Assessment]
) -> int | None:
    """Samples that these features steps encode, with views; None if a corpus is not known.

    What an API encodes is no work of this cluster: see `orchestrator/plan/paid.py`.
    """
    total, known = 0, dict[tuple[str, str], int | None]()
    for step in steps:
        if not isinstance(step.spec, FeaturesStep) or step.spec.api is not None:
            continue
        for part in _encoded(step, step.spec, assessments[step.address]):
            of = (step.inputs["corpus"], part)
            if of not in known:
                known[of] = _rows(*of, plan, assessments)
            rows = known[of]
            if rows is None:
                return None
            total += rows * (1 + step.spec.views.count if part == "train" else 1)
    return total


def _encoded(step: Step, spec: FeaturesStep, found: Assessment) -> Sequence[Part]:
    """The parts that a finished step has encoded, or that an unfinished one has left."""
    record = found.record
    if record is None or found.state is StepState.DRIFT:
        return spec.wanted
    if found.state is StepState.DONE:
        return [part for part in spec.parts if f"rows_{part}" in record.counts] or spec.wanted
    return lacking_parts(step, record)


# -- how fast --------------------------------------------------------------------------------------


def _rates(
    plan: Plan, assessments: Mapping[str, Assessment], given: Given
) -> tuple[Rate, Rate, Rate]:
    """Rates of pre-training and of features in samples a second, of tuning in ID cells a second."""
    done = [s for s in plan.steps.values() if assessments[s.address].state is StepState.DONE]
    training = _training_rate(done, assessments, given.images_per_second)
    timed, spent = _spent(done, assessments)
    if given.features_per_second is not None:
        encoding = _given_rate(given.features_per_second, "samples/s")
    elif (encoded := samples_of(plan, timed, assessments)) and spent.get("features"):
        encoding = _measured_rate(encoded / spent["features"], "samples/s")
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
    else:
        tuning = Rate(None, "nothing measured yet; give --cells-per-hour")
    return training, encoding, tuning


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

"""How many samples, rows and updates a plan has left: counted, or as readers and tasks declare.

Takes a plan and the states of its steps; gives numbers, None where a corpus is not known yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from jobs.corpus.spec import Corpus
from jobs.features.spec import FeaturesStep, Part
from jobs.tuning.spec import TuneStep
from orchestrator.plan.assess import Assessment, lacking_parts
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepState
from orchestrator.step.address import CorpusAddress, parse_as
from orchestrator.step.step import Step


def training_rows(
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
    rows = training_rows(plan, assessments, given)
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


def rows_trained(
    plan: Plan, cells: Iterable[Step], assessments: Mapping[str, Assessment]
) -> float | None:
    """Rows that cells train on, in all epochs and configurations; None if a corpus is unknown."""
    total, known = 0.0, dict[str, int | None]()
    for step in cells:
        spec, record = step.spec, assessments[step.address].record
        assert isinstance(spec, TuneStep)
        rows: float | None = record.counts.get("n_train") if record else None
        if rows is None:
            corpus = str(CorpusAddress(spec.task.scope))
            if corpus not in known:
                there = spec.task.corpus is not None and corpus in plan.steps
                known[corpus] = _rows(corpus, "train", plan, assessments) if there else None
            whole = known[corpus]
            if whole is None:
                return None
            rows = whole * spec.fraction / 100
        total += rows * spec.settings.epochs * spec.method.tries(spec.settings.configurations)
    return total

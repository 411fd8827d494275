"""Which published claims a plan's results can test, by id.

Takes a plan. Gives each claim that its methods and levels allow, found by `analysis` itself in
made-up results of the planned cells. Refuses registered claims that do not exist. Reads no store.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from analysis import schemas
from analysis.claims.claims import declared
from analysis.claims.verdicts import Claim
from analysis.readout import Question, Readout
from jobs.tuning.methods import Method
from jobs.tuning.search_space import bounds
from jobs.tuning.spec import TuneStep
from orchestrator.errors import UserError
from orchestrator.experiment import own_claims
from orchestrator.plan.plan import Plan

_NEAR = 3  # ids in the message about an unknown one


@dataclass(frozen=True)
class Candidate:
    """A claim, and whether the planned results test it."""

    claim: Claim
    tested: bool


def candidates(plan: Plan) -> list[Candidate]:
    """Every published claim; none if the plan pre-trains nothing."""
    if plan.experiment.noise is None:
        return []
    return [Candidate(claim, bool(found)) for claim, found in declared(_made_up(plan))]


def check(plan: Plan) -> None:
    """Raise UserError, with the nearest ids, if the experiment registers a claim that is none."""
    if not plan.experiment.may_run_code and plan.experiment.extensions:
        return  # some ids may be of claims that are not run here
    known = [one.claim.id for one in candidates(plan)]
    for name in plan.experiment.claims or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=_NEAR, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
            raise UserError(
                f"claims: {name!r} is no claim of this experiment; {hint} "
                f"(`nml-orch plan --claims` lists all)"
            )


def warnings(plan: Plan) -> Iterator[str]:
    """One sentence for each registered claim that the planned results cannot test."""
    registered = plan.experiment.claims or ()
    for one in candidates(plan) if registered else ():
        if one.claim.id in registered and not one.tested:
            yield (
                f"claims: {one.claim.id} cannot be tested as planned, and still counts in the "
                f"correction; it needs {one.claim.needs}"
            )


def _made_up(plan: Plan) -> Readout:
    """Results of one seed for every planned encoder, task and method; values rise with noise."""
    experiment = plan.experiment
    largest = max(experiment.tuning.fractions)
    cells: dict[tuple[Any, ...], dict[str, Any]] = {}
    for step in plan.of_kind("tune"):
        labels, spec = step.labels, step.spec
        if "encoder" in labels or labels["label_noise"] or labels["fraction"] != largest:
            continue
        assert isinstance(spec, TuneStep)
        key = labels["noise"], labels["task"], labels["method"]
        if key not in cells:
            cells[key] = _cell(dict(labels), spec.method)
    domains = {task.images: set[str]() for task in plan.tasks}
    for task in plan.tasks:
        domains[task.images].add(task.domain)
    spectra = {
        (step.labels["noise"], step.labels["images"], domain): _spectrum(dict(step.labels), domain)
        for step in plan.of_kind("features")
        if "encoder" not in step.labels
        for domain in domains[str(step.labels["images"])]
    }
    question = Question(
        *("",) * 6,
        levels=(),
        seeds=(0,),
        id_tasks=(),
        ood_tasks=(),
        methods=tuple(experiment.tuning.methods),
        fractions=(largest,),
        tuning_seeds=(0,),
        controls=experiment.tuning.controls,
    )
    return Readout(
        experiment.name,
        question,
        pa.Table.from_pylist(list(cells.values()), schemas.CELLS_SCHEMA),
        pa.Table.from_pylist(list(spectra.values()), schemas.SPECTRA_SCHEMA),
        own_claims=own_claims.of(experiment),
    )


def _cell(labels: dict[str, Any], method: Method) -> dict[str, Any]:
    value = labels["noise"]
    weights = {term: bounds(getattr(method.space, term))[1] for term in schemas.REGULARISERS}
    return {
        **labels,
        **weights,
        "address": "",
        "noise_kind": "",
        "pretrain_seed": 0,
        "tuning_seed": 0,
        "head": method.head,
        "test_accuracy": value,
        "test_macro_f1": value,
        "test_metric": value,
    }


def _spectrum(labels: dict[str, Any], domain: str) -> dict[str, Any]:
    value = labels["noise"]
    return {
        **labels,
        "address": "",
        "pretrain_seed": 0,
        "domain": domain,
        "part": "test",
        "preprocessing": schemas.PREPROCESSING,
        "sve": value,
        "lsvr": value,
        "effective_rank": value,
    }

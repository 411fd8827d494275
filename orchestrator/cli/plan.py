"""`nml-orch plan`: what a sweep would do with each step, why, and what it would cost."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.options import Chosen, experiment_options
from orchestrator.run.waiting import waiting

if TYPE_CHECKING:
    from orchestrator.plan.assess import Assessment
    from orchestrator.plan.cost import Cost
    from orchestrator.plan.paid import Purchase
    from orchestrator.preflight import Answer


class Finite(click.FloatRange):
    """A finite number in a range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number. Raises a usage error if it is not finite."""
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{value} is not a finite number; give one such as 100", param, ctx)
        return found


ABOVE_0 = Finite(min=0, min_open=True)


@click.command(
    "plan",
    epilog="""\b
Examples:
  nml-orch plan --noise 0,5,10,20,30
  nml-orch plan my.yaml -v            every step with its reason
  nml-orch plan my.yaml --claims      ids for the file's `claims`
  nml-orch plan my.yaml --rows 1281167 --images-per-second 1200 --gpus 8   hours in advance
  nml-orch plan my.yaml --json        JSON, for scripts""",
)
@experiment_options
@click.option("-v", "--verbose", is_flag=True, help="List every step.")
@click.option("--claims", is_flag=True, help="Only list the claims that it can test, by id.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--images-per-second",
    type=ABOVE_0,
    help="Samples that one GPU trains on in a second (else: as measured in the store).",
)
@click.option(
    "--features-per-second",
    type=ABOVE_0,
    help="Samples that one GPU encodes in a second (else: as measured, or 3 x the speed above).",
)
@click.option(
    "--cells-per-hour",
    type=ABOVE_0,
    help="In-domain cells that one GPU tunes in an hour (else: as measured in the store).",
)
@click.option(
    "--rows", type=click.IntRange(min=1), help="Training rows of a corpus that is not built yet."
)
@click.option("--gpus", type=click.IntRange(min=1), help="Print the hours on this number of GPUs.")
@click.option("--price-per-gpu-hour", type=Finite(min=0), help="Print the price.")
def command(chosen: Chosen, verbose: bool, claims: bool, as_json: bool, **given: Any) -> int:
    """Show which steps are done, missing, drifted or blocked, and what a sweep would cost.

    Runs nothing. Says what a sweep from here would lack; the exit status is 2 if that is a mistake
    in the file or the data, and 0 if it is only not here."""
    from orchestrator.errors import UserError
    from orchestrator.plan import cost, counting, speed
    from orchestrator.plan.assess import PLANNED, assess
    from orchestrator.plan.power import controls_line, power_line, replicates_line
    from orchestrator.plan.states import StepState
    from orchestrator.preflight import State
    from orchestrator.step.step import KINDS

    if claims:
        for line in _candidates(chosen):
            click.echo(line)
        return 0
    with waiting("reading the store"):
        assessments = assess(chosen.plan, chosen.store)
    fault = counting.batch_fault(chosen.plan, assessments, given["rows"])
    if fault is not None:
        raise UserError(fault)
    estimate = cost.estimate(chosen.plan, assessments, speed.Given(**given))
    bought = _purchases(chosen, assessments)
    with waiting("looking at what a sweep needs"):
        lacking = _lacking(chosen, assessments)
    if as_json:
        click.echo(_json(chosen, estimate, assessments, bought))
        return 2 if any(answer.state is State.FAULT for answer in lacking) else 0
    click.echo(f"{chosen.experiment.name} in {chosen.store.root.uri}\n")
    click.echo(f"{'':10}" + "".join(f"{state:>9}" for state in PLANNED))
    for kind in KINDS:
        counts = Counter(assessments[s.address].state for s in chosen.plan.of_kind(kind))
        if counts:
            click.echo(f"{kind:10}" + "".join(f"{counts[state] or '':>9}" for state in PLANNED))
    if verbose:
        click.echo("")
        for address, found in assessments.items():
            click.echo(f"{found.state:8} {address}" + (f"  ({found.reason})" * bool(found.reason)))
    else:
        drifted = [a for a, f in assessments.items() if f.state is StepState.DRIFT]
        for address in drifted[:5]:
            click.echo(f"\ndrift {address}\n  {assessments[address].reason}")
        if len(drifted) > 5:
            click.echo(f"\n... and {len(drifted) - 5} more; -v lists them")
    click.echo("\n" + "\n".join(estimate.lines()))
    for purchase in bought:
        click.echo(purchase.line)
    if any(encoder.kind == "transformers" for encoder in chosen.experiment.encoders):
        from orchestrator.plan.tokens import tokens_lines

        for line in tokens_lines(chosen.plan, chosen.store, assessments):
            click.echo(line)
    experiment = chosen.experiment
    lines = (replicates_line(experiment), controls_line(experiment), power_line(chosen.plan))
    if known := [line for line in (*lines, _together(chosen, assessments, given["gpus"])) if line]:
        click.echo("\n" + "\n".join(known))
    registered = _registered(chosen, assessments)
    for line in (*registered, *_sources(chosen, assessments)):
        click.echo(line)
    if lacking:
        click.echo("\nA sweep from here lacks:")
    for answer in lacking:
        click.echo(f"  {answer.question}: {answer.message}")
    return 2 if any(answer.state is State.FAULT for answer in lacking) else 0


def _together(
    chosen: Chosen, assessments: Mapping[str, Assessment], gpus: int | None
) -> str | None:
    """How many pre-training runs will train side by side, as far as it is known without Ray.

    A sweep without RAY_ADDRESS uses this machine's CPUs. GPUs are known if `--gpus` names them.
    """
    import os

    from jobs.pretrain.packs import Node
    from orchestrator.plan.states import StepState
    from orchestrator.plan.together import together_line

    section = chosen.experiment.pretrain
    if section is None:
        return None
    left = [a for a, found in assessments.items() if found.state is not StepState.DONE]
    if section.resources.gpus_per_worker:
        enough = section.resources.cpus_per_worker / section.resources.gpus_per_worker
        nodes, where = [Node(gpus * enough, gpus)] if gpus else None, f"a cluster of {gpus} GPUs"
    elif os.environ.get("RAY_ADDRESS"):
        nodes, where = None, ""
    else:
        cpus = os.cpu_count() or 1
        nodes, where = [Node(cpus, 0)], f"this machine (with {cpus} CPUs)"
    return together_line(chosen.plan, left, nodes, where)


def _purchases(chosen: Chosen, assessments: Mapping[str, Assessment]) -> list[Purchase]:
    """What is left to buy from embedding APIs."""
    if not any(encoder.kind == "api" for encoder in chosen.experiment.encoders):
        return []
    from orchestrator.plan.paid import purchases
    from orchestrator.plan.states import StepState

    done = {a for a, found in assessments.items() if found.state is StepState.DONE}
    return list(purchases(chosen.plan, chosen.store, done))


def _candidates(chosen: Chosen) -> Iterator[str]:
    """The id and the sentence of each claim that the plan can test; `*` marks registered ones."""
    from orchestrator.plan.claims import candidates

    registered = chosen.experiment.claims or ()
    tested = [one.claim for one in candidates(chosen.plan) if one.tested]
    width = max((len(claim.id) for claim in tested), default=0)
    for claim in tested:
        mark = "*" if claim.id in registered else " "
        yield f"{mark} {claim.id:{width}}  {claim.sentence}"
    if not tested:
        yield "This experiment tests no claim"


def _registered(chosen: Chosen, assessments: Mapping[str, Assessment]) -> Iterator[str]:
    """Which claims are registered, each change, and which of them cannot be tested."""
    from analysis.registration import in_words, next_in_words
    from orchestrator.experiment import registered
    from orchestrator.plan.claims import warnings

    history = registered.history(chosen.store.root, chosen.experiment.name)
    if history:
        yield f"Claims: {in_words(history)}"
    if registered.is_new(chosen.experiment, history):
        finished = sum(found.record is not None for found in assessments.values())
        planned = registered.planned(chosen.experiment, finished)
        yield f"The next sweep or report {next_in_words(history, planned)}"
    yield from warnings(chosen.plan)


def _sources(chosen: Chosen, assessments: Mapping[str, Assessment]) -> Iterator[str]:
    """What the reader of the experiment's corpus finds, if it is not built."""
    from jobs.corpus.preview import is_quick
    from jobs.corpus.reader_spec import DigitsReader
    from orchestrator.cli.corpus import previews, source_lines
    from orchestrator.plan.states import StepState

    corpus = chosen.experiment.corpus
    if corpus is None or isinstance(corpus.reader, DigitsReader):
        return  # nothing is pre-trained, or the samples are the package's own
    done = [a for a, found in assessments.items() if found.state is not StepState.MISSING]
    if not is_quick(corpus):
        yield "\nThe corpus is not built; `nml-orch corpus show FILE` shows what its reader finds"
        return
    for step, source in previews(chosen, done, tasks=False, count=False):
        yield from ("", *source_lines(step.address, source))


def _lacking(chosen: Chosen, assessments: Mapping[str, Assessment]) -> list[Answer]:
    """What a sweep would refuse to start with, as `doctor` and `sweep` find it."""
    from orchestrator import preflight
    from orchestrator.plan.states import StepState

    left = [a for a, found in assessments.items() if found.state is not StepState.DONE]
    answers = preflight.ask(chosen.plan, chosen.store, left, write=False)
    return [answer for answer in answers if answer.state is not preflight.State.OK]


def _json(
    chosen: Chosen,
    estimate: Cost,
    assessments: Mapping[str, Assessment],
    bought: Sequence[Purchase],
) -> str:
    """An object with one line for each step: more indentation costs a second for 50,000."""
    entry = json.JSONEncoder().encode
    head = {
        "experiment": chosen.experiment.name,
        "storage": chosen.store.root.uri,
        "cost": estimate.as_dict(),
        "claims": chosen.experiment.claims,
        "purchases": [
            {
                "encoder": one.encoder.name,
                "texts": one.left.texts,
                "tokens": one.left.tokens,
                "price": one.left.price,
                "unbuilt": one.unbuilt,
            }
            for one in bought
        ],
    }
    lines = (
        "    "
        + entry(
            {
                "address": address,
                "kind": chosen.plan.steps[address].kind,
                "fingerprint": chosen.plan.steps[address].fingerprint,
                "state": found.state,
                "reason": found.reason,
            }
        )
        for address, found in assessments.items()
    )
    steps = ",\n".join(lines)
    return f'{json.dumps(head, indent=2)[:-2]},\n  "steps": [\n{steps}\n  ]\n}}'

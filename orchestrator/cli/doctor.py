"""`nml-orch doctor`: is everything here that a sweep needs? One line for each check."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import click

from orchestrator.cli.options import Chosen, experiment_options
from orchestrator.errors import UserError
from orchestrator.run.waiting import waiting


@click.command("doctor", epilog="Example: nml-orch doctor my.yaml")
@experiment_options
@click.option("--no-ray", is_flag=True, help="Do not start or join Ray.")
@click.option(
    "--cluster",
    "cluster_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also check a cluster file for `ray up`: fields, versions, open ports.",
)
def command(chosen: Chosen, no_ray: bool, cluster_file: Path | None) -> int:
    """Check versions, storage, disk, tracking and Ray, and say how to correct each fault.

    With RAY_ADDRESS, every node of that cluster is checked for its versions and access to storage.
    Exit status: 0 all is well, 2 something has to be corrected first.
    """
    failed = 0
    answers = _answers(chosen, no_ray, cluster_file)
    while True:
        with waiting("asking the next question"):
            answer = next(answers, None)
        if answer is None:
            return 2 if failed else 0
        question, passed, message = answer
        failed += not passed
        click.echo(f"{'ok  ' if passed else 'FAIL'}  {question:<10} {message}")


Line = tuple[str, bool, str]  # the question, whether all is well, what was found or what to do


def _answers(chosen: Chosen, no_ray: bool, cluster_file: Path | None) -> Iterator[Line]:
    from orchestrator import preflight

    for answer in preflight.ask(chosen.plan, chosen.store, _left(chosen), write=True):
        yield answer.question, answer.state is preflight.State.OK, answer.message
    if cluster_file is not None:
        yield "cluster", *_run(lambda: _cluster(cluster_file))
    if not no_ray:
        yield "ray", *_run(lambda: _ray(chosen))


def _left(chosen: Chosen) -> Collection[str]:
    """The steps that are not done; all of them where the store cannot be read."""
    from orchestrator.plan.assess import assess
    from orchestrator.plan.states import StepState

    try:
        found = assess(chosen.plan, chosen.store)
    except UserError:
        return chosen.plan.steps.keys()  # what is wrong with the store is a question of its own
    return [a for a, s in found.items() if s.state is not StepState.DONE]


Check = tuple[bool, str]


def _run(check: Callable[[], Check]) -> Check:
    """The check's result. An error of the check is a failed check."""
    from orchestrator.run.executor import failure_of

    try:
        return check()
    except Exception as error:
        return False, failure_of(error).sentence


def _cluster(file: Path) -> Check:
    from orchestrator.cluster import launch

    content = launch.validate(file)
    wrong = [
        *launch.pins(content).differences(),
        *(f"it listens on every address: {line}" for line in launch.public_listeners(content)),
    ]
    if wrong:
        return False, f"{file}: {'; '.join(wrong)}"
    kinds = ", ".join(content.get("available_node_types") or [content["provider"]["type"]])
    return True, f"{file}: accepted by the installed Ray ({kinds})"


def _ray(chosen: Chosen) -> Check:
    from orchestrator import cluster
    from orchestrator.cluster import nodes
    from orchestrator.cluster.needs import lacking

    with cluster.session():
        have = cluster.resources()
        nodes.check(chosen.store.root)
    found = f"{have.nodes} node(s), {have.cpus:g} CPUs, {have.gpus:g} GPUs"
    kinds = {step.kind for step in chosen.plan.steps.values()}
    missing = list(lacking(chosen.experiment, have, kinds))
    return (False, "; ".join(missing)) if missing else (True, found)

"""`nml-orch sweep`: plans and runs an experiment, and prints its results."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping

import click

from orchestrator.cli.options import Chosen, experiment_options, redo_option
from orchestrator.plan.states import StepState, StepStatus

LEAST_WIDTH = 60  # columns; a narrower terminal wraps the lines


@click.command(
    "sweep",
    epilog="""\b
Examples:
  nml-orch sweep --noise 0,5,10,20,30            the demo: handwritten digits
  nml-orch sweep digits-clip                     a bundled experiment
  nml-orch sweep my.yaml --seeds 0,1,2 --storage s3://bucket/nml
  nml-orch sweep --features ada.parquet          features from elsewhere, no encoder
Exit status: 0 done; 1 some steps failed; 2 a mistake in the command, the file or the data, or a
cluster that cannot be used; 130 stopped (the same command continues).""",
)
@experiment_options
@click.option("--force", is_flag=True, help="Redo the steps whose settings have changed.")
@redo_option
@click.option("-v", "--verbose", is_flag=True, help="At the end, show every averaged measure.")
@click.option(
    "--accept-drift",
    is_flag=True,
    help="Go on asking an embedding API whose model has changed behind its name.",
)
def command(
    chosen: Chosen, force: bool, redo: tuple[str, ...], verbose: bool, accept_drift: bool
) -> int:
    """Plan and run an experiment. Finished steps are reused; an interrupted sweep continues.

    FILE is an experiment file or the name of a bundled one; without it the demo runs.
    """
    from orchestrator.cli import closing
    from orchestrator.run import sweep
    from orchestrator.store.provenance import redact

    plan = chosen.plan
    if accept_drift:
        from orchestrator.plan.paid import accepting_drift

        plan = accepting_drift(plan)
    ending = sweep.run(
        plan,
        chosen.store,
        force=force,
        redo=plan.named(redo),
        say=lambda line: click.echo(line, err=True),
    )
    if ending.report:
        width = max(LEAST_WIDTH, shutil.get_terminal_size().columns)
        for line in closing.lines(ending.report, width, verbose=verbose):
            click.echo(line)
    counts = [f"{ending.count(state)} {state}" for state in StepState if ending.count(state)]
    click.echo(f"\n{', '.join(counts)} in {ending.seconds:.0f} s")
    for line in _failures(ending.results):
        click.echo(line)
    if ending.report:
        if ending.report.constant:
            click.echo(f"constant {ending.report.constant}")
        click.echo(f"report   {ending.report.folder.uri}/report.html")
    if ending.tracking:
        hint = "  (browse it: nml-orch ui)" if ending.tracking.startswith("sqlite:") else ""
        click.echo(f"MLflow   {redact(ending.tracking)}{hint}")
    if ending.unreported:
        click.echo(f"no report: {ending.unreported}", err=True)
        return 2
    return 0 if ending.complete else 1


def _failures(results: Mapping[str, StepStatus]) -> Iterator[str]:
    """One line for each reason, with the first failed step and the number of others."""

    by_reason: dict[str, list[str]] = {}
    for address, result in results.items():
        if result.state is StepState.FAILED:
            by_reason.setdefault(result.reason, []).append(address)
    for reason, addresses in by_reason.items():
        more = f" (and {len(addresses) - 1} more)" if len(addresses) > 1 else ""
        yield f"failed   {addresses[0]}{more}: {reason}"

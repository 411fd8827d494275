"""`nml-orch sweep`: plan and run an experiment, and say what came out."""

from __future__ import annotations

import click

from orchestrator.cli.options import Chosen, experiment_options


@click.command(
    "sweep",
    epilog="""\b
Examples:
  nml-orch sweep --noise 0,5,10,20,30            the demo: handwritten digits
  nml-orch sweep digits-clip                     a bundled experiment
  nml-orch sweep my.yaml --seeds 0,1,2 --storage s3://bucket/nml
Exit status: 0 done, 1 some steps failed, 2 a mistake in the command or the file.""",
)
@experiment_options
@click.option("--force", is_flag=True, help="Redo the steps whose settings have changed.")
def command(chosen: Chosen, force: bool) -> int:
    """Plan and run an experiment; finished steps are reused, an interrupted sweep goes on.

    FILE is an experiment file or the name of a bundled one; without it the demo runs.
    """
    from orchestrator import sweep
    from orchestrator.executor import Status
    from orchestrator.provenance import redact

    ending = sweep.run(
        chosen.plan, chosen.store, force=force, say=lambda line: click.echo(line, err=True)
    )
    for line in ending.report.lines():
        click.echo(line)
    counts = [f"{ending.count(status)} {status.value}" for status in Status if ending.count(status)]
    click.echo(f"\n{', '.join(counts)} in {ending.seconds:.0f} s")
    for address, result in ending.results.items():
        if result.status is Status.FAILED:
            click.echo(f"failed   {address}: {result.reason}")
    click.echo(f"report   {ending.report.place.uri}/report.html")
    if ending.tracking:
        hint = "  (browse it: nml-orch ui)" if ending.tracking.startswith("sqlite:") else ""
        click.echo(f"MLflow   {redact(ending.tracking)}{hint}")
    return 0 if ending.complete else 1

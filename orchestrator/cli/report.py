"""`nml-orch report`: the report of what the store holds now, written without Ray."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.options import Chosen, experiment_options


@click.command("report", epilog="Example: nml-orch report my.yaml --out figures/")
@experiment_options
@click.option("--out", metavar="FOLDER", help="Also copy the report's files here.")
def command(chosen: Chosen, out: str | None) -> None:
    """Write report.html, the figures and the tables from the store."""
    from orchestrator import readout

    chosen.store.prepare()
    report = readout.refresh(chosen.plan, chosen.store)
    if out is not None:
        readout.copy(report, Path(out))
    click.echo(f"{out or report.place.uri}/report.html")

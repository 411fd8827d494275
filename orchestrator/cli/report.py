"""`nml-orch report`: writes the report of the results that are now in the store, without Ray."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.options import Chosen, last_experiment_options
from orchestrator.run.waiting import waiting


@click.command("report", epilog="Example: nml-orch report my.yaml --out figures/")
@last_experiment_options
@click.option("--out", metavar="FOLDER", help="Also copy the report's files to this folder.")
@click.option("--tex", is_flag=True, help="Print the paths of the LaTeX tables.")
@click.option(
    "--rotation",
    is_flag=True,
    help="Measure how far each feature space has rotated from the clean encoder's. Reads all test "
    "features once.",
)
def command(chosen: Chosen, out: str | None, tex: bool, rotation: bool) -> None:
    """Write report.html, report.md, the figures and the tables from the store.

    Without FILE: for the last sweep started on this store.
    """
    from orchestrator.errors import UserError
    from orchestrator.results import collect

    with waiting("writing the report"):
        chosen.store.prepare()
        report = collect.refresh(chosen.plan, chosen.store, rotation=rotation)
    if out is not None:
        try:
            collect.copy(report, Path(out))
        except OSError as error:
            raise UserError(
                f"--out {out} cannot be written ({error.strerror or error}); name another folder"
            ) from error
    folder = out or report.folder.uri
    if tex:
        names = sorted(name for name, _ in report.folder.files() if name.endswith(".tex"))
        for name in names:
            click.echo(f"{folder}/{name}")
    else:
        click.echo(f"{folder}/report.html")

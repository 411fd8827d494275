"""`nml-orch report`: writes the report of the results that are now in the store, without Ray.

With two names: the results of two sweeps side by side.
"""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.options import Chosen, Two, report_options
from orchestrator.run.waiting import waiting

BESIDE = "comparison"
"""The folder of two sweeps' page, where --out names none."""


@click.command(
    "report",
    epilog="""\b
Examples:
  nml-orch report my.yaml --out figures/
  nml-orch report my-store other-store      two sweeps side by side
  nml-orch report a.yaml b.yaml --out both  two experiments""",
)
@report_options
@click.option(
    "--out",
    metavar="FOLDER",
    help=f"Also copy the report's files to this folder. Of two sweeps: where they are written "
    f"(else ./{BESIDE}).",
)
@click.option("--tex", is_flag=True, help="Print the paths of the LaTeX tables.")
@click.option(
    "--rotation",
    is_flag=True,
    help="Measure how far each feature space has rotated from the clean encoder's. Reads all test "
    "features once.",
)
def command(chosen: Chosen | Two, out: str | None, tex: bool, rotation: bool) -> None:
    """Write report.html, report.md, the figures and the tables from the store.

    Without FILE: for the last sweep started on this store. With A and B, each a store or an
    experiment: comparison.html and comparison.csv, with both answers, the averages and their
    difference, the claims, and what differs in the settings.
    """
    from orchestrator.errors import UserError
    from orchestrator.results import collect

    if isinstance(chosen, Two):
        if tex or rotation:
            raise UserError("--tex and --rotation are for the report of one sweep; leave them out")
        _side_by_side(chosen, Path(BESIDE if out is None else out))
        return
    with waiting("writing the report"):
        chosen.store.prepare()
        report = collect.refresh(chosen.plan, chosen.store, rotation=rotation)
    if out is not None:
        try:
            collect.copy(report, Path(out))
        except OSError as error:
            raise _cannot_write(out, error) from error
    folder = out or report.folder.uri
    if tex:
        names = sorted(name for name, _ in report.folder.files() if name.endswith(".tex"))
        for name in names:
            click.echo(f"{folder}/{name}")
    else:
        click.echo(f"{folder}/report.html")


def _side_by_side(two: Two, folder: Path) -> None:
    """Write the page of two sweeps; print both answers and its path."""
    from analysis.report.answer import answer
    from orchestrator.results import side_by_side
    from orchestrator.results.read import read

    with waiting("reading both sweeps"):
        first, second = (
            read(name, storage=two.storage, task_folders=two.task_folders, data=two.data)
            for name in two.names
        )
    with waiting("writing the comparison"):
        files = side_by_side.write(two.names, (first, second))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (folder / name).write_text(text, encoding="utf-8", newline="")
        except OSError as error:
            raise _cannot_write(str(folder), error) from error
    for letter, name, results in zip("AB", two.names, (first, second), strict=True):
        click.echo(f"{letter}  {name}: {answer(results.readout)}")
    click.echo(str(folder / "comparison.html"))


def _cannot_write(folder: str, error: OSError) -> Exception:
    from orchestrator.errors import UserError

    return UserError(
        f"--out {folder} cannot be written ({error.strerror or error}); name another folder"
    )

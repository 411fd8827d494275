"""`nml-orch submit`: sends a sweep to a running Ray cluster, which runs its driver."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from jobs.extensions.spec import SUFFIX
from orchestrator import EXPERIMENTS
from orchestrator.errors import UserError

VARIABLE = "RAY_API_SERVER_ADDRESS"


@click.command(
    "submit",
    context_settings={"ignore_unknown_options": True},
    epilog="""\b
Examples:
  ray up cluster.yaml && ray dashboard cluster.yaml     bring the jobs API to port 8265
  nml-orch submit my.yaml --seeds 0,1,2 --storage s3://bucket/nml
  nml-orch submit --detach my.yaml ...                  send it and return
  nml-orch submit --attach NAME                         show its output from the start
  nml-orch submit --stop NAME                           stop it; send it again to continue
Exit status: that of the sweep; 130 when you stop watching (the job continues).""",
)
@click.option(
    "--address",
    metavar="URL",
    help="The cluster's jobs API; else $RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265.",
)
@click.option("--detach", is_flag=True, help="Return as soon as it is sent.")
@click.option("--id", "name", metavar="NAME", help="A name for the job.")
@click.option(
    "--limit-mb", type=float, default=None, help="Limit for the files sent from this folder, in MB."
)
@click.option("--attach", metavar="NAME", help="Show the output of a job that was sent before.")
@click.option("--stop", metavar="NAME", help="Stop a job.")
@click.option("--list", "listing", is_flag=True, help="List the cluster's jobs.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[SWEEP ARGUMENTS]...")
def command(
    address: str | None,
    detach: bool,
    name: str | None,
    limit_mb: float | None,
    attach: str | None,
    stop: str | None,
    listing: bool,
    words: tuple[str, ...],
) -> int:
    """Send a sweep to a running cluster. The arguments are those of `nml-orch sweep`.

    The experiment is first read and planned here, so a mistake costs nothing. The files of this
    folder are sent too: what git tracks or, without git, everything but caches and stores.
    """
    from orchestrator.cluster.submission import DEFAULT_ADDRESS, Cluster

    if sum(map(bool, (attach, stop, listing, words))) > 1 and (attach or stop or listing):
        raise UserError(
            "--attach, --stop and --list cannot be combined, nor given with a sweep; give one"
        )
    variable = os.environ.get(VARIABLE)
    where = address or variable or DEFAULT_ADDRESS
    source = "--address" if address else VARIABLE if variable else ""
    if not (attach or stop or listing):
        files, name = _prepare(words, name, limit_mb)
        cluster = Cluster(where, source)
        cluster.submit(name, words, files)
        click.echo(f"sent {name}: {len(files.files)} files, {files.bytes / 1e6:.1f} MB", err=True)
        return 0 if detach else _follow(cluster, name)
    cluster = Cluster(where, source)
    if listing:
        for job in cluster.jobs():
            click.echo(f"{job.name:<40} {job.status.lower():<10} {job.arguments}")
        return 0
    if stop:
        cluster.stop(stop)
        click.echo(
            f"{stop} was asked to stop; send the same sweep again to continue it (with another "
            f"--id, if you gave one)"
        )
        return 0
    assert attach is not None
    return _follow(cluster, attach)


def _prepare(words: tuple[str, ...], name: str | None, limit_mb: float | None) -> tuple[Any, str]:
    """The files to send and the job's name, after the sweep has been validated."""
    from orchestrator.cli import sweep
    from orchestrator.cli.options import choose, one_file
    from orchestrator.cluster.working_dir import LIMIT_MB, working_dir

    parsed = sweep.command.make_context("sweep", list(words)).params
    redo = parsed.pop("redo")
    for of_a_run in ("force", "verbose", "accept_drift"):
        parsed.pop(of_a_run)
    parsed["file"] = one_file(parsed.pop("words"), parsed["noise"], parsed["seeds"])
    here = Path.cwd()
    if parsed["file"] and Path(parsed["file"]).is_file():
        _refuse_outside(Path(parsed["file"]), here)
    chosen = choose(**parsed)
    chosen.plan.named(redo)
    experiment = chosen.experiment
    for item in map(Path, experiment.extensions):
        if item.suffix == SUFFIX and not item.is_relative_to(EXPERIMENTS):  # bundled: there too
            _refuse_outside(item, here)
    storage = experiment.storage
    if "://" not in storage and not Path(storage).is_absolute():
        raise UserError(
            f"storage = {storage!r} would be in the job's own folder on the cluster, which is "
            f"deleted with the job; give --storage a bucket, or a path that every node has"
        )
    job = name or f"{experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return working_dir(here, limit_mb or LIMIT_MB), job


def _refuse_outside(file: Path, here: Path) -> None:
    if file.is_absolute() or not file.resolve().is_relative_to(here):
        raise UserError(
            f"{file} must be given by a relative path inside this folder, because only it is sent; "
            f"change to its folder first"
        )


def _follow(cluster: Any, name: str) -> int:
    try:
        job = cluster.follow(name, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        click.echo(
            f"\n{name} continues; `nml-orch submit --attach {name}` shows its output, "
            f"`--stop {name}` stops it",
            err=True,
        )
        return 130
    if job.status == "SUCCEEDED":
        return 0
    click.echo(f"{name} {job.status.lower()}: {job.message}", err=True)
    return job.exit_code if job.exit_code is not None else 1

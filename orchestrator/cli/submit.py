"""`nml-orch submit`: a sweep sent to a running Ray cluster, where its driver lives."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from orchestrator.errors import UserError


@click.command(
    "submit",
    context_settings={"ignore_unknown_options": True},
    epilog="""\b
Examples:
  ray up cluster.yaml && ray dashboard cluster.yaml     bring the jobs API to port 8265 here
  nml-orch submit my.yaml --seeds 0,1,2 --storage s3://bucket/nml
  nml-orch submit --detach my.yaml ...                  send it and leave
  nml-orch submit --attach NAME                         see it again, from the beginning
  nml-orch submit --stop NAME                           end it; the same sweep sent again goes on
Exit status: the sweep's own; 130 when you stop watching (the job goes on).""",
)
@click.option(
    "--address",
    metavar="URL",
    default=lambda: os.environ.get("RAY_API_SERVER_ADDRESS"),
    help="The cluster's jobs API; else $RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265.",
)
@click.option("--detach", is_flag=True, help="Return once it is sent.")
@click.option("--id", "name", metavar="NAME", help="What to call the job.")
@click.option("--limit-mb", type=float, default=None, help="Most to send along from this folder.")
@click.option("--attach", metavar="NAME", help="Show a job that was sent before.")
@click.option("--stop", metavar="NAME", help="Stop a job.")
@click.option("--list", "listing", is_flag=True, help="List the cluster's jobs.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[SWEEP'S WORDS]...")
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
    """Send a sweep to a running cluster: the words are those of `nml-orch sweep`.

    The experiment is read and planned here first, so that a mistake costs nothing. The files of
    this folder go along (what git tracks, or everything but caches and stores).
    """
    from orchestrator.cluster.submission import DEFAULT_ADDRESS, Cluster

    if sum(map(bool, (attach, stop, listing, words))) > 1 and (attach or stop or listing):
        raise UserError("--attach, --stop and --list take no sweep beside them; give one of them")
    where = address or DEFAULT_ADDRESS
    if not (attach or stop or listing):
        parcel, name = _prepare(words, name, limit_mb)
        cluster = Cluster(where)
        cluster.submit(name, words, parcel)
        click.echo(f"sent {name}: {len(parcel.files)} files, {parcel.bytes / 1e6:.1f} MB", err=True)
        return 0 if detach else _follow(cluster, name)
    cluster = Cluster(where)
    if listing:
        for job in cluster.jobs():
            click.echo(f"{job.name:<40} {job.status.lower():<10} {job.words}")
        return 0
    if stop:
        cluster.stop(stop)
        click.echo(f"{stop} was asked to stop; the same sweep sent again goes on from there")
        return 0
    assert attach is not None
    return _follow(cluster, attach)


def _prepare(words: tuple[str, ...], name: str | None, limit_mb: float | None) -> tuple[Any, str]:
    """The files to send and the job's name, once the sweep is known to make sense."""
    from orchestrator.cli import sweep
    from orchestrator.cli.options import choose
    from orchestrator.cluster.parcel import LIMIT_MB, pack

    parsed = sweep.command.make_context("sweep", list(words)).params
    parsed.pop("force")
    here = Path.cwd()
    if parsed["file"] and Path(parsed["file"]).is_file():
        _refuse_outside(Path(parsed["file"]), here)
    experiment = choose(**parsed).experiment
    storage = experiment.storage
    if "://" not in storage and not Path(storage).is_absolute():
        raise UserError(
            f"storage = {storage!r} would lie in the job's own folder on the cluster, which goes "
            f"with the job; give --storage a bucket, or a path that every node has"
        )
    made = name or f"{experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return pack(here, limit_mb or LIMIT_MB), made


def _refuse_outside(file: Path, here: Path) -> None:
    if file.is_absolute() or not file.resolve().is_relative_to(here):
        raise UserError(
            f"{file} must be named by a path inside this folder, which is what is sent; "
            f"change to its folder first"
        )


def _follow(cluster: Any, name: str) -> int:
    try:
        job = cluster.follow(name, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        click.echo(
            f"\n{name} goes on; `nml-orch submit --attach {name}` shows it again, "
            f"`--stop {name}` ends it",
            err=True,
        )
        return 130
    if job.status == "SUCCEEDED":
        return 0
    click.echo(f"{name} {job.status.lower()}: {job.message}", err=True)
    return job.exit_code if job.exit_code is not None else 1

"""`nml-orch ui`: opens MLflow's pages on this machine, for the database that sweeps here write."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click


@click.command("ui", epilog="Example: nml-orch ui --port 5001")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="Where to listen; else 5000, or the next port that is free.",
)
@click.option("--uri", help="Tracking store; else $MLFLOW_TRACKING_URI, else mlflow.db here.")
def command(port: int | None, uri: str | None) -> None:
    """Open MLflow on this machine only (127.0.0.1). Ctrl-C ends it."""
    from orchestrator.errors import UserError
    from orchestrator.tracking import sqlite
    from orchestrator.tracking.mlflow import error_kind, error_message
    from orchestrator.tracking.pages import pages
    from orchestrator.tracking.server import resolve_uri

    store = resolve_uri(uri, "--uri")
    if store.startswith(("http://", "https://")):
        raise UserError(f"{store} is a running server; open it in a browser")
    path = sqlite.path_of(store)
    if path is not None and not path.exists():
        raise UserError(f"no MLflow database at {store}; run a sweep in this folder first")
    port = _free(port)
    click.echo("MLflow takes some seconds to start; Ctrl-C ends it. Then open")
    try:
        found = pages(store, f"http://127.0.0.1:{port}")
    except Exception as error:
        if error_kind(error) == "ours":
            raise
        raise UserError(f"{error_message(error, store)}; name another with --uri") from error
    if path is not None:  # MLflow does not decode the folders of a URI; a bare name has none
        os.chdir(path.parent)
        store = sqlite.uri_of(Path(path.name))
    width = max(map(len, found), default=0)
    for name, page in found.items():
        click.echo(f"  {name:<{width}}  {page}")
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # two thirds of its processes, not used here
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    arguments = ["ui", "--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(port)]
    os.execve(  # nosec: our own interpreter, no shell
        sys.executable, [sys.executable, "-m", "mlflow", *arguments, "--workers", "1"], environment
    )


def _free(wanted: int | None) -> int:
    """The wanted port, or the first free one from UI_PORT on. UserError if the wanted is taken."""
    from orchestrator.errors import UserError
    from orchestrator.preflight import UI_PORT
    from orchestrator.tracking import port

    first = UI_PORT if wanted is None else wanted
    if port.is_free(first):
        return first
    taken = f"port {first} is taken by {port.owner(first)}"
    other = port.next_free(first)
    if wanted is not None or other is None:
        hint = "leave --port out, or give another" if other is None else f"--port {other} is free"
        raise UserError(f"{taken}; {hint}")
    click.echo(f"{taken}; using {other}")
    return other

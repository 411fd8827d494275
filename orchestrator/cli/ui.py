"""`nml-orch ui`: opens MLflow's pages on this machine, for the database that sweeps here write."""

from __future__ import annotations

import os
import sys

import click


@click.command("ui", epilog="Example: nml-orch ui --port 5001")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--uri", help="Tracking store; else $MLFLOW_TRACKING_URI, else mlflow.db here.")
def command(port: int, uri: str | None) -> None:
    """Open MLflow on this machine only (127.0.0.1). Ctrl-C ends it."""
    from pathlib import Path

    from orchestrator.errors import UserError
    from orchestrator.tracking.mlflow import error_kind, error_message, pages
    from orchestrator.tracking.server import resolve_uri

    store = resolve_uri(uri)
    if store.startswith(("http://", "https://")):
        raise UserError(f"{store} is a running server; open it in a browser")
    if store.startswith("sqlite:////") and not Path(store.removeprefix("sqlite:///")).exists():
        raise UserError(f"no MLflow database at {store}; run a sweep in this folder first")
    click.echo("MLflow takes some seconds to start; Ctrl-C ends it. Then open")
    try:
        found = pages(store, f"http://127.0.0.1:{port}")
    except Exception as error:
        if error_kind(error) == "ours":
            raise
        raise UserError(f"{error_message(error, store)}; name another with --uri") from error
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

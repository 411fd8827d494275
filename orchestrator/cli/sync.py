"""`nml-orch sync`: writes to MLflow what it has missed, after it was away or lost its data."""

from __future__ import annotations

import click

from orchestrator.cli.options import Chosen, last_experiment_options
from orchestrator.run.waiting import waiting


@click.command("sync", epilog="Example: nml-orch sync my.yaml --set tracking.uri=http://host:5000")
@last_experiment_options
def command(chosen: Chosen) -> None:
    """Write to MLflow every finished step that it lacks.

    Without FILE: for the last sweep started on this store.
    """
    from orchestrator.results import collect
    from orchestrator.store.provenance import redact
    from orchestrator.tracking.mirror import sync
    from orchestrator.tracking.server import resolve_uri

    uri = resolve_uri(chosen.experiment.tracking.uri)
    with waiting("writing the report"):
        report = collect.refresh(chosen.plan, chosen.store)
    with waiting("writing to MLflow"), collect.local(report) as folder:
        count = sync(chosen.plan, chosen.store, uri, report.record(folder))
    click.echo(f"{count} steps mirrored to {redact(uri)}; MLflow is now up to date with the store")

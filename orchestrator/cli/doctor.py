"""`nml-orch doctor`: is everything here that a sweep needs? One line for each check."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from orchestrator.cli.options import Chosen, experiment_options
from orchestrator.errors import UserError

Check = tuple[bool, str]  # passed, what was found or what to do

LOW_DISK_GB = 5


@click.command("doctor", epilog="Example: nml-orch doctor my.yaml")
@experiment_options
@click.option("--no-ray", is_flag=True, help="Do not start or join Ray.")
@click.option(
    "--cluster",
    "cluster_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also check a cluster file for `ray up`: fields, versions, open ports.",
)
def command(chosen: Chosen, no_ray: bool, cluster_file: Path | None) -> int:
    """Check versions, storage, disk, tracking and Ray, and say how to correct each fault.

    With RAY_ADDRESS, every node of that cluster is checked for its versions and access to storage.
    """
    failed = 0
    for name, (passed, message) in _checks(chosen, no_ray, cluster_file):
        failed += not passed
        click.echo(f"{'ok  ' if passed else 'FAIL'}  {name:<10} {message}")
    return 1 if failed else 0


def _checks(chosen: Chosen, no_ray: bool, cluster_file: Path | None) -> Iterator[tuple[str, Check]]:
    yield "versions", _versions()
    yield "experiment", (True, f"{chosen.experiment.name}: {len(chosen.plan.steps)} steps planned")
    yield from _corpora(chosen)
    yield "storage", _run(lambda: _storage(chosen))
    yield "disk", _disk(chosen)
    yield "tracking", _run(lambda: _tracking(chosen))
    if cluster_file is not None:
        yield "cluster", _run(lambda: _cluster(cluster_file))
    if not no_ray:
        yield "ray", _run(lambda: _ray(chosen))


def _run(check: Callable[[], Check]) -> Check:
    """The check's result. An error of the check is a failed check."""
    from orchestrator.run.executor import failure_of

    try:
        return check()
    except Exception as error:
        return False, failure_of(error).sentence


def _versions() -> Check:
    from orchestrator.store.provenance import PACKAGES, versions

    found = versions()
    missing = [name for name in PACKAGES if name not in found]
    if missing:
        return False, f"not installed: {', '.join(missing)}; run pip install -e . again"
    return True, ", ".join(f"{name} {version}" for name, version in found.items())


def _corpora(chosen: Chosen) -> Iterator[tuple[str, Check]]:
    """What the reader of the experiment's corpus finds, if it is not built yet."""
    from orchestrator.cli.corpus import previews
    from orchestrator.plan.assess import assess
    from orchestrator.plan.states import StepState

    plan = chosen.plan.only("corpus")
    try:
        done = [a for a, s in assess(plan, chosen.store).items() if s.state is StepState.DONE]
    except UserError:
        return  # a store that cannot be read is the next check's
    for step, source in previews(chosen, done, tasks=False):
        if isinstance(source, str):
            yield "corpus", (False, source)
            continue
        passed = getattr(step.spec, "allow_empty_classes", True) or not source.without_rows
        yield "corpus", (passed, f"{step.address}: {source.in_a_line()}")


def _storage(chosen: Chosen) -> Check:
    chosen.store.prepare()
    return True, f"{chosen.store.root.uri} can be written"


def _disk(chosen: Chosen) -> Check:
    if not chosen.store.root.is_local:
        return True, "not a local disk"
    folder = chosen.store.root.local_path()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    if free < LOW_DISK_GB:
        return False, f"{free:.1f} GB free at {folder}; free some, or use --storage elsewhere"
    return True, f"{free:.0f} GB free at {folder}"


def _tracking(chosen: Chosen) -> Check:
    from orchestrator.store.provenance import redact
    from orchestrator.tracking.mlflow import error_kind, error_message, pages
    from orchestrator.tracking.server import resolve_uri

    if not chosen.experiment.tracking.enabled:
        return True, "switched off in the experiment file"
    uri = resolve_uri(chosen.experiment.tracking.uri)
    if uri.startswith("sqlite:////") and not Path(uri.removeprefix("sqlite:///")).exists():
        return True, f"{uri} (the first sweep creates it)"
    try:
        pages(uri, uri)
    except Exception as error:
        if error_kind(error) == "ours":
            raise
        remedy = "start it, or set MLFLOW_TRACKING_URI or --set tracking.uri=URI"
        return False, f"{error_message(error, uri)}; {remedy}"
    return True, f"{redact(uri)} answers"


def _cluster(file: Path) -> Check:
    from orchestrator.cluster import launch

    content = launch.validate(file)
    wrong = [
        *launch.pins(content).differences(),
        *(f"it listens on every address: {line}" for line in launch.public_listeners(content)),
    ]
    if wrong:
        return False, f"{file}: {'; '.join(wrong)}"
    kinds = ", ".join(content.get("available_node_types") or [content["provider"]["type"]])
    return True, f"{file}: accepted by the installed Ray ({kinds})"


def _ray(chosen: Chosen) -> Check:
    from orchestrator import cluster
    from orchestrator.cluster import nodes
    from orchestrator.cluster.needs import lacking

    with cluster.session():
        have = cluster.resources()
        nodes.check(chosen.store.root)
    found = f"{have.nodes} node(s), {have.cpus:g} CPUs, {have.gpus:g} GPUs"
    kinds = {step.kind for step in chosen.plan.steps.values()}
    missing = list(lacking(chosen.experiment, have, kinds))
    return (False, "; ".join(missing)) if missing else (True, found)

"""`nml-orch sweep`: plans and runs an experiment, and prints its results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.options import Chosen, experiment_options, redo_option
from orchestrator.plan.states import StepState, StepStatus

if TYPE_CHECKING:
    import pyarrow as pa


@click.command(
    "sweep",
    epilog="""\b
Examples:
  nml-orch sweep --noise 0,5,10,20,30            the demo: handwritten digits
  nml-orch sweep digits-clip                     a bundled experiment
  nml-orch sweep my.yaml --seeds 0,1,2 --storage s3://bucket/nml
  nml-orch sweep --features ada.parquet          features from elsewhere, no encoder
Exit status: 0 done; 1 some steps failed; 2 a mistake in the command, the file or the data, or a
cluster that cannot be used; 130 stopped (the same command continues).""",
)
@experiment_options
@click.option("--force", is_flag=True, help="Redo the steps whose settings have changed.")
@redo_option
@click.option(
    "--accept-drift",
    is_flag=True,
    help="Go on asking an embedding API whose model has changed behind its name.",
)
def command(chosen: Chosen, force: bool, redo: tuple[str, ...], accept_drift: bool) -> int:
    """Plan and run an experiment. Finished steps are reused; an interrupted sweep continues.

    FILE is an experiment file or the name of a bundled one; without it the demo runs.
    """
    from orchestrator.run import sweep
    from orchestrator.store.provenance import redact

    plan = chosen.plan
    if accept_drift:
        from orchestrator.plan.paid import accepting_drift

        plan = accepting_drift(plan)
    ending = sweep.run(
        plan,
        chosen.store,
        force=force,
        redo=plan.named(redo),
        say=lambda line: click.echo(line, err=True),
    )
    if ending.report:
        for line in (*_summary(ending.report.summary), *_pretrained(ending.report.pretrained)):
            click.echo(line)
    counts = [f"{ending.count(state)} {state}" for state in StepState if ending.count(state)]
    click.echo(f"\n{', '.join(counts)} in {ending.seconds:.0f} s")
    for line in _failures(ending.results):
        click.echo(line)
    if ending.report:
        click.echo(f"report   {ending.report.folder.uri}/report.html")
    if ending.tracking:
        hint = "  (browse it: nml-orch ui)" if ending.tracking.startswith("sqlite:") else ""
        click.echo(f"MLflow   {redact(ending.tracking)}{hint}")
    if ending.unreported:
        click.echo(f"no report: {ending.unreported}", err=True)
        return 2
    return 0 if ending.complete else 1


def _summary(summary: pa.Table) -> Iterator[str]:
    """Averages by noise level, one row for each metric; `+-` is half a 95 % interval over seeds."""
    rows = summary.to_pylist()
    if not rows:
        return
    levels = sorted({row["noise"] for row in rows})
    metrics = list(dict.fromkeys(map(_title, rows)))
    width = max((len(metric) for metric in metrics), default=0) + 2
    yield f"\n{'noise in percent':{width}}" + "".join(f"{level:>14g}" for level in levels)
    values = {(_title(row), row["noise"]): _value(row) for row in rows}
    for metric in metrics:
        yield f"{metric:{width}}" + "".join(
            f"{values.get((metric, level), ''):>14}" for level in levels
        )


def _pretrained(summary: pa.Table) -> Iterator[str]:
    """Test accuracy of pretrained encoders: rows are tasks and fractions, columns are methods.

    A row gives the name of the task's metric if it is not accuracy.
    """
    from analysis.pretrained import main_score

    rows = summary.to_pylist()
    if not rows:
        return
    order = list(dict.fromkeys((row["encoder"], row["task"]) for row in rows))
    several = len({row["fraction"] for row in rows}) > 1
    methods = {row["method"]: max(8, len(row["method"]) + 2) for row in rows}
    values = {
        (r["encoder"], r["task"], r["fraction"], r["method"]): f"{main_score(r):.2f}" for r in rows
    }
    titles = {
        (r["encoder"], r["task"], r["fraction"]): f"{r['encoder']}  {r['task']}"
        + (f" ({r['metric']})" if r["metric"] not in (None, "accuracy") else "")
        + (f"  {r['fraction']:g} % of rows" if several else "")
        for r in sorted(
            rows, key=lambda r: (order.index((r["encoder"], r["task"])), -r["fraction"])
        )
    }
    width = max(map(len, titles.values())) + 2
    yield f"\n{'pretrained encoder':{width}}" + "".join(f"{m:>{w}}" for m, w in methods.items())
    for row, title in titles.items():
        yield f"{title:{width}}" + "".join(
            f"{values.get((*row, method), '-'):>{w}}" for method, w in methods.items()
        )


def _failures(results: Mapping[str, StepStatus]) -> Iterator[str]:
    """One line for each reason, with the first failed step and the number of others."""

    by_reason: dict[str, list[str]] = {}
    for address, result in results.items():
        if result.state is StepState.FAILED:
            by_reason.setdefault(result.reason, []).append(address)
    for reason, addresses in by_reason.items():
        more = f" (and {len(addresses) - 1} more)" if len(addresses) > 1 else ""
        yield f"failed   {addresses[0]}{more}: {reason}"


def _title(row: dict[str, Any]) -> str:
    """A metric's name, with the type of the measured features if it is coarser than float32."""
    coarse = row["dtype"] not in (None, "float32")
    return f"{row['metric']} ({row['dtype']})" if coarse else str(row["metric"])


def _value(row: dict[str, Any]) -> str:
    digits = 3 if row["metric"].startswith("features/") else 2
    half = "" if row["high"] is None else f" +-{row['high'] - row['mean']:.{digits}f}"
    return f"{row['mean']:.{digits}f}{half}"

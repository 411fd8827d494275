"""`nml-orch status`: the matrix of noise x task x method as it stands, gaps visible."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping

import click

from orchestrator.cli.options import Chosen, experiment_options


@click.command("status", epilog="Example: nml-orch status my.yaml --seeds 0,1,2")
@experiment_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one entry a step.")
def command(chosen: Chosen, as_json: bool) -> None:
    """Show what is done, running, failed and missing, from the store alone."""
    from orchestrator.standing import look

    found = look(chosen.plan, chosen.store)
    if as_json:
        entries = {
            address: {
                "state": state.word,
                "reason": state.reason,
                **chosen.plan.steps[address].labels,
            }
            for address, state in found.items()
        }
        click.echo(json.dumps(entries, indent=2))
        return
    words = Counter(state.word for state in found.values())
    click.echo(f"{chosen.experiment.name} in {chosen.store.root.uri}")
    click.echo(", ".join(f"{count} {word}" for word, count in words.items()) + "\n")
    for line in _matrix(chosen, {address: state.word for address, state in found.items()}):
        click.echo(line)
    for address, state in found.items():
        if state.reason:
            click.echo(f"{state.word} {address}: {state.reason}")


def _matrix(chosen: Chosen, words: Mapping[str, str]) -> Iterable[str]:
    """One row a stage or a task's method, one column a noise level; done of planned in each."""
    levels = list(chosen.experiment.noise.levels)
    rows: dict[tuple[str, ...], dict[float, Counter[str]]] = {}
    for step in chosen.plan.steps.values():
        if "noise" not in step.labels:
            continue
        row: tuple[str, ...] = (
            (str(step.labels["task"]), str(step.labels["domain"]), str(step.labels["method"]))
            if step.kind == "tune"
            else (step.kind,)
        )
        level = float(step.labels["noise"])
        rows.setdefault(row, {}).setdefault(level, Counter())[words[step.address]] += 1
    width = max(len(_title(row)) for row in rows) + 2
    yield f"{'noise in percent':{width}}" + "".join(f"{level:>8g}" for level in levels)
    for row, cells in rows.items():
        yield f"{_title(row):{width}}" + "".join(f"{_cell(cells[level]):>8}" for level in levels)


def _title(row: tuple[str, ...]) -> str:
    return row[0] if len(row) == 1 else f"{row[1]}  {row[0]}  {row[2]}"


def _cell(words: Counter[str]) -> str:
    """`2/4`, with ! for a failure and ~ for something running."""
    mark = "!" if words["failed"] else "~" if words["running"] else ""
    return f"{words['done']}/{words.total()}{mark}"

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
    words_of = {address: state.word for address, state in found.items()}
    for line in _matrix(chosen, words_of, "noise"):
        click.echo(line)
    for line in _matrix(chosen, words_of, "encoder"):
        click.echo(line)
    for address, state in found.items():
        if state.reason:
            click.echo(f"{state.word} {address}: {state.reason}")


def _matrix(chosen: Chosen, words: Mapping[str, str], across: str) -> Iterable[str]:
    """One row a stage or a task's method; done of planned in each cell.

    A column is a noise level, or (across="encoder") an encoder that is not trained here.
    """
    rows: dict[tuple[str, ...], dict[str | float | int, Counter[str]]] = {}
    columns: dict[str | float | int, int] = {}
    for step in chosen.plan.steps.values():
        if across not in step.labels:
            continue
        row: tuple[str, ...] = (
            (str(step.labels["task"]), str(step.labels["domain"]), str(step.labels["method"]))
            if step.kind == "tune"
            else (step.kind,)
        )
        column = step.labels[across]
        columns[column] = max(8, len(_name(column)) + 2)
        rows.setdefault(row, {}).setdefault(column, Counter())[words[step.address]] += 1
    if not rows:
        return
    head = "noise in percent" if across == "noise" else "\nnamed encoder"
    width = max(len(head), *(len(_title(row)) for row in rows)) + 2
    yield f"{head:{width}}" + "".join(f"{_name(c):>{w}}" for c, w in columns.items())
    for row, cells in rows.items():
        yield f"{_title(row):{width}}" + "".join(
            f"{_cell(cells[c]) if c in cells else '-':>{w}}" for c, w in columns.items()
        )


def _name(column: str | float | int) -> str:
    return column if isinstance(column, str) else f"{column:g}"


def _title(row: tuple[str, ...]) -> str:
    return row[0] if len(row) == 1 else f"{row[1]}  {row[0]}  {row[2]}"


def _cell(words: Counter[str]) -> str:
    """`2/4`, with ! for a failure and ~ for something running."""
    mark = "!" if words["failed"] else "~" if words["running"] else ""
    return f"{words['done']}/{words.total()}{mark}"

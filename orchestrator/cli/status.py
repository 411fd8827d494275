"""`nml-orch status`: the matrix of noise x task x method, with its gaps."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping

import click

from orchestrator.cli.options import Chosen, last_experiment_options
from orchestrator.plan.states import StepState, StepStatus
from orchestrator.run.waiting import waiting

READING = "reading the store"
REASONS = 12  # lines of reasons; --json has them all
WATCH_SECONDS = 2.0
_MORE = "  +999"  # columns that a narrow window leaves out


@click.command(
    "status",
    epilog="""\b
Examples:
  nml-orch status                        the last sweep started here
  nml-orch status my.yaml --seeds 0,1,2
  nml-orch status --watch                update until Ctrl-C
The matrix shows done / planned. ! failed, ^ blocked, ~ running, * made from other settings.""",
)
@last_experiment_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one entry for each step.")
@click.option("--watch", is_flag=True, help="Update every two seconds, until Ctrl-C.")
def command(chosen: Chosen, as_json: bool, watch: bool) -> None:
    """Show what is done, running, failed and missing, from the store alone.

    Without FILE: for the last sweep started on this store.
    """
    from orchestrator.errors import UserError
    from orchestrator.plan.assess import look

    if as_json and watch:
        raise UserError("--json and --watch cannot be combined; give one of them")
    if watch:
        _watch(chosen)
        return
    with waiting(READING):
        found = look(chosen.plan, chosen.store)
    if not as_json and not _is_store(chosen):
        click.echo(
            f"There is no store at {chosen.store.root.uri}: no sweep has run there. Name the right "
            f"folder with --storage, or start one with `nml-orch sweep`."
        )
        return
    if as_json:
        click.echo(_json(chosen, found))
        return
    click.echo("\n".join(_page(chosen, found)))


def _json(chosen: Chosen, found: Mapping[str, StepStatus]) -> str:
    """An object with one line for each step: more indentation costs a second for 50,000."""
    entry = json.JSONEncoder().encode
    lines = (
        f"  {entry(address)}: "
        + entry(
            {"state": status.state, "reason": status.reason, **chosen.plan.steps[address].labels}
        )
        for address, status in found.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}"


def _watch(chosen: Chosen) -> None:
    """Show the page and update it in place, until Ctrl-C or until all steps are done."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from orchestrator.plan.assess import look

    console = Console()
    try:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                begun = time.monotonic()
                found = look(chosen.plan, chosen.store)
                lines = [*_fitted(chosen, found, *console.size), _clock(chosen)]
                live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)
                if all(status.state is StepState.DONE for status in found.values()):
                    return
                time.sleep(max(0.0, WATCH_SECONDS - (time.monotonic() - begun)))
    except KeyboardInterrupt:
        return


def _is_store(chosen: Chosen) -> bool:
    from orchestrator.experiment import last_sweep

    return bool(chosen.store.identity) or last_sweep.recall(chosen.store.root) is not None


def _clock(chosen: Chosen) -> str:
    there = "" if _is_store(chosen) else "  no sweep has run in this storage yet;"
    return f"{time.strftime('%H:%M:%S')} {there} Ctrl-C ends"


def _fitted(chosen: Chosen, found: Mapping[str, StepStatus], width: int, height: int) -> list[str]:
    """The page for a window, without its last two lines: the rows of a domain's tasks are summed if
    they do not fit, and what is left over is counted.
    """
    room = height - 2  # the clock, and the line where the cursor stands
    lines = [line for line in _page(chosen, found, width=width) if line]
    if len(lines) > room:
        lines = [line for line in _page(chosen, found, width=width, by_task=False) if line]
    if len(lines) <= room:
        return lines
    return [*lines[: room - 1], f"... {len(lines) - room + 1} more lines: enlarge the window"]


def _page(
    chosen: Chosen,
    found: Mapping[str, StepStatus],
    *,
    width: int | None = None,
    by_task: bool = True,
) -> Iterator[str]:
    """The page as lines: the counts, the matrices, one line for each reason.

    A `width` leaves out the columns of a matrix that do not fit, and counts them.
    """
    from orchestrator.plan.assess import reasons

    counts = Counter(status.state for status in found.values())
    yield f"{chosen.experiment.name} in {chosen.store.root.uri}"
    listed = ", ".join(f"{counts[state]:,} {state}" for state in StepState if counts[state])
    yield f"{listed}  ({100 * counts[StepState.DONE] / len(found):.0f} % of {len(found):,} steps)"
    for across in ("noise", "encoder"):
        matrix = list(_matrix(chosen, found, across, width, by_task))
        yield from ("", *matrix) if matrix else ()
    found_reasons = list(reasons(found))
    if found_reasons:
        yield ""
    for status, address, count in found_reasons[:REASONS]:
        more = f" (and {count - 1:,} more)" if count > 1 else ""
        yield f"{status.state} {address}{more}: {status.reason}"
    if len(found_reasons) > REASONS:
        yield f"... and {len(found_reasons) - REASONS:,} more reasons; --json lists them"


def _matrix(
    chosen: Chosen,
    found: Mapping[str, StepStatus],
    across: str,
    width: int | None,
    by_task: bool,
) -> Iterator[str]:
    """One row for each stage, and for each task and method; its cells say done of planned.

    Without `by_task`, a row is a method in a domain.

    A column is a noise level, or (across="encoder") a pretrained encoder.
    """
    rows: dict[tuple[str, ...], dict[str | float | int, Counter[StepState]]] = {}
    columns: dict[str | float | int, None] = {}
    for step in chosen.plan.steps.values():
        if across not in step.labels:
            continue
        row: tuple[str, ...] = (
            (
                str(step.labels["task"]) if by_task else "",
                str(step.labels["domain"]),
                str(step.labels["method"]),
            )
            if step.kind == "tune"
            else (step.kind,)
        )
        column = step.labels[across]
        columns[column] = None
        counts = rows.setdefault(row, {}).get(column)
        if counts is None:  # 50,000 cells make some hundred counters
            counts = rows[row][column] = Counter()
        counts[found[step.address].state] += 1
    if not rows:
        return
    cells = {
        row: [_cell(states[c]) if c in states else "-" for c in columns]
        for row, states in rows.items()
    }
    head = "noise in percent" if across == "noise" else "pretrained encoder"
    names = [_name(column) for column in columns]
    title = max(len(head), *(len(_title(row)) for row in rows)) + 2
    each = max(8, 2 + max(len(cell) for row in (names, *cells.values()) for cell in row))
    shown = len(names)
    if width is not None and title + each * shown > width:
        shown = max(1, (width - title - len(_MORE)) // each)
    more = f"  +{len(names) - shown}" if shown < len(names) else ""
    yield f"{head:{title}}" + "".join(f"{name:>{each}}" for name in names[:shown]) + more
    for row, texts in cells.items():
        yield f"{_title(row):{title}}" + "".join(f"{text:>{each}}" for text in texts[:shown])


def _name(column: str | float | int) -> str:
    return column if isinstance(column, str) else f"{column:g}"


def _title(row: tuple[str, ...]) -> str:
    if len(row) == 1:
        return row[0]
    return "  ".join(filter(None, (row[1], row[0], row[2])))


def _cell(states: Counter[StepState]) -> str:
    """`2/4`, with a mark for the worst state."""

    marks = {
        StepState.FAILED: "!",
        StepState.DRIFT: "*",
        StepState.BLOCKED: "^",
        StepState.RUNNING: "~",
    }
    mark = next((mark for state, mark in marks.items() if states[state]), "")
    return f"{states[StepState.DONE]}/{states.total()}{mark}"

"""`nml-orch tasks`: lists the downstream tasks, shows one, checks task files and their data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.options import task_options

if TYPE_CHECKING:
    from jobs.tasks.spec import Task

CLASSES_SHOWN = 12
FOUND = "found"  # of a task's data


@click.group("tasks")
def command() -> None:
    """List the downstream tasks, show one in full, or check files and data."""


@command.command(
    "list",
    epilog="""\b
Examples:
  nml-orch tasks list --data /data
  nml-orch tasks list --tasks-path my-tasks --json""",
)
@task_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(tasks_path: tuple[str, ...], data: str | None, as_json: bool) -> None:
    """List every task, and whether its data is found."""
    found = [_row(task) for task in _load(tasks_path, data).values()]
    found.sort(key=lambda row: (row["domain"] == "ood", row["trained_on"] or "", row["name"]))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    width = max(len(row["name"]) for row in found) + 2
    for domain, words in (("id", "trained and tested"), ("ood", "tested with another's heads")):
        click.echo(f"{domain.upper()} tasks, {words}")
        for row in found:
            if row["domain"] == domain:
                click.echo(_list_line(row, width))


@command.command("show", epilog="Example: nml-orch tasks show imagenet-r --data /data")
@click.argument("name")
@task_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, tasks_path: tuple[str, ...], data: str | None, as_json: bool) -> None:
    """Show one task in full, and where to get its data."""
    task = _load(tasks_path, data, [name])[name]
    if as_json:
        click.echo(
            json.dumps({**task.model_dump(mode="json"), "data": _data_state(task)}, indent=2)
        )
        return
    for title, text in _show_lines(task):
        click.echo(f"{title:12}{text}")


@command.command(
    "check",
    epilog="""\b
Examples:
  nml-orch tasks check                          every file, and all data that is found
  nml-orch tasks check imagenet-r --data /data
Exit status: 0 no fault (missing data is no fault), 1 some fault, 2 a mistake in the command.""",
)
@click.argument("names", nargs=-1)
@task_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(
    names: tuple[str, ...], tasks_path: tuple[str, ...], data: str | None, as_json: bool
) -> int:
    """Compare task files with each other and with their data.

    Compares fields, classes, rows and some samples. Of a file without facts: shows what is in its
    data.
    """
    from jobs.tasks.check import data_faults, faults, link_faults
    from jobs.tasks.check import found as found_in
    from jobs.tasks.duplicates import duplicate_tests

    tasks = _load(tasks_path, data)
    chosen = {name: tasks[name] for name in names} if _known(names, tasks) else tasks
    same = list(duplicate_tests(list(tasks.values())))
    found: dict[str, dict[str, Any]] = {}
    for task in chosen.values():
        state = _data_state(task)
        complaints = [*faults(task), *link_faults(task, tasks)]
        complaints += [f"tests the samples of {first}" for first, name in same if name == task.name]
        if state == FOUND:
            complaints += data_faults(task)
        shown = list(found_in(task)) if task.facts is None and state == FOUND else []
        found[task.name] = {
            "title": task.title,
            "data": state,
            "faults": complaints,
            "found": shown,
        }
    bad = sum(bool(each["faults"]) for each in found.values())
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return 1 if bad else 0
    width = max(map(len, found)) + 2
    for name, each in found.items():
        state = f"{each['data']:16}{each['title']}"
        click.echo(f"{'FAIL' if each['faults'] else 'ok':6}{name:{width}}{state}")
        for line in (*each["faults"], *each["found"]):
            click.echo(f"      {line}")
    return 1 if bad else 0


def _load(
    folders: Sequence[str], data: str | None, names: Sequence[str] | None = None
) -> dict[str, Task]:
    """Tasks by name. Raises UserError for an unknown name or a file with a mistake."""
    from jobs.tasks import registry
    from orchestrator.errors import UserError

    try:
        wanted = registry.names(folders) if names is None else names
        return {name: registry.load(name, folders, data) for name in wanted}
    except registry.TaskError as error:
        raise UserError(str(error)) from error


def _known(names: Sequence[str], tasks: Mapping[str, Task]) -> bool:
    """Whether any name is given. Raises UserError with the nearest names for an unknown one."""
    import difflib

    from orchestrator.errors import UserError

    for name in names:
        if name not in tasks:
            near = difflib.get_close_matches(name, tasks, n=3, cutoff=0.5)
            meant = f"did you mean {' or '.join(near)}?" if near else "see `nml-orch tasks list`"
            raise UserError(f"no task is named {name!r}; {meant}")
    return bool(names)


def _data_state(task: Task) -> str:
    from jobs.tasks.check import absent

    if task.corpus is None:
        return "given features"
    return f"not {FOUND}" if absent(task) else FOUND


def _row(task: Task) -> dict[str, Any]:
    facts = task.facts
    count = len(task.classes) if task.classes else facts.classes if facts else None
    return {
        "name": task.name,
        "title": task.title,
        "domain": task.domain,
        "trained_on": task.trained_on,
        "target": task.target,
        "classes": count,
        "sizes": dict(facts.sizes) if facts else {},
        "metric": task.metric,
        "data": _data_state(task),
    }


def _list_line(row: Mapping[str, Any], width: int) -> str:
    sizes = " + ".join(f"{rows:,}" for rows in row["sizes"].values()) or "?"
    classes = row["target"] if row["classes"] == 0 else f"{row['classes']} classes"
    line = f"  {row['name']:{width}}{classes:>13}{sizes:>28}  {row['metric']:24}{row['data']}"
    on = f"  (on {row['trained_on']})" if row["trained_on"] else ""
    return f"{line}{on}  {row['title']}"


def _show_lines(task: Task) -> Iterator[tuple[str, str]]:
    from jobs.tasks.check import absent, class_names, sources

    yield "name", f"{task.name}: {task.title}"
    if task.trained_on:
        yield "domain", f"{task.domain}, tested with the heads of {task.trained_on}"
    else:
        yield "domain", task.domain
    yield "metric", task.metric
    if task.shift:
        yield "shift", f"{task.shift.kind}, strength {task.shift.strength:g}"
    for name, reader in sources(task).items():
        fields = ", ".join(f"{k}={v}" for k, v in reader.model_dump(exclude_defaults=True).items())
        yield name, f"{reader.kind}: {fields}"
    if task.corpus is not None:
        shares = zip(("train", "validation", "test"), task.corpus.parts.shares, strict=True)
        cut = ", ".join(f"{share:.0%} {part}" for part, share in shares if share)
        yield "parts", f"of the reader's rows: {cut}"
    names = class_names(task)
    more = f", ... ({len(names)} in all)" if len(names) > CLASSES_SHOWN else ""
    kind = task.target_kind
    own = "the corpus's own" if kind.has_classes else f"none: it predicts a {kind.name}"
    yield "classes", (", ".join(names[:CLASSES_SHOWN]) + more) or own
    if task.answers:
        many = sum(len(outputs) > 1 for outputs in task.answers.values())
        outputs = sum(map(len, task.answers.values()))
        yield "answers", f"{outputs} outputs; {many} classes have several"
    if task.facts:
        yield "rows", ", ".join(f"{name} {rows:,}" for name, rows in task.facts.sizes.items())
        yield "homepage", task.facts.homepage
        yield "get", task.facts.get
    missing = absent(task)
    yield "data", f"not {FOUND}: {', '.join(missing)}" if missing else _data_state(task)

"""The registry of downstream tasks: one YAML file a task, its name the file's.

Takes a task's name and the folders to look in beside this one; gives the `Task` that its file
says. To add a task, add a file. Nothing here touches a task's data.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.tasks.spec import Task

SHIPPED = Path(__file__).parent


class TaskError(ValueError):
    """A task that cannot be loaded: one sentence of what, in which file and field, what to do."""


def names(folders: Sequence[str | Path] = ()) -> tuple[str, ...]:
    """Every task that can be named, in alphabetical order; TaskError as in `load`."""
    return tuple(sorted(_files(folders)))


def load(name: str, folders: Sequence[str | Path] = ()) -> Task:
    """The task of that name, from the shipped files and those in `folders`.

    Raises TaskError for an unknown name (with the nearest ones), a folder that is not there, a
    name that two files claim, and a file that cannot be understood (with the field at fault).
    """
    files = _files(folders)
    if name not in files:
        near = difflib.get_close_matches(name, files, n=3, cutoff=0.5)
        meant = (
            f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(files))}"
        )
        raise TaskError(f"no task is named {name!r}; {meant}")
    return _parse(files[name])


def _files(folders: Sequence[str | Path]) -> Mapping[str, Path]:
    found: dict[str, Path] = {}
    for folder in (SHIPPED, *map(Path, folders)):
        if not folder.is_dir():
            raise TaskError(f"the tasks folder {folder} does not exist; correct its path")
        for file in sorted(folder.glob("*.yaml")):
            if file.stem in found:
                raise TaskError(
                    f"two files describe task {file.stem}: {found[file.stem]} and {file}; "
                    f"rename one of them"
                )
            found[file.stem] = file
    return found


def _parse(file: Path) -> Task:
    content = _content(file)
    try:
        task = Task.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the whole file"
        what = first["msg"].removeprefix("Value error, ")
        given = "" if first["type"] == "missing" else f" (given: {_short(first['input'])})"
        raise TaskError(f"{file}: {field}: {what}{given}; correct the file") from None
    if task.name != file.stem:
        raise TaskError(
            f"{file}: name: {task.name!r} is not the file's own name; rename the file to "
            f"{task.name}.yaml or the task to {file.stem}"
        )
    return task


def _content(file: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise TaskError(f"{file}: line {line}: {error.problem}; correct the YAML") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TaskError(f"{file}: cannot be read as YAML text ({error})") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

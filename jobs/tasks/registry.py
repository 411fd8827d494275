"""The registry of downstream tasks: one YAML file for each, named like the task.

Takes a task's name and more folders to search besides this one (with subfolders); gives the `Task`
in its file. To add a task, add a file. Paths in a task file are relative to the data folder. A long
mapping or list of names is in a table beside the file, given as `{file: classes.tsv}`: each line is
a name and, after tabs, its values (none: the name itself). Nothing here reads a task's data.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.contract import truth_value_fault
from jobs.explain import explain
from jobs.storage.bounded import read_text
from jobs.storage.folder import Folder
from jobs.tasks.spec import Task

SHIPPED = Path(__file__).parent

DATA = "NML_DATA"
"""The environment variable that gives the data folder by default."""


class TaskError(ValueError):
    """A task that cannot be loaded: one sentence with the fault, file, field and remedy."""


def names(folders: Sequence[str | Path] = ()) -> tuple[str, ...]:
    """The names of all tasks, in alphabetical order; TaskError as in `load`."""
    return tuple(sorted(_task_files(folders)))


def data_folder(given: str | None = None) -> str:
    """Where the paths of task files start: as given, else $NML_DATA, else the present folder."""
    return given or os.environ.get(DATA) or "."


def load(name: str, folders: Sequence[str | Path] = (), data: str | None = None) -> Task:
    """The task of that name, from the shipped files and those in `folders`; `data`: its root.

    Raises TaskError for an unknown name (with the nearest ones), a folder that does not exist, a
    name that two files have, and an invalid file (with the field at fault).
    """
    files = _task_files(folders)
    if name not in files:
        near = difflib.get_close_matches(name, files, n=3, cutoff=0.5)
        meant = f"did you mean {' or '.join(near)}?" if near else "`nml-orch tasks list` lists them"
        raise TaskError(f"no task is named {name!r}; {meant}")
    return _parse(files[name]).with_absolute_paths(Folder.of(data_folder(data)))


def _task_files(folders: Sequence[str | Path]) -> Mapping[str, Path]:
    found: dict[str, Path] = {}
    for folder in (SHIPPED, *map(Path, folders)):
        if not folder.is_dir():
            raise TaskError(f"the tasks folder {folder} does not exist; correct its path")
        for file in sorted(folder.rglob("*.yaml")):
            first = found.setdefault(file.stem, file)
            if first is not file and not first.samefile(file):  # a folder may be given twice
                raise TaskError(
                    f"two files describe task {file.stem}: {first} and {file}; rename one of them"
                )
    return found


def _parse(file: Path) -> Task:
    content = _with_tables(file, _read_yaml(file))
    if (fault := truth_value_fault([Task], content)) is not None:
        raise TaskError(f"{file}: {fault}")
    try:
        task = Task.model_validate(content)
    except ValidationError as error:
        raise TaskError(f"{file}: {explain(error, Task)}") from None
    if task.name != file.stem:
        raise TaskError(
            f"{file}: name: {task.name!r} is not the file's own name; rename the file to "
            f"{task.name}.yaml or the task to {file.stem}"
        )
    return task


def _with_tables(file: Path, content: Any) -> Any:
    """The file's content, with the tables that it names read in."""
    if not isinstance(content, dict):
        return content
    for field in ("classes", "answers"):
        if (name := _table_name(content.get(field))) is not None:
            rows = _read_table(file, field, name)
            content[field] = {first: rest or [first] for first, *rest in rows}
            if len(content[field]) < len(rows):
                raise TaskError(f"{file.parent / name}: a name begins two lines; keep it in one")
    facts = content.get("facts")
    if isinstance(facts, dict) and (name := _table_name(facts.get("class_names"))) is not None:
        facts["class_names"] = [row[0] for row in _read_table(file, "facts.class_names", name)]
    return content


def _table_name(value: Any) -> str | None:
    if isinstance(value, dict) and set(value) == {"file"} and isinstance(value["file"], str):
        return value["file"]
    return None


def _read_table(file: Path, field: str, name: str) -> list[list[str]]:
    try:
        lines = read_text(file.parent / name).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{file}: {field}: {name} cannot be read ({error}); correct it") from None
    kept = [line.rstrip() for line in lines if line.strip() and line[0] != "#"]
    rows = [[field.strip() for field in line.split("\t")] for line in kept]
    if not rows:
        raise TaskError(f"{file}: {field}: {name} names nothing; correct it")
    return rows


def _read_yaml(file: Path) -> Any:
    import yaml

    from jobs import strict_yaml

    try:
        return strict_yaml.parse(read_text(file))
    except yaml.YAMLError as error:
        raise TaskError(f"{file}: not valid YAML: {strict_yaml.in_words(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise TaskError(
            f"{file}: cannot be read as YAML text ({reason}); correct it or remove it"
        ) from None

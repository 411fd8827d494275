"""The registry of downstream tasks: one YAML file a task, its name the file's.

Takes a task's name and the folders to look in beside this one (their subfolders too); gives the
`Task` that its file says. To add a task, add a file. Paths in a task file start from the data
folder; a mapping or a list of names that is long lies in a table beside the file, named as
`{file: classes.tsv}`: a line is a name and, after tabs, what belongs to it (nothing: the name
itself). Nothing here touches a task's data.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.storage.folder import Folder
from jobs.tasks.spec import Task

SHIPPED = Path(__file__).parent

DATA = "NML_DATA"
"""The environment variable that names the data folder where nothing else does."""


class TaskError(ValueError):
    """A task that cannot be loaded: one sentence of what, in which file and field, what to do."""


def names(folders: Sequence[str | Path] = ()) -> tuple[str, ...]:
    """Every task that can be named, in alphabetical order; TaskError as in `load`."""
    return tuple(sorted(_files(folders)))


def data_folder(given: str | None = None) -> str:
    """Where the paths of task files start: as given, else $NML_DATA, else the present folder."""
    return given or os.environ.get(DATA) or "."


def load(name: str, folders: Sequence[str | Path] = (), data: str | None = None) -> Task:
    """The task of that name, from the shipped files and those in `folders`; `data`: its root.

    Raises TaskError for an unknown name (with the nearest ones), a folder that is not there, a
    name that two files claim, and a file that cannot be understood (with the field at fault).
    """
    files = _files(folders)
    if name not in files:
        near = difflib.get_close_matches(name, files, n=3, cutoff=0.5)
        meant = f"did you mean {' or '.join(near)}?" if near else "`nml-orch tasks list` lists them"
        raise TaskError(f"no task is named {name!r}; {meant}")
    return _parse(files[name]).with_absolute_paths(Folder.of(data_folder(data)))


def _files(folders: Sequence[str | Path]) -> Mapping[str, Path]:
    found: dict[str, Path] = {}
    for folder in (SHIPPED, *map(Path, folders)):
        if not folder.is_dir():
            raise TaskError(f"the tasks folder {folder} does not exist; correct its path")
        for file in sorted(folder.rglob("*.yaml")):
            first = found.setdefault(file.stem, file)
            if first is not file and not first.samefile(file):  # a folder may be named twice
                raise TaskError(
                    f"two files describe task {file.stem}: {first} and {file}; rename one of them"
                )
    return found


def _parse(file: Path) -> Task:
    content = _with_tables(file, _content(file))
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


def _with_tables(file: Path, content: Any) -> Any:
    """The file's content with the tables it names in place of their names."""
    if not isinstance(content, dict):
        return content
    for field in ("classes", "answers"):
        if (name := _table_name(content.get(field))) is not None:
            rows = _table(file, field, name)
            content[field] = {first: rest or [first] for first, *rest in rows}
            if len(content[field]) < len(rows):
                raise TaskError(f"{file.parent / name}: a name begins two lines; leave it in one")
    facts = content.get("facts")
    if isinstance(facts, dict) and (name := _table_name(facts.get("class_names"))) is not None:
        facts["class_names"] = [row[0] for row in _table(file, "facts.class_names", name)]
    return content


def _table_name(value: Any) -> str | None:
    if isinstance(value, dict) and set(value) == {"file"} and isinstance(value["file"], str):
        return value["file"]
    return None


def _table(file: Path, field: str, name: str) -> list[list[str]]:
    try:
        lines = (file.parent / name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{file}: {field}: {name} cannot be read ({error}); correct it") from None
    rows = [line.rstrip().split("\t") for line in lines if line.strip() and line[0] != "#"]
    if not rows:
        raise TaskError(f"{file}: {field}: {name} names nothing; correct it")
    return rows


def _content(file: Path) -> Any:
    import yaml

    from jobs import strict_yaml

    try:
        return strict_yaml.parse(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise TaskError(f"{file}: line {line}: {error.problem}; correct the YAML") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TaskError(f"{file}: cannot be read as YAML text ({error})") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

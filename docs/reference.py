"""Writes the reference pages of the site: the fields of both files, and the columns of tables.

Takes the models of experiment and task files and the schemas of tables, gives Markdown. What a
field or a column is stands beside it in the code, and nowhere else.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from analysis.columns import TABLES
from jobs.contract import NOT_SEMANTIC, Spec, specs_in
from jobs.tasks.spec import Task
from orchestrator.experiment.model import Experiment

_PLAIN = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_BOUNDS = {annotated_types.Ge: "≥", annotated_types.Gt: ">", annotated_types.Le: "≤"}
_BOUNDS[annotated_types.Lt] = "<"


def write(folder: Path) -> None:
    """Write the pages into a folder, which is made if absent."""
    folder.mkdir(exist_ok=True)
    places: dict[type[Spec], str] = {}
    experiment = list(_sections(Experiment, places))
    task = list(_sections(Task, places))
    pages = {
        "experiment.md": _page(
            "The experiment file",
            "Every field of an experiment file. A path such as `corpus.reader` is what `--set` "
            "takes and what an error names. A field without a default must be given. Fields that "
            "only say how or where to run never change the identity of a result.",
            experiment,
            places,
        ),
        "task.md": _page(
            "The task file",
            "Every field of a task file. Its `corpus` has the fields of an experiment's.",
            task,
            places,
        ),
        "tables.md": tables(),
    }
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")


def _page(
    title: str,
    first: str,
    sections: list[tuple[type[Spec], str]],
    places: dict[type[Spec], str],
) -> str:
    parts = [f"# {title}", first]
    for model, path in sections:
        tag = _tag(model)
        heading = f"`{path}`" if path else "The whole file"
        parts.append(f"({_anchor(model)})=\n## {heading}{f', {tag}' if tag else ''}")
        parts.append(_prose(model.__doc__ or ""))
        parts.append(
            "\n".join(
                [
                    "| field | value | default | what it is |",
                    "|---|---|---|---|",
                    *(_row(name, field) for name, field in fields(model)),
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def fields(model: type[Spec]) -> Iterator[tuple[str, FieldInfo]]:
    """The fields of a model that have a choice: the tag of a kind stands in its heading."""
    for name, field in model.model_fields.items():
        if not is_tag(field):
            yield name, field


def is_tag(field: FieldInfo) -> bool:
    """Whether a field only says of which kind its section is."""
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def models() -> list[type[Spec]]:
    """Every model of the two files, each once."""
    places: dict[type[Spec], str] = {}
    return [model for root in (Experiment, Task) for model, _ in _sections(root, places)]


def _sections(root: type[Spec], places: dict[type[Spec], str]) -> Iterator[tuple[type[Spec], str]]:
    """A model and all models within it that have no place yet, with their paths."""
    waiting = [(root, "")]
    while waiting:
        model, path = waiting.pop(0)
        if model in places:
            continue
        places[model] = path
        yield model, path
        inner = []
        for name, field in fields(model):
            named = f"{path}.{name}" if path else name
            named += ".NAME" if get_origin(field.annotation) is dict else ""
            inner += [(one, named) for one in specs_in(field.annotation)]
        waiting = inner + waiting


def _row(name: str, field: FieldInfo) -> str:
    what = field.description or ""
    if NOT_SEMANTIC in field.metadata:
        what += " *(not part of the identity)*"
    bounds = [
        f"{sign} {_of(one):g}"
        for one in field.metadata
        for kind, sign in _BOUNDS.items()
        if isinstance(one, kind)
    ]
    value = ", ".join([_words(field.annotation), *bounds])
    return (
        "| " + " | ".join(_cell(one) for one in (f"`{name}`", value, _default(field), what)) + " |"
    )


def _of(bound: Any) -> float:
    """The number of a bound, such as `Ge(ge=1)`."""
    return float(getattr(bound, type(bound).__name__.lower()))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return "none"
    if isinstance(value, Spec):
        given = value.model_dump(mode="json", exclude_defaults=True)
        return f"`{json.dumps(given)}`" if given else "its defaults"
    return f"`{json.dumps(value)}`"


def _words(kind: Any) -> str:
    """What a value may be, in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words(inner[0])
    if kind in _PLAIN:
        return _PLAIN[kind]
    if isinstance(kind, type) and issubclass(kind, Spec):
        return f"[{_tag(kind).replace('kind: ', '') or 'a section'}](#{_anchor(kind)})"
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in inner)
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"{len(inner)} values: {_words(inner[0])} each"
    if origin in (tuple, list):
        return f"a list: {_words(inner[0])} each"
    if origin is dict:
        return f"NAME: {_words(inner[1])}"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(one) for one in inner if one is not type(None)))
    return "any value"


def _tag(model: type[Spec]) -> str:
    """The kind of a section where a field chooses among several, such as "kind: pair"."""
    for name, field in model.model_fields.items():
        if is_tag(field):
            return f"`{name}: {get_args(field.annotation)[0]}`"
    return ""


def _anchor(model: type[Spec]) -> str:
    return f"field-{model.__module__}-{model.__name__}".replace(".", "-").lower()


def _prose(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def tables() -> str:
    """The page of every table's columns."""
    parts = [
        "# The columns of the tables",
        "A report writes its tables as CSV beside `report.html`. From Python they are Arrow tables "
        "([notebooks](../notebooks.md)). Percent, 0-100, for every noise level, accuracy and F1.",
    ]
    for table in TABLES:
        parts.append(f"## {table.title}\n\n{table.rows}")
        rows = [f"| `{name}` | {kind} | {_cell(what)} |" for name, kind, what in table.described()]
        parts.append("\n".join(["| column | type | what it is |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"

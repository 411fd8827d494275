"""A validation error of an experiment or task file, as one sentence with the nearest field."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from jobs.contract import Spec, specs_in
from jobs.validation import in_words, names_a_branch

_SHOWN = 80  # characters of a value


def explain(error: ValidationError, model: type[Spec]) -> str:
    """One sentence for the first mistake: field, value and remedy."""
    problems = _distinct(error.errors())
    first = problems[0]
    path = _field_path(model, first["loc"])
    field = ".".join(path) or "the file"
    kind, value = first["type"], first.get("input")
    if kind == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        remedy = (
            f"did you mean {near[0]}?"
            if near
            else f"remove it; known here: {', '.join(sorted(known))}"
        )
        sentence = f"unknown field {field} ({remedy})"
    elif kind == "missing":
        sentence = f"{field} is missing; give it a value"
    elif kind == "union_tag_not_found":
        sentence = f"{field}.{first['ctx']['discriminator'].strip(chr(39))} is missing; give it one"
    else:
        message = in_words(first)
        hidden = isinstance(value, (dict, Spec)) or path[-1:] == ["key_env"]  # perhaps a key
        given = "" if hidden else f" = {_shortened(value)}"
        sentence = f"{field}{given}: {message}"
    more = len(problems) - 1
    return sentence + (f" (and {more} more problem{'s' if more > 1 else ''})" if more else "")


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _distinct(problems: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """The problems without those that follow from others: a field that is missing because its name
    is mistyped, and a list that is too short because one of its members is wrong.
    """
    unknown = [one["loc"] for one in problems if one["type"] == "extra_forbidden"]

    def follows(one: ErrorDetails) -> bool:
        *parent, name = one["loc"] or ("",)
        if one["type"] == "missing":
            beside = [str(loc[-1]) for loc in unknown if list(loc[:-1]) == parent]
            return bool(difflib.get_close_matches(str(name), beside, n=1))
        within = (other["loc"][: len(one["loc"])] == one["loc"] for other in problems)
        return one["type"] == "too_short" and sum(within) > 1

    return [one for one in problems if not follows(one)]


def _field_path(model: type[Spec], location: tuple[int | str, ...]) -> list[str]:
    """The fields of an error's location, without pydantic's names for union branches."""
    candidates, path = [model], []
    for part in location:
        tags = {
            info.default
            for candidate in candidates
            for name, info in candidate.model_fields.items()
            if name in ("kind", "objective")
        }
        known = any(part in candidate.model_fields for candidate in candidates)
        if part in tags or (not known and names_a_branch(str(part))):
            continue
        path.append(str(part))
        inner = [
            spec
            for candidate in candidates
            if part in candidate.model_fields
            for spec in specs_in(candidate.model_fields[str(part)].annotation)
        ]
        candidates = inner or candidates
    return path


def _fields_at(model: type[Spec], path: list[str]) -> list[str]:
    """The field names of the model at a path of an experiment."""
    candidates = [model]
    for name in path:
        found: list[type[Spec]] = []
        for candidate in candidates:
            info = candidate.model_fields.get(name)
            if info is not None:
                found += specs_in(info.annotation)
            elif candidate.model_fields.get("objective") or candidate.model_fields.get("kind"):
                found.append(candidate)  # a discriminator's tag in the path, not a field
        candidates = found or candidates
    return sorted({name for candidate in candidates for name in candidate.model_fields})

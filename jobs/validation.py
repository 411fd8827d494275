"""What is wrong with a value of a file, in plain words and with the nearest name that is known.

Takes one error of pydantic's; gives a phrase that follows the field and its value. Our own messages
stay as they are. Pydantic's never reach a reader.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, get_args

from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ErrorType

_NUMBERS = "must be a number"
_WHOLE = "must be a whole number"
_TEXT = "must be text; put it in quotes"
_LIST = "must be a list, such as [a, b]"
_FIELDS = "must be fields with values, such as {kind: ...}"
_WORDS: Mapping[str, str] = {
    "missing": "is missing; give it a value",
    "extra_forbidden": "is not known here; remove it",
    "none_required": "takes no value; remove it",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "float_parsing": _NUMBERS,
    "float_type": _NUMBERS,
    "finite_number": "must be a finite number",
    "int_parsing": _WHOLE,
    "int_parsing_size": "is too large a number",
    "int_type": _WHOLE,
    "int_from_float": _WHOLE,
    "string_type": _TEXT,
    "string_sub_type": _TEXT,
    "string_unicode": "must be text in UTF-8",
    "bytes_type": _TEXT,
    "list_type": _LIST,
    "tuple_type": _LIST,
    "set_type": _LIST,
    "frozen_set_type": _LIST,
    "iterable_type": _LIST,
    "dict_type": _FIELDS,
    "mapping_type": _FIELDS,
    "model_type": _FIELDS,
    "model_attributes_type": _FIELDS,
    "dataclass_type": _FIELDS,
    "json_invalid": "is no valid JSON",
    "json_type": "must be JSON text",
    "invalid_key": "has a key that is no text; put it in quotes",
    "recursion_loop": "contains itself",
    "date_from_datetime_parsing": "must be a date, such as 2024-01-31",
    "datetime_parsing": "must be a time, such as 2024-01-31T12:00",
}
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
}
_LENGTHS = {
    "too_short": ("at least", "min_length", "entry", "entries"),
    "too_long": ("at most", "max_length", "entry", "entries"),
    "string_too_short": ("at least", "min_length", "character", "characters"),
    "string_too_long": ("at most", "max_length", "character", "characters"),
}
_FORMS = {
    r"^[0-9a-f]{40}$": "must be a commit: all 40 digits and letters from a to f",
    r"^[0-9a-f]{64}$": "must be a sha256: all 64 digits and letters from a to f",
    r"^[A-Z_][A-Z0-9_]*$": "must be the name of an environment variable, such as MY_KEY",
}
_FIELD = re.compile(r"`(\w+)` must be ")
_QUOTED = re.compile(r"'([^']*)'")


def in_words(problem: ErrorDetails) -> str:
    """The phrase, such as "must be a whole number"."""
    kind, limits = problem["type"], problem.get("ctx") or {}
    if kind in ("value_error", "assertion_error"):
        message = str(limits.get("error", problem["msg"]))
        return message if message[:2].isupper() else message[:1].lower() + message[1:]  # "OOD"
    if kind not in _theirs():
        return _own(str(problem["msg"]), problem.get("input"))
    if kind in _WORDS:
        return _WORDS[kind]
    if kind in _BOUNDS:
        word, limit = _BOUNDS[kind]
        return f"must be {word} {_number(limits.get(limit))}"
    if kind in _LENGTHS:
        word, limit, one, many = _LENGTHS[kind]
        count = limits.get(limit, 1)
        return f"must have {word} {count} {one if count == 1 else many}"
    if kind in ("literal_error", "enum"):
        return one_of(problem.get("input"), _QUOTED.findall(str(limits.get("expected", ""))))
    if kind == "union_tag_invalid":
        known = _QUOTED.findall(str(limits.get("expected_tags", "")))
        return f"the {_discriminator(limits)} {one_of(limits.get('tag'), known)}"
    if kind == "union_tag_not_found":
        return f"the {_discriminator(limits)} is missing; give it one"
    if kind == "string_pattern_mismatch":
        form = str(limits.get("pattern"))
        return _FORMS.get(form, f"does not have the form {form}; correct it")
    return "is not a value that this field takes; correct it"


def _own(message: str, given: object) -> str:
    """A message of ours, such as "`kind` must be a or b", with the name that is nearest."""
    field = _FIELD.match(message)
    if field is None or not isinstance(given, Mapping) or field[1] not in given:
        return message
    known = re.findall(r"[\w.-]+", message[field.end() :].replace(" or ", ", "))
    near = difflib.get_close_matches(str(given[field[1]]), known, n=1)
    return message + (f"; did you mean {near[0]}?" if near else "")


@cache
def _theirs() -> frozenset[str]:
    """The kinds of error that are pydantic's; others are our own, with our own message."""
    return frozenset(get_args(ErrorType))


def one_of(given: object, known: list[str]) -> str:
    """That a value is none of the known ones, with the nearest of them first."""
    near = difflib.get_close_matches(str(given), known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"must be one of {', '.join(known)}{hint}" if known else "is not known"


def _discriminator(limits: Mapping[str, Any]) -> str:
    return str(limits.get("discriminator", "kind")).strip("'")


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


_BRANCHES = ("function-", "tagged", "constrained-", "lax-or-strict", "nullable", "json-or-python")
_TYPES = {"float", "int", "str", "bool", "list", "dict", "none", "tuple", "literal"}


def names_a_branch(part: str) -> bool:
    """Whether a part of a location is pydantic's name for a branch of a union, not a field."""
    return part.startswith(_BRANCHES) or part.partition("[")[0] in _TYPES


def first_names(names: Sequence[str]) -> str:
    """The first five names, and how many there are."""
    first = ", ".join(names[:5])
    return first if len(names) <= 5 else f"{first}, ... ({len(names):,} in all)"

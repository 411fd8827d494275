"""Files of class names: lines or JSON, by folder, WordNet id or number.

Accepted, one class each: lines `n01440764 tench, Tinca tinca` (ImageNet's LOC_synset_mapping.txt);
lines `1 n02119789 kit fox` (number, id, name; ILSVRC's devkit has these numbers in its ground
truth); JSON `{"n01440764": "tench"}`, `{"1": "n02119789"}` or `{"0": ["n01440764", "tench"]}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.contract import StageError
from jobs.corpus.readers.source import text

_NUMBER = re.compile("[0-9]{1,18}")


@dataclass(frozen=True)
class Entry:
    """One class in a names file."""

    id: str  # folder or WordNet id
    name: str  # for people
    number: int | None  # in the file's own numbering, if it has one


def entries(path: str) -> list[Entry]:
    """Every class in a names file. Raises StageError for a line or value of another form."""
    content = text(path)
    if content.lstrip().startswith("{"):
        try:
            # Pairs, not a mapping, which would keep only the last of two equal keys.
            value = json.loads(content, object_pairs_hook=tuple)
        except (json.JSONDecodeError, RecursionError) as error:
            raise StageError(f"{path} is not valid JSON ({error}); correct it") from None
        return [_parse_value(path, key, named) for key, named in value]
    lines = [line.strip() for line in content.splitlines()]
    return [_parse_line(path, number, line) for number, line in enumerate(lines, 1) if line]


def class_names(path: str) -> dict[str, str]:
    """Class id -> name. Raises StageError for an id with two names."""
    found: dict[str, str] = {}
    for entry in entries(path):
        if found.setdefault(entry.id, entry.name) != entry.name:
            raise StageError(
                f"{path} gives {entry.id!r} two names, {found[entry.id]!r} and {entry.name!r}; "
                f"remove one"
            )
    return found


def refuse_nameless(ids: Sequence[str], named: Mapping[str, str], path: str) -> None:
    """Raise StageError when the names file names some of the classes, or none."""
    nameless = [identity for identity in ids if identity not in named]
    if nameless:
        first = next(iter(named), None)
        hint = ""
        if _NUMBER.fullmatch(nameless[0]):  # which begins a line as a number, not as an id
            line, pair = f"{nameless[0]} {nameless[0]} NAME", f'["{nameless[0]}", "NAME"]'
            hint = f"; the class {nameless[0]} has the line `{line}`, in JSON the value `{pair}`"
        raise StageError(
            f"{path} has no name for {len(nameless)} of {len(ids)} classes (the first: "
            f"{nameless[0]!r}; the file begins with {first!r}); complete it, or leave it out{hint}"
        )


def _parse_value(path: str, key: str, value: object) -> Entry:
    number = int(key) if _NUMBER.fullmatch(key) else None
    if isinstance(value, str) and value.strip():
        return Entry(value, value, number) if number is not None else Entry(key, value, None)
    if (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(v, str) and v.strip() for v in value)
    ):
        return Entry(value[0], value[1], number)
    raise StageError(f"{path}: {key!r} should have a name or [id, name], not {value!r}; correct it")


def _parse_line(path: str, number: int, line: str) -> Entry:
    words = line.split(maxsplit=1)
    if _NUMBER.fullmatch(words[0]) and len(words) == 2:
        identity, _, name = words[1].partition(" ")
        return Entry(identity, name.strip() or identity, int(words[0]))
    if len(words) == 2:
        return Entry(words[0], words[1].strip(), None)
    raise StageError(f"{path}: line {number} should read `id name`, not {line!r}; correct it")

"""Files that say what classes are called: lines or JSON, by folder, WordNet id or number.

Accepted, one class each: lines `n01440764 tench, Tinca tinca` (ImageNet's LOC_synset_mapping.txt);
lines `1 n02119789 kit fox` (number, id, name: what ILSVRC's devkit numbers its ground truth by);
JSON `{"n01440764": "tench"}`, `{"1": "n02119789"}` or `{"0": ["n01440764", "tench"]}`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from jobs.contract import StageError
from jobs.corpus.readers.source import text


@dataclass(frozen=True)
class Entry:
    """What a file says of one class."""

    id: str  # folder or WordNet id
    name: str  # for people
    number: int | None  # the file's own numbering, where it has one


def entries(path: str) -> list[Entry]:
    """Every class of a names file. Raises StageError when a line or value cannot be understood."""
    content = text(path)
    if content.lstrip().startswith("{"):
        try:
            value = json.loads(content)
        except json.JSONDecodeError as error:
            raise StageError(f"{path} is not valid JSON ({error}); correct it") from None
        return [_from_json(path, key, said) for key, said in value.items()]
    lines = [line.strip() for line in content.splitlines()]
    return [_from_line(path, number, line) for number, line in enumerate(lines, 1) if line]


def class_names(path: str) -> dict[str, str]:
    """The names by id."""
    return {entry.id: entry.name for entry in entries(path)}


def _from_json(path: str, key: str, said: object) -> Entry:
    number = int(key) if key.isdigit() else None
    if isinstance(said, str):
        return Entry(said, said, number) if number is not None else Entry(key, said, None)
    if isinstance(said, list) and len(said) == 2 and all(isinstance(s, str) for s in said):
        return Entry(said[0], said[1], number)
    raise StageError(f"{path}: {key!r} should have a name or [id, name], not {said!r}; correct it")


def _from_line(path: str, number: int, line: str) -> Entry:
    words = line.split(maxsplit=1)
    if words[0].isdigit() and len(words) == 2:
        identity, _, name = words[1].partition(" ")
        return Entry(identity, name.strip() or identity, int(words[0]))
    if len(words) == 2:
        return Entry(words[0], words[1].strip(), None)
    raise StageError(f"{path}: line {number} should read `id name`, not {line!r}; correct it")

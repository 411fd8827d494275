"""Reads the small JSON files that stages and drivers write and read again: their records.

Each record has a type: a dataclass, a pydantic model or a plain type such as `dict[str, int]`.
`read` gives a value of this type or raises one sentence with the file's address and what to do;
`find` gives None instead, for what can be made again. A record is never half right: another type
of a field, a missing field, a repeated key and NaN are faults. Nothing here writes
(`Folder.write_json` does), and nothing here knows what a record is for.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from jobs.contract import StageError
from jobs.storage.folder import Folder
from jobs.validation import in_words

T = TypeVar("T")


class RecordError(StageError):
    """A file that the tool wrote is not what it wrote. One sentence with the way out."""


def read(folder: Folder, name: str, kind: type[T], remedy: str) -> T:
    """The record of a file, of type `kind`.

    Raises FileNotFoundError when the file does not exist, and RecordError when it is broken: the
    message ends with `remedy`, which says what to do. Other errors of the filesystem pass.
    """
    where = (folder / name).uri
    try:
        data = folder.read_bytes(name)
    except IsADirectoryError:
        raise RecordError(f"{where} cannot be used (it is a folder); {remedy}") from None
    try:
        return parse(data, kind)
    except ValueError as error:
        raise RecordError(f"{where} cannot be used ({error}); {remedy}") from None


def check(value: Any, kind: type[T], folder: Folder, name: str, remedy: str) -> T:
    """Of a record that was read as plain values and then changed: the same, as type `kind`."""
    try:
        return parse(json.dumps(value), kind)
    except ValueError as error:
        raise RecordError(f"{(folder / name).uri} cannot be used ({error}); {remedy}") from None


def find(folder: Folder, name: str, kind: type[T]) -> T | None:
    """The same record; None when the file does not exist or is broken."""
    try:
        return read(folder, name, kind, "")
    except (FileNotFoundError, NotADirectoryError, RecordError):
        return None


def parse(data: bytes | str, kind: type[T]) -> T:
    """The record of a JSON text. Raises ValueError, which says what is wrong in a few words."""
    if not data:
        raise ValueError("it is empty")
    try:
        found: T = _adapter(cast(Hashable, kind)).validate_json(data, strict=True)
        # Pydantic takes the last of repeated keys, and NaN where any value may stand.
        json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise ValueError(f"{field}: {in_words(first)}".removeprefix(": ")) from None
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    return found


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))


def _unique(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it has the value {name}, which is not a finite number")

"""Reads the parts of an address: names, and numbers with a name.

Takes one part as text, gives its value. Which parts an address has is in `address.py`.
"""

from __future__ import annotations

import re

from jobs.contract import SLUG

_SLUG = re.compile(SLUG)
_NUMBER = re.compile(r"[0-9.]+(e[+-]?[0-9]+)?", re.ASCII)


def slug(part: str) -> str:
    """A name. Raises ValueError for another text, as all functions here."""
    if not _SLUG.fullmatch(part):
        raise ValueError(f"{part!r} is no name")
    return part


def is_named(name: str, part: str) -> bool:
    """Whether the part is a number of that name: `name=NUMBER`."""
    return part.startswith(f"{name}=")


def number(name: str, part: str) -> float:
    """The number of `name=NUMBER`."""
    return float(_value(name, part))


def whole(name: str, part: str) -> int:
    """The whole number of `name=NUMBER`."""
    return int(_value(name, part))


def _value(name: str, part: str) -> str:
    value = part.partition("=")[2]
    if not is_named(name, part):
        raise ValueError(f"{part!r} should read {name}=NUMBER")
    if not _NUMBER.fullmatch(value):  # float() accepts more: nan, 1_0, spaces
        raise ValueError(f"{value!r} is no number")
    return value

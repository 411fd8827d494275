"""Names that a reader cannot tell apart: they differ in case, blanks or invisible marks alone.

Takes names as text; gives the first two that look alike. Decides nothing about them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

UNSEEN = "blanks, invisible characters or letter case"
"""What names that look alike differ in, for messages."""


def first_alike(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two different names that look alike; None if there are none."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(folded(name), name)
        if other != name:
            return other, name
    return None


def alike(name: str, known: Iterable[str]) -> str | None:
    """The first of the known names that looks like this one and is another; None without one."""
    wanted = folded(name)
    return next((other for other in known if other != name and folded(other) == wanted), None)


def folded(name: str) -> str:
    """A name without what a reader does not see: case, blanks, marks such as U+FEFF and NUL."""
    words = unicodedata.normalize("NFKC", name).casefold().split()
    invisible = ("Cc", "Cf")
    return " ".join(
        "".join(c for c in word if unicodedata.category(c) not in invisible) for word in words
    ).strip()

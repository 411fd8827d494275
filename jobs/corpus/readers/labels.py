"""Labels: what a label's text or value in a source means.

Takes the values of label columns, members and fields, and lists of class names; gives class numbers
and names. A number means the same in CSV, JSON and Parquet (`3`, `3.0`). A name is never guessed:
what may mean two classes is refused, and what means none is UNKNOWN, with words that say why. Reads
no files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jobs.alike import UNSEEN, first_alike, folded
from jobs.contract import StageError
from jobs.corpus.readers.rows import UNKNOWN

_WHOLE = re.compile(r"\d{1,18}(\.0*)?")  # more digits may not fit an int64
_NO_NAME = re.compile(r"[+-]?([0-9]+(\.0*)?|nan|inf|infinity)", re.IGNORECASE)
_POINT_ZERO = re.compile(r"(-?\d+)\.0*")
_SPARSE = 1_000  # numbers without a row that may lie below a label, whatever the number of classes


def whole_number(text: str) -> int | None:
    """The number that a text gives in decimal digits, also as `3.0`; None for any other text."""
    found = _WHOLE.fullmatch(text.strip())
    return int(found.group().partition(".")[0]) if found and found.group().isascii() else None


def without_point_zero(text: str) -> str:
    """`3` for `3.0`, as some tools write whole numbers; any other text as it is."""
    found = _POINT_ZERO.fullmatch(text)
    return found.group(1) if found else text


@dataclass(frozen=True)
class Naming:
    """How the labels of a source name its classes: by name, or by number from 0."""

    classes: tuple[str, ...]  # in label order

    @cached_property
    def _by_name(self) -> Mapping[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    @cached_property
    def _by_folded(self) -> Mapping[str, str]:
        return {folded(name): name for name in self.classes}

    @cached_property
    def _numbers_are_names(self) -> bool:
        """Whether a number is the name of a class, and of another than the one it counts."""
        read = [whole_number(name) for name in self.classes]
        return any(found not in (None, number) for number, found in enumerate(read))

    def of_text(self, text: str) -> int:
        """The class that a text names; UNKNOWN if it is neither a name nor a number from 0."""
        found = self._by_name.get(text)
        if found is not None:
            return found
        number = whole_number(text)
        if number is None:
            return UNKNOWN
        found = self._by_name.get(str(number))  # `3.0` and the class `3`
        if found is not None:
            return found
        return UNKNOWN if self._numbers_are_names else number

    def of_value(self, value: Any) -> int:
        """The class that a JSON value names. Only text and whole numbers are labels."""
        text = label_text(value)
        return UNKNOWN if text is None else self.of_text(text)

    def why_unknown(self, value: Any) -> str:
        """Words on a label that is no class, for a message."""
        shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}..."
        near = self._by_folded.get(folded(value)) if isinstance(value, str) else None
        hint = f"; is it the class {near!r}?" if near is not None and near != value else ""
        return f"the label {shown} is none of the {len(self.classes)} classes{hint}"

    def refuse_numbers_for_others(self, where: str) -> None:
        """Raise StageError when each number is the name of a class, and some of another one."""
        read = [whole_number(name) for name in self.classes]
        if set(read) != set(range(len(read))) or read == list(range(len(read))):
            return
        first = next(number for number, found in enumerate(read) if found != number)
        raise StageError(
            f"{where}: the class in position {first} (from 0) is called {self.classes[first]!r}, "
            f"so a label that is a number may mean a name or a position; name the classes in words"
        )


def label_text(value: Any) -> str | None:
    """A JSON value as a label's text: a text, or a whole number; None for any other value."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else None
    text = str(value)
    return text if is_unicode(text) else None


def is_unicode(text: str) -> bool:
    """Whether a text can be stored: JSON may spell half a character (`\\ud800`)."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def scanned_numbers(texts: Iterable[str]) -> set[int] | None:
    """The whole numbers of a column of label texts if its labels are numbers; None if words.

    Beside such numbers `nan`, `inf`, `-1` and numbers of more than 18 digits are labels of no
    class. A fraction (`1.5`) makes all of them words.
    """
    named = {text.strip() for text in texts if text.strip()}
    whole = {number for text in named if (number := whole_number(text)) is not None}
    return whole if whole and all(map(_NO_NAME.fullmatch, named)) else None


def scanned_names(texts: Iterable[str], where: str, field: str = "classes") -> list[str]:
    """The classes of a column of label texts: its distinct values, sorted; empty ones left out.

    Where labels are numbers, `3.0` is the class `3`, and `nan` is none. Raises StageError for names
    that differ in blanks, invisible characters or letter case alone; `field` can list names.
    """
    names = {text for text in texts if text.strip()}
    numbers = scanned_numbers(names)
    if numbers is not None:
        stripped = {without_point_zero(text.strip()) for text in names}
        names = {text for text in stripped if whole_number(text) is not None}
        _refuse_two_spellings(sorted(names), where, field)
    refuse_alike(sorted(names), where, f"correct the labels, or list the names in `{field}`")
    return sorted(names)


def _refuse_two_spellings(numbers: Sequence[str], where: str, field: str) -> None:
    """Raise StageError for one number that is written in two ways, as `01` and `1`."""
    first: dict[int | None, str] = {}
    for text in numbers:
        other = first.setdefault(whole_number(text), text)
        if other != text:
            raise StageError(
                f"{where}: the labels {other!r} and {text!r} are one number; write it in one way, "
                f"or list the names in `{field}`"
            )


def refuse_alike(names: Sequence[str], where: str, remedy: str, what: str = "classes") -> None:
    """Raise StageError for two names that look alike (`jobs.alike`)."""
    found = first_alike(names)
    if found is not None:
        raise StageError(
            f"{where}: the {what} {found[0]!r} and {found[1]!r} differ only in {UNSEEN}; {remedy}"
        )


def dense_names(numbers: Iterable[int], where: str) -> list[str]:
    """The classes of a column of whole numbers: 0, 1, ... up to the largest, as text.

    Raises StageError for a negative number, and for one far above the number of classes.
    """
    found = sorted(set(numbers))
    if not found:
        return []
    if found[0] < 0:
        raise StageError(
            f"{where} holds the label {found[0]}; labels begin at 0, so correct it, or leave such "
            f"rows out of the source"
        )
    if found[-1] > _SPARSE + 2 * len(found):
        raise StageError(
            f"{where} holds the label {found[-1]:,}, but only {len(found):,} different labels; "
            f"correct it, or give names as labels"
        )
    return [str(number) for number in range(found[-1] + 1)]

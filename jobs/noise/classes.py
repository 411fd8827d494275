"""A corpus's classes, and the ways to name one in experiment files and in the files of a noise.

A class is named by its display name, its id in the source (a folder, a WordNet id) or its number.
A name takes precedence over a number; an ambiguous name is refused. Reads no files.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from jobs.contract import StageError
from jobs.noise.spec import ClassName
from jobs.validation import first_names


@dataclass(frozen=True)
class Classes:
    """The classes of a corpus, in label order."""

    names: tuple[str, ...]  # for people; two classes may share one
    ids: tuple[str, ...] = ()  # in the source's terms; may equal the names

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _numbers_by_name(self) -> Mapping[ClassName, frozenset[int]]:
        """The classes of each name and id, also under the number that a name or id reads as."""
        found: dict[ClassName, set[int]] = defaultdict(set)
        for texts in (self.names, self.ids):
            for number, text in enumerate(texts):
                found[text].add(number)
                found[_parse_number(text)].add(number)
        return {name: frozenset(numbers) for name, numbers in found.items()}

    def numbers(self, named: Sequence[ClassName], where: str) -> tuple[int, ...]:
        """The number of each class: texts are names or ids, integers are numbers.

        Raises StageError for an unknown class and for a name that two classes share; the message
        begins with `where`, the file or field of the names.
        """
        return tuple(
            self._number_of_name(name, where)
            if isinstance(name, str)
            else self._number_of_no_name(name, where)
            for name in named
        )

    def numbers_of(self, texts: Sequence[str], where: str) -> tuple[int, ...]:
        """The number of each class named in a file, where numbers are texts too.

        A text is a name or id if it equals one, also as a number ("1", "01", "1.0"); else it is a
        number. Raises StageError as `numbers` does, and for ambiguous files: some texts can only be
        numbers, and others are names that would be another class as numbers.
        """
        parsed = [text if text in self._numbers_by_name else _parse_number(text) for text in texts]
        found = tuple(
            self._number_of_name(name, where)
            if name in self._numbers_by_name
            else self._check_number(name, where)
            for name in parsed
        )
        numbers = [text for text, name in zip(texts, parsed, strict=True) if self._is_number(name)]
        names = [
            text
            for text, number in zip(texts, found, strict=True)
            if self._is_other_class(_parse_number(text), number)
        ]
        if numbers and names:
            raise StageError(
                f"{where} names one class by its number ({numbers[0]!r}) and another by a name "
                f"that could also be a number ({names[0]!r}); use names for all"
            )
        return found

    def _is_number(self, name: ClassName) -> bool:
        return isinstance(name, int) and name not in self._numbers_by_name

    def _is_other_class(self, name: ClassName, number: int) -> bool:
        return isinstance(name, int) and name < len(self) and name != number

    def _number_of_name(self, name: ClassName, where: str) -> int:
        found = sorted(self._numbers_by_name.get(name, ()))
        if not found:
            raise self._unknown_class(name, where)
        if len(found) > 1:
            first, second = (self._describe(number) for number in found[:2])
            raise StageError(
                f"{where} names a class {name!r}, which may be {first} or {second}; "
                f"give its id, or else its number"
            )
        return found[0]

    def _number_of_no_name(self, number: int, where: str) -> int:
        """The number itself; StageError when it is also the name of another class."""
        others = self._numbers_by_name.get(number, frozenset()) - {number}
        if others:
            other = min(others)
            raise StageError(
                f"{where} names {number}, which may be the class called {self.names[other]!r} or "
                f"class {number}; give the name, in quotes"
            )
        return self._check_number(number, where)

    def _check_number(self, number: ClassName, where: str) -> int:
        if not isinstance(number, int) or not 0 <= number < len(self):
            raise self._unknown_class(number, where)
        return number

    def _describe(self, number: int) -> str:
        return f"class {number}" + (f" (id {self.ids[number]!r})" if self.ids else "")

    def _unknown_class(self, name: ClassName, where: str) -> StageError:
        near = difflib.get_close_matches(str(name), (*self.names, *self.ids), n=1)
        known = first_names(self.names)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {known}: name one of them"
        return StageError(f"{where} names a class {name!r} that the corpus does not have; {hint}")


_WHOLE = re.compile("[0-9]{1,18}")


def _parse_number(text: str) -> ClassName:
    """The whole number that a text reads as, also with decimals of zeros; else the text."""
    whole, _, decimals = text.strip().partition(".")
    return int(whole) if _WHOLE.fullmatch(whole) and not decimals.strip("0") else text

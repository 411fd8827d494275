"""A corpus's classes, as experiment files and the files of a noise name them.

A class is named by its display name, by its id in the source (a folder, a WordNet id) or by its
number. Names stand before numbers, and what could be two classes is refused. Reads nothing.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from jobs.contract import StageError
from jobs.noise.spec import ClassName


@dataclass(frozen=True)
class Classes:
    """The classes of a corpus, in label order."""

    names: tuple[str, ...]  # for people; two classes may share one
    ids: tuple[str, ...] = ()  # as the source names them; may be the names again

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _called(self) -> Mapping[ClassName, frozenset[int]]:
        """The classes that have a name or id, and those that have one that reads as a number."""
        called: dict[ClassName, set[int]] = defaultdict(set)
        for texts in (self.names, self.ids):
            for number, text in enumerate(texts):
                called[text].add(number)
                called[_read(text)].add(number)
        return {name: frozenset(numbers) for name, numbers in called.items()}

    def numbers(self, named: Sequence[ClassName], where: str) -> tuple[int, ...]:
        """The number of each class: texts are names or ids, integers are numbers.

        Raises StageError for a class that is not there, and for a name that two classes have;
        `where` says in what file or field it stands.
        """
        return tuple(
            self._named(name, where) if isinstance(name, str) else self._numbered(name, where)
            for name in named
        )

    def numbers_of(self, texts: Sequence[str], where: str) -> tuple[int, ...]:
        """The number of each class by the texts of a file, where numbers are texts too.

        A text is a name or an id, also if it differs from it only as numbers do ("1", "01", "1.0");
        else it is a number. Raises StageError as `numbers` does, and where some texts can only be
        numbers while others would be another class if they were.
        """
        said = [text if text in self._called else _read(text) for text in texts]
        found = tuple(
            self._named(name, where) if name in self._called else self._numbered(name, where)
            for name in said
        )
        numbers = [text for text, name in zip(texts, said, strict=True) if self._is_number(name)]
        names = [
            text
            for text, number in zip(texts, found, strict=True)
            if self._is_another(_read(text), number)
        ]
        if numbers and names:
            raise StageError(
                f"{where} names a class by its number ({numbers[0]!r}) and another by a name that "
                f"might be a number too ({names[0]!r}); name all by their names"
            )
        return found

    def _is_number(self, name: ClassName) -> bool:
        return isinstance(name, int) and name not in self._called

    def _is_another(self, name: ClassName, number: int) -> bool:
        return isinstance(name, int) and name < len(self) and name != number

    def _named(self, name: ClassName, where: str) -> int:
        found = sorted(self._called.get(name, ()))
        if not found:
            raise self._unknown(name, where)
        if len(found) > 1:
            first, second = (self._shown(number) for number in found[:2])
            raise StageError(
                f"{where} names a class {name!r}, which may be {first} or {second}; "
                f"give its id, or else its number"
            )
        return found[0]

    def _numbered(self, number: ClassName, where: str) -> int:
        if not isinstance(number, int) or not 0 <= number < len(self):
            raise self._unknown(number, where)
        return number

    def _shown(self, number: int) -> str:
        return f"class {number}" + (f" (id {self.ids[number]!r})" if self.ids else "")

    def _unknown(self, name: ClassName, where: str) -> StageError:
        near = difflib.get_close_matches(str(name), (*self.names, *self.ids), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {len(self)}"
        return StageError(f"{where} names a class {name!r} that the corpus does not have; {hint}")


def _read(text: str) -> ClassName:
    """The number that a text is, perhaps with the decimals of a column with gaps; else the text."""
    whole, _, decimals = text.strip().partition(".")
    return int(whole) if whole.isdecimal() and not decimals.strip("0") else text

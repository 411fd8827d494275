"""The report's HTML: tables, and the templates of the page.

Takes plain text and numbers, gives markup that is safe to put into a page: Jinja2 escapes every
text that a template holds. The templates, the style and the script are files in `templates/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

NOTHING = Markup()
"""The markup of a table or section without content."""


@dataclass(frozen=True)
class Cell:
    """A table's cell: its text, the faint lines under it, its sort key and its mark."""

    text: str
    under: tuple[str, ...] = ()
    key: float | None = None  # sorts by this number; by its text when None
    mark: str = ""  # a class of style.css; "gap": something is missing here
    links: tuple[tuple[str, str], ...] = ()  # text and address of each, after the text


@dataclass(frozen=True)
class Table:
    """A table that stands on the page and in the texts: its values, before any markup."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    caption: str
    numbers: int = 0  # the last columns, which hold numbers

    def html(self) -> Markup:
        """The table on the page."""
        return table(self.heads, self.rows, caption=self.caption, numbers=self.numbers)

    def texts(self) -> list[list[str]]:
        """The rows as plain text: what stands under a value follows it."""
        return [
            [one if isinstance(one, str) else " ".join((one.text, *one.under)) for one in row]
            for row in self.rows
        ]


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[Cell | str]],
    *,
    caption: str,
    numbers: int = 0,
    filtered: bool = False,
) -> Markup:
    """A table whose columns sort by a click on their heading.

    The last `numbers` columns are set flush right, as numbers are. The rows of a `filtered` table
    can be chosen by their words and by columns of few values.
    """
    cells = [[Cell(one) if isinstance(one, str) else one for one in row] for row in rows]
    return render(
        "table.html",
        heads=heads,
        rows=cells,
        caption=caption,
        first_number=len(heads) - numbers,
        filtered=filtered,
    )


def render(template: str, **values: Any) -> Markup:
    """A file of `templates/` with these values; text is escaped, markup stays as it is."""
    return Markup(_environment().get_template(template).render(values))


def read(name: str) -> str:
    """The text of a file of `templates/`."""
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(read),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

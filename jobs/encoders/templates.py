"""Templates: sentences that name a class, for zero-shot classification."""

from __future__ import annotations

from string import Formatter
from typing import Annotated

from pydantic import AfterValidator


def _check_template(template: str) -> str:
    try:
        holes = [tuple(hole) for _, *hole in Formatter().parse(template) if hole[0] is not None]
    except ValueError:
        holes = []
    if holes != [("", "", None)]:
        raise ValueError(
            "a template needs one {} for the class's name, and no other braces unless doubled"
        )
    return template


Template = Annotated[str, AfterValidator(_check_template)]
"""A sentence with one {} for the class's name, such as `a photo of a {}.`"""

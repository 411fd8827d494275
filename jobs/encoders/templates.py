"""Templates: the sentences that name a class, for zero-shot classification."""

from __future__ import annotations

from string import Formatter
from typing import Annotated

from pydantic import AfterValidator


def _names_a_class(template: str) -> str:
    try:
        holes = [tuple(hole) for _, *hole in Formatter().parse(template) if hole[0] is not None]
    except ValueError:
        holes = []
    if holes != [("", "", None)]:
        raise ValueError(
            "a template has {} once, where a class's name stands, and no other braces but doubled"
        )
    return template


Template = Annotated[str, AfterValidator(_names_a_class)]
"""What is said of a class, for zero-shot classification: `a photo of a {}.`"""

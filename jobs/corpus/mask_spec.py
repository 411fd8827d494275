"""The settings of masks in a reader: where they are, and what their numbers mean.

A mask is a PNG as large as its image; the number of a pixel is its class. Knows settings alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from jobs.contract import SILENT, Spec

Column = Annotated[str, Field(min_length=1)]

MaskColumn = Annotated[
    Column | None,
    SILENT,
    Field(description="PNGs of class numbers (in a table: their paths); needs `classes`"),
]

_MOST_CLASSES = 255  # 255 of 256 numbers are left for classes
_MOST_NUMBER = 65_535

Number = Annotated[int, Field(ge=0, le=_MOST_NUMBER)]


class MaskFields(Spec):
    """What the numbers of masks mean. By default class c is the number c, and 255 is no class."""

    first_class: Annotated[Number, SILENT] = Field(
        0, description="of masks: the number of the first class; the others follow"
    )
    ignored: Annotated[tuple[Number, ...], SILENT] = Field(
        (255,), description="of masks: the numbers of pixels that count for nothing"
    )


def check_masks(
    fields: MaskFields, mask: str | None, label: str | None, classes: Sequence[str]
) -> None:
    """Raise ValueError for masks whose numbers have no meaning, or two."""
    if mask is None:
        for name, field in MaskFields.model_fields.items():
            if getattr(fields, name) != field.default:
                raise ValueError(f"{name} is about masks; give `mask` as well, or leave it out")
        return
    if label is not None:
        raise ValueError(
            "both label and mask: a corpus has one class for each image or one for each pixel; "
            "make two corpora of this source"
        )
    if not classes:
        raise ValueError("masks hold numbers alone: give `classes`, names in their order")
    if len(classes) > _MOST_CLASSES:
        raise ValueError(f"{len(classes)} classes; masks can have {_MOST_CLASSES} at most")
    both = [n for n in fields.ignored if 0 <= n - fields.first_class < len(classes)]
    if both:
        raise ValueError(
            f"the number {both[0]} is ignored and is also a class "
            f"({classes[both[0] - fields.first_class]!r}); correct ignored, first_class or classes"
        )

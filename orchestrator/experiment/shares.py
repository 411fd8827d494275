"""Percentages that look like shares: is 0.05 five percent, or a twentieth of one?

Noise levels, downstream label noise and fractions are percentages. Where all of a list lie below 1
(fractions: at most 1), the author may have meant shares of 1, and results would be of a hundredth
of it. So such a list is refused with a question, and a value that is meant has its unit: `0.05%`.
Takes the raw fields of an experiment file and puts plain numbers into them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.errors import UserError

FIELDS: Mapping[tuple[str, str], bool] = {
    ("noise", "levels"): False,
    ("tuning", "label_noise"): False,
    ("tuning", "fractions"): True,
}
"""The lists of percentages, and whether 1 may be meant as the whole."""


def resolve(raw: dict[str, Any], label: str, *, asks: bool = True) -> None:
    """Replace texts such as `0.05%` by numbers. Raises UserError for values that look like shares.

    `asks`: not of a file that a sweep wrote, perhaps before these had their unit.
    Values of another type are left to the validation of the whole file.
    """
    for (section, field), whole in FIELDS.items():
        values = _found(raw, section, field)
        if values is None:
            continue
        suspects = [v for v in values if _is_number(v) and _looks_like_share(v, values, whole)]
        if suspects and asks:
            raise UserError(f"{label}: {section}.{field}: {_question(suspects[0])}")
        raw[section][field] = [_number(value) for value in values]


def as_percent(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of an experiment, with a % after every value that would be asked about."""
    for (section, field), whole in FIELDS.items():
        values = _found(fields, section, field)
        if values is not None:
            fields[section][field] = [
                f"{v!r}%" if _is_number(v) and _looks_like_share(v, values, whole) else v
                for v in values
            ]
    return fields


def _found(raw: Mapping[str, Any], section: str, field: str) -> Sequence[Any] | None:
    inner = raw.get(section)
    values = inner.get(field) if isinstance(inner, dict) else None
    return values if isinstance(values, (list, tuple)) else None


def _looks_like_share(value: float, values: Sequence[Any], whole: bool) -> bool:
    """Whether a value lies between 0 and 1, in a list without anything above."""
    above: Callable[[float], bool] = (lambda v: v > 1) if whole else (lambda v: v >= 1)
    return 0 < value < 1 and not any(above(v) for v in values if _is_number(v))


def _question(value: float) -> str:
    return (
        f"is {value:g} percent meant, or a share of 1? These are percentages: write "
        f"{100 * value:g} for {100 * value:g} %, or {value:g}% if {value:g} percent is meant"
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any) -> Any:
    if not isinstance(value, str) or not value.rstrip().endswith("%"):
        return value
    try:
        return float(value.rstrip().removesuffix("%"))
    except ValueError:
        return value

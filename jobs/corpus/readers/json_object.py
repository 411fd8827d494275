"""One JSON object of a source, as a line or as a member of a tar.

Takes its text or bytes; gives its fields, or why it has none. A field that is given twice has no
value that anybody meant, so an object in which a named field is repeated is broken. Opens no file.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any


def parse_object(
    data: str | bytes, fields: Collection[str]
) -> tuple[dict[str, Any] | None, str | None]:
    """The object's fields; or None and words on what is wrong, for a message.

    `fields` are those that the reader uses: none of them may be given twice.
    """
    try:
        # Pairs, not a mapping, which would keep only the last of two equal keys.
        value = json.loads(data, object_pairs_hook=_Object)
    except (ValueError, RecursionError):  # RecursionError: nested absurdly deep
        return None, "no valid JSON"
    if not isinstance(value, _Object):
        return None, "no JSON object"
    repeated = value.repeated & set(fields)
    return (None, f"{min(repeated)!r} is given twice") if repeated else (value, None)


class _Object(dict[str, Any]):
    """An object, and which of its keys are given more than once."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated: set[str] = set()
        if len(self) < len(pairs):
            names = [name for name, _ in pairs]
            self.repeated = {name for name in names if names.count(name) > 1}

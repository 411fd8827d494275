"""Takes secrets out of every text that is shown, logged or stored.

A process that has a key registers its value with `keep_secret`; from then on `redact` removes that
value wherever it stands, also where a server echoes it. Without any registration, `redact` removes
what looks like a key by its name: `Authorization: Bearer ...`, `x-api-key: ...`, `api-key: ...`,
`OPENAI_API_KEY=...`. Nothing here reads the environment or a file.
"""

from __future__ import annotations

import json
import re
import urllib.parse

SHORTEST = 6
"""Characters of the shortest value that is registered: a shorter one is part of common words."""

_SHOWN = "***"

_NAMED = re.compile(
    r"(?i)(\bbearer\s+"  # Authorization: Bearer ...
    r"|\b(?:x-)?api[-_]key\b['\"]?\s*[:=]\s*['\"]?"
    r"|\bauthorization\b['\"]?\s*[:=]\s*['\"]?(?!\s*bearer\b)"
    r"|\b[A-Z0-9_]*(?:API_KEY|_KEY|_TOKEN|_SECRET)\b['\"]?\s*=\s*['\"]?)"
    r"(?!\*\*\*)[^\s'\",;&}\])]+"
)

_VALUES: set[str] = set()


def keep_secret(value: str) -> None:
    """Have `redact` remove this value in this process, in any form in which it may be written."""
    if len(value) >= SHORTEST:
        written = json.dumps(value)[1:-1], urllib.parse.quote(value, safe="")
        _VALUES.update((value, *written))


def redact(text: str) -> str:
    """The text without registered values, and without what is named as a key in it."""
    for value in sorted(_VALUES, key=len, reverse=True):
        text = text.replace(value, _SHOWN)
    return _NAMED.sub(lambda found: f"{found[1]}{_SHOWN}", text)

"""The YAML parser for every file of this project: plain values only, no duplicate keys.

`yes`, `no`, `on` and `off` are words, as in YAML 1.2, so a class may be called `no`. Only `true`
and `false` are truth values. A field that needs one takes these words too.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

MERGE = "tag:yaml.org,2002:merge"
"""YAML's tag for the key of `<<: *anchor`."""


_BOOL = "tag:yaml.org,2002:bool"


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses duplicate keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as in PyYAML)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Checked before construction, which adds the keys of merged mappings.
        node = super().compose_mapping_node(anchor)
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != MERGE]
        duplicates = [key for key in keys if keys.count(key) > 1]
        if duplicates:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {duplicates[0]!r} is given twice", node.start_mark
            )
        return node


_StrictLoader.add_implicit_resolver(
    _BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def parse(text: str) -> Any:
    """The value of a YAML document. Raises yaml.YAMLError, also for a duplicate key."""
    return yaml.load(text, Loader=_StrictLoader)  # nosec: a safe loader

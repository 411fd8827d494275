"""YAML as every file of this project is read: plain values alone, and no key given twice."""

from __future__ import annotations

from typing import Any

import yaml

MERGE = "tag:yaml.org,2002:merge"
"""What YAML calls the key of `<<: *anchor`."""


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here, and not where it is constructed: by then a merge may have put keys beside its own.
        node = super().compose_mapping_node(anchor)
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != MERGE]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {twice[0]!r} is given twice", node.start_mark
            )
        return node


def parse(text: str) -> Any:
    """The value of a YAML document. Raises yaml.YAMLError, for a key given twice as well."""
    return yaml.load(text, Loader=_StrictLoader)  # nosec: a safe loader

"""The YAML parser for every file of this project: plain values only, no duplicate keys.

`yes`, `no`, `on` and `off` are words, as in YAML 1.2, so a class may be called `no`. Only `true`
and `false` are truth values. A field that needs one takes these words too. A whole number has
decimal digits alone, and no zero before them: YAML 1.1 reads `010` as 8 and `12:30` as 750. Such a
text is a word, which a field that needs a number takes for one if it is one (`010` is 10).
Tags that make sets, bytes or pairs are refused, and so are aliases that repeat values without end.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

MERGE = "tag:yaml.org,2002:merge"
"""YAML's tag for the key of `<<: *anchor`."""


_OWN = "\u2063"
"""Begins the messages of this module, which a reader may see."""

_BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float"))

_UNUSED = ("binary", "omap", "pairs", "set")  # a set has no order, and bytes are no text

_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # what no file, path or store can hold

_MOST = 1_000_000
"""Values that a document may have, each counted as often as its aliases repeat it."""


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses duplicate keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as in PyYAML)
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL, _INT, _FLOAT)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012 (as in PyYAML)
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] not in _UNUSED
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Checked before construction, which adds the keys of merged mappings.
        node = super().compose_mapping_node(anchor)
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != MERGE]
        duplicates = [key for key in keys if keys.count(key) > 1]
        if duplicates:
            raise yaml.constructor.ConstructorError(
                None, None, f"{_OWN}key {duplicates[0]!r} is given twice", node.start_mark
            )
        return node

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node


_StrictLoader.add_implicit_resolver(
    _BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_StrictLoader.add_implicit_resolver(
    _INT, re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")
)
_StrictLoader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
        r"|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def _count(node: yaml.Node, counted: dict[yaml.Node, int]) -> int:
    """How many values a node has. Raises YAMLError for more than _MOST, and for one in itself."""
    if node in counted:
        return counted[node]
    if isinstance(node, yaml.ScalarNode) and _NO_TEXT.search(node.value):
        raise yaml.composer.ComposerError(
            None,
            None,
            f"{_OWN}a NUL or half a character (\\0, \\ud800); remove it",
            node.start_mark,
        )
    counted[node] = _MOST + 1  # until it is known: a node within itself has no end
    below = node.value if isinstance(node, yaml.CollectionNode) else ()
    pairs = (one if isinstance(one, tuple) else (one,) for one in below)
    found = 1 + sum(_count(one, counted) for pair in pairs for one in pair)
    if found > _MOST:
        raise yaml.composer.ComposerError(
            None, None, f"{_OWN}its aliases (*name) repeat values without end", node.start_mark
        )
    counted[node] = found
    return found


def parse(text: str) -> Any:
    """The value of a YAML document.

    Raises yaml.YAMLError, also for a duplicate key and for a value that does not exist, such as a
    date in month 13.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)  # nosec: a safe loader
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise yaml.YAMLError(f"{_OWN}its values are nested too deeply") from None
    except Exception as error:  # the loader passes on what the constructors of values raise
        raise yaml.YAMLError(f"{_OWN}a value cannot be read ({error})") from error


_FAULTS = (  # a part of PyYAML's message, and what it means
    ("'\\t' that cannot start", "a tab stands where only blanks may; use blanks"),
    ("found character", "a character stands where a value begins; put the value in quotes"),
    ("mapping values are not allowed", "a second colon; put the value in quotes, or indent it"),
    ("could not find expected ':'", "a line without a colon after its key; add it"),
    ("expected ',' or ']'", "a list that begins with [ does not end with ]; close it"),
    ("expected ',' or '}'", "fields that begin with { do not end with }; close them"),
    ("expected the node content", "a value is missing, or a bracket is not closed; correct that"),
    ("expected <block end>", "a line is indented otherwise than those before it; align it"),
    ("while scanning a quoted", "a quotation mark is not closed; close it"),
    ("unexpected end of stream", "a quotation mark is not closed; close it"),
    (
        "could not determine a constructor",
        "a tag (!...) makes an object; give a plain value",
    ),
    ("undefined alias", "an alias (*name) has no anchor (&name); put a text with * in quotes"),
    ("unhashable key", "a list or fields stand where a key should; a key is text"),
    ("expected a single document", "a second document (---) follows; keep one in a file"),
    ("special characters are not allowed", "a control character; remove it"),
    ("not printable", "a control character; remove it"),
)


def in_words(error: yaml.YAMLError) -> str:
    """What is wrong with a document and where, in our own words, in one line."""
    text = " ".join(str(error).split())
    problem = str(getattr(error, "problem", None) or error)
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    if _OWN in problem:
        return f"{where}{problem.rpartition(_OWN)[2]}"
    meant = next((ours for theirs, ours in _FAULTS if theirs in f"{problem} {text}"), None)
    return f"{where}{meant or 'this cannot be read; look at colons, quotes and brackets there'}"

"""What may happen to a small JSON or YAML file: a strategy of damaged contents, and how to put one.

A `Damage` is the new content, or None for a folder in the file's place.
"""

import copy
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Damage = bytes | None

OTHER = ([None], {"x": [None]}, "text", -1, 1.5, True, None, "", [], {}, 2**70, "2026-13-45")
"""Values of every type. A record's field has none of the first two."""


def of(content: bytes) -> st.SearchStrategy[Damage]:
    """Damaged forms of a JSON file."""
    value = json.loads(content)
    return st.one_of(
        st.none(),
        st.integers(0, len(content) - 1).map(lambda end: content[:end]),
        st.binary(max_size=40),
        st.sampled_from(OTHER).map(lambda other: json.dumps(other).encode()),
        st.sampled_from([b"[" * 100_000, b'{"a":' * 100_000, b"NaN", b"\xef\xbb\xbf" + content]),
        st.sampled_from(list(paths(value))).flatmap(
            lambda path: st.one_of(
                st.sampled_from(OTHER).map(lambda other: changed(value, path, other)),
                st.just(changed(value, path, float("nan"))),
                st.just(changed(value, path, deep())),
                st.just(without(value, path)),
                st.just(doubled(value, path)),
            )
        ),
    )


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each field in nested mappings and lists, and that of the whole."""
    yield above
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for name, below in items:
        yield from paths(below, (*above, name))


def deep() -> Any:
    """A list in a list in a list, and so on."""
    found: Any = []
    for _ in range(400):
        found = [found]
    return found


def changed(value: Any, path: Sequence[Any], new: Any) -> bytes:
    """The JSON with another value at a path."""
    whole = copy.deepcopy([value])
    node: Any = whole
    for name in (0, *path)[:-1]:
        node = node[name]
    node[(0, *path)[-1]] = new
    return json.dumps(whole[0]).encode()


def without(value: Any, path: Sequence[Any]) -> bytes:
    """The JSON without the field at a path; empty without the whole."""
    if not path:
        return b""
    whole = copy.deepcopy(value)
    node = whole
    for name in path[:-1]:
        node = node[name]
    del node[path[-1]]
    return json.dumps(whole).encode()


def doubled(value: Any, path: Sequence[Any]) -> bytes:
    """The JSON with the key at a path twice, or the whole twice."""
    if not path or not isinstance(path[-1], str):
        return json.dumps(value).encode() * 2
    marked = json.loads(changed(value, path, "<mark>"))
    field = f"{json.dumps(path[-1])}: "
    twice = f'{field}null, {field}"<other>"'
    return json.dumps(marked).replace(f'{field}"<mark>"', twice, 1).encode()


def put(path: Path, damage: Damage) -> None:
    """Replace a file, or what another damage left there."""
    if path.is_dir():
        shutil.rmtree(path)
    if damage is None:
        path.unlink(missing_ok=True)
        path.mkdir()
    else:
        path.write_bytes(damage)


def is_a_sentence(message: str, path: Path) -> bool:
    """Whether a message is one line that names the file and says what to do."""
    return str(path) in message and "\n" not in message and "; " in message

"""Fingerprints of steps, fast enough for 50,000 steps in a second.

A fingerprint is the sha256 of a step's fields in canonical JSON: keys sorted, no spaces. A step
shares most of its fields (its task, its method) with thousands of others. So `Texts` makes the text
of each spec once and puts each step's text together from these. The result is the canonical JSON of
the fields, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii as quoted  # a string as JSON
from typing import Any

from jobs.contract import FLAT, NOT_SEMANTIC, SILENT, Spec

_PLAIN = (str, int, float, bool, type(None))
"""Types whose JSON value is the value itself."""

canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
"""A JSON value as canonical JSON."""


def fingerprint(fields: Mapping[str, Any]) -> str:
    """sha256 of a step's fields as canonical JSON, in hex."""
    return hashlib.sha256(canonical(fields).encode()).hexdigest()


class Texts:
    """The canonical JSON of specs. Each is made once while this object lives."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Spec, str]] = {}  # by id; no other spec gets a kept one's id
        # name, JSON key, flat, the default that leaves it out (none: `...`)
        self._semantic_fields: dict[type[Spec], list[tuple[str, str, bool, Any]]] = {}

    def of(self, spec: Spec) -> str:
        """Canonical JSON of `spec.semantic()`."""
        known = self._known.get(id(spec))
        if known is not None:
            return known[1]
        text = self._make(spec)
        self._known[id(spec)] = (spec, text)
        return text

    def fingerprint(self, kind: str, spec: Spec, inputs: Mapping[str, str]) -> str:
        """The fingerprint of a step whose inputs (role -> fingerprint) these are."""
        read = ",".join([f"{quoted(role)}:{quoted(inputs[role])}" for role in sorted(inputs)])
        text = (
            f'{{"inputs":{{{read}}},"kind":{quoted(kind)},'
            f'"protocol":{spec.protocol},"spec":{self.of(spec)}}}'
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def _make(self, spec: Spec) -> str:
        return f"{{{','.join(text for _, text in sorted(self._members(spec)))}}}"

    def _members(self, spec: Spec) -> list[tuple[str, str]]:
        """The members of a spec's JSON object: (name, text of key and value)."""
        if type(spec).semantic is not Spec.semantic:  # it says itself what bears identity
            own = spec.semantic()
            return [(name, f"{canonical(name)}:{canonical(own[name])}") for name in own]
        names = self._semantic_fields.get(type(spec))
        if names is None:
            fields = type(spec).model_fields.items()
            names = self._semantic_fields[type(spec)] = [
                (
                    name,
                    f"{canonical(name)}:",
                    FLAT in info.metadata,
                    info.default if SILENT in info.metadata else ...,
                )
                for name, info in fields
                if NOT_SEMANTIC not in info.metadata
            ]
        semantic: dict[str, Any] | None = None
        members: list[tuple[str, str]] = []
        for name, key, flat, silent in names:
            value = getattr(spec, name)
            if silent is not ... and value == silent:
                continue
            if flat:
                members += self._members(value)
                continue
            if isinstance(value, Spec):
                text = self.of(value)
            elif type(value) is int:
                text = str(value)
            elif _is_plain(value):
                text = canonical(value)
            else:
                semantic = spec.semantic() if semantic is None else semantic
                text = canonical(semantic[name])
            members.append((name, key + text))
        return members


def _is_plain(value: Any) -> bool:
    """Whether the value, or each item of a tuple, is its own JSON value."""
    if type(value) is tuple:
        return all(type(item) in _PLAIN for item in value)
    return type(value) in _PLAIN

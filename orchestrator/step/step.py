"""A step of a plan, and the fields in which two steps differ.

A step has an *address* (`address.py`; also its folder in the store) and a *fingerprint*, a hash of
everything that can change its result: the semantic fields of its spec, its stage's protocol version
and the fingerprints of the steps it reads. Workers, paths, storage and log settings change neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.contract import Spec

KINDS = ("corpus", "hashes", "overlap", "noise", "pretrain", "encoder", "features", "tune")
"""Every kind of step, in the order data flows."""


@dataclass(frozen=True)
class Step:
    """Something that a sweep does once."""

    address: str
    kind: str  # one of KINDS
    spec: Spec
    inputs: Mapping[str, str]  # role -> address of the step read
    read: Mapping[str, str]  # role -> fingerprint of the step read
    fingerprint: str
    labels: Mapping[str, str | float | int] = field(default_factory=dict)  # coordinates
    # Steps that must have ended, at least one of them well, before this one begins. It reads none
    # of them, and its fingerprint does not depend on them.
    after: tuple[str, ...] = ()

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that the fingerprint is a hash of."""
        return {
            "kind": self.kind,
            "protocol": self.spec.protocol,
            "spec": self.spec.semantic(),
            "inputs": dict(self.read),
        }


@dataclass(frozen=True)
class Difference:
    """One field in which a recorded step and a planned one differ."""

    path: str
    recorded: Any
    planned: Any

    def __str__(self) -> str:
        *_, field, name = ("", *self.path.split("."))
        if field == "source" and self.recorded and self.planned:
            return f"the source of {name} changed"
        return f"{self.path}: {_short(self.recorded)} -> {_short(self.planned)}"


def differences(recorded: Any, planned: Any, path: str = "") -> Iterator[Difference]:
    """Every field in which two steps' fields differ, by dotted path."""
    if recorded == planned:
        return
    if isinstance(recorded, Mapping) and isinstance(planned, Mapping):
        for name in sorted({*recorded, *planned}):
            below = f"{path}.{name}" if path else name
            yield from differences(recorded.get(name), planned.get(name), below)
    else:
        yield Difference(path.removeprefix("spec."), recorded, planned)


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 60 else f"{text[:57]}..."

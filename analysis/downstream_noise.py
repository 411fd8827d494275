"""Cells whose own training labels were made wrong: accuracy against downstream label noise.

An axis of its own, kept out of everything that is averaged over clean cells. Takes the relabelled
cells of a `Readout`, and the clean ones of the same encoders beside them; gives averages by
downstream label noise, one for each kind of encoder (a level of pre-training noise, or a named
encoder), domain and method, their table and their rows. Percent, 0-100; the largest fraction alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from analysis import wording
from analysis.averages import Average, Score, average
from analysis.readout import Readout

_PLACES = ("domain", "task", "method", "fraction", "label_noise", "tuning_seed", "address")


@dataclass(frozen=True)
class Source:
    """The encoders that are averaged: those of one level of pre-training noise, or a named one."""

    level: float | None  # percent
    encoder: str | None  # the name of one that was not trained here

    @property
    def title(self) -> str:
        """Such as "10 % pre-training noise"."""
        return self.encoder or f"{wording.percent(self.level or 0.0)} pre-training noise"


def levels(readout: Readout) -> tuple[float, ...]:
    """The downstream noise levels asked for or found, rising; none without a noisy one."""
    found = {*readout.question.label_noise, *readout.label_noise_cells["label_noise"].to_pylist()}
    return tuple(sorted(found)) if any(found) else ()


def sources(readout: Readout) -> list[Source]:
    """What relabelled cells are of: levels rising, then named encoders."""
    rows = readout.label_noise_cells.select(["noise", "encoder"]).to_pylist()
    found = {Source(row["noise"], row["encoder"]) for row in rows}
    return sorted(found, key=lambda one: (one.encoder or "", one.level or 0.0))


def accuracy(readout: Readout, source: Source, domain: str, method: str) -> Average:
    """Test accuracy over tasks by downstream label noise; the clean cells are its level 0."""
    where = (
        (pc.field("domain") == domain)
        & (pc.field("method") == method)
        & (pc.field("fraction") == readout.fraction)
    )
    if source.encoder is None:
        own = pc.field("noise") == source.level
        clean = readout.cells.filter(where & own)
        noisy = readout.label_noise_cells.filter(where & own & pc.field("encoder").is_null())
    else:
        own = pc.field("encoder") == source.encoder
        clean, noisy = (
            readout.pretrained_cells.filter(where & own),
            readout.label_noise_cells.filter(where & own),
        )
    return average(
        Score(row.get("label_noise", 0.0), row.get("pretrain_seed") or 0, row["task"], value, seed)
        for row in [*clean.to_pylist(), *noisy.to_pylist()]
        if (value := row["test_accuracy"]) is not None and math.isfinite(value)
        for seed in [row["tuning_seed"]]
    )


def averages(readout: Readout, source: Source, domain: str) -> Iterator[tuple[str, Average]]:
    """Every method with relabelled cells there, with its average."""
    for method in readout.methods():
        found = accuracy(readout, source, domain, method)
        if any(found.levels):
            yield method, found


def domains(readout: Readout) -> tuple[str, ...]:
    """The domains with relabelled cells, ID first."""
    found = set(readout.label_noise_cells["domain"].to_pylist())
    return tuple(domain for domain in ("id", "ood") if domain in found)


def rows(readout: Readout) -> list[dict[str, Any]]:
    """The relabelled cells, in an order that depends on nothing but their places."""
    found: list[dict[str, Any]] = readout.label_noise_cells.to_pylist()
    return sorted(found, key=lambda row: tuple(row[name] for name in _PLACES))

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
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from analysis import names
from analysis.averages import Average, Score, average
from analysis.markup import Cell, table

if TYPE_CHECKING:
    from analysis.readout import Readout

_OF_LEVELS = ("noise", "pretrain_seed")
_PLACES = ("domain", "task", "method", "fraction", "label_noise", "tuning_seed", "address")


@dataclass(frozen=True)
class Source:
    """The encoders that are averaged: those of one level of pre-training noise, or a named one."""

    level: float | None  # percent
    encoder: str | None  # the name of one that was not trained here

    @property
    def title(self) -> str:
        """Such as "10 % pre-training noise"."""
        return self.encoder or f"{names.percent(self.level or 0.0)} pre-training noise"


def schema_of(cells: pa.Schema) -> pa.Schema:
    """The cells' schema with the downstream noise; no level and no seed for a named encoder."""
    kept = [column.with_nullable(True) if column.name in _OF_LEVELS else column for column in cells]
    return pa.schema(
        [
            *kept,
            pa.field("encoder", pa.string()),  # named; null for one trained here
            pa.field("label_noise", pa.float64(), nullable=False),  # of training labels, percent
        ]
    )


def levels(readout: Readout) -> tuple[float, ...]:
    """The downstream noise levels asked for or found, rising; none without a noisy one."""
    found = {*readout.question.label_noise, *readout.relabelled["label_noise"].to_pylist()}
    return tuple(sorted(found)) if any(found) else ()


def sources(readout: Readout) -> list[Source]:
    """What relabelled cells are of: levels rising, then named encoders."""
    rows = readout.relabelled.select(["noise", "encoder"]).to_pylist()
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
        noisy = readout.relabelled.filter(where & own & pc.field("encoder").is_null())
    else:
        own = pc.field("encoder") == source.encoder
        clean, noisy = readout.named.filter(where & own), readout.relabelled.filter(where & own)
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
    found = set(readout.relabelled["domain"].to_pylist())
    return tuple(domain for domain in ("id", "ood") if domain in found)


def finished(readout: Readout) -> str:
    """Such as "48 cells on wrong labels beside"; empty without such cells."""
    number = readout.relabelled.num_rows
    return f"{names.count(number, 'cell')} on wrong labels beside" if number else ""


def accuracies(readout: Readout) -> str:
    """Encoders and methods by downstream label noise, ID and OOD; nothing without such cells."""
    asked = levels(readout)
    return "".join(_table(readout, domain, asked) for domain in domains(readout))


def _table(readout: Readout, domain: str, asked: tuple[float, ...]) -> str:
    lines: list[list[Cell | str]] = []
    members: set[tuple[str, ...]] = set()
    for source in sources(readout):
        for method, found in averages(readout, source, domain):
            members.add(found.members)
            cells = [_cell(found, level) for level in asked]
            lines.append([source.title, names.method(method), *cells])
    if not lines:
        return ""
    over = names.mean_of(next(iter(members))) if len(members) == 1 else "each over its own tasks"
    return table(
        ["Encoder", "Method", *(f"{names.percent(level)} wrong" for level in asked)],
        lines,
        caption=f"{names.domain(domain)}: test accuracy in percent by the share of the task's own "
        f"training labels that were made wrong ({over}); below it the change from right labels in "
        f"points; these cells are in no other average",
        numbers=len(asked),
    )


def _cell(found: Average, level: float) -> Cell:
    of = found.interval(level)
    if of is None:
        return Cell("–", mark="gap")
    under = []
    if of.low is not None and of.high is not None:
        under.append(f"[{names.number(of.low)}, {names.number(of.high)}]")
    change = found.change(level) if level else None
    if change is not None:
        under.append(f"Δ {names.interval(change.interval, sign=True)}")
    return Cell(names.number(of.mean), tuple(under), of.mean)


def rows(readout: Readout) -> list[dict[str, Any]]:
    """The relabelled cells, in an order that depends on nothing but their places."""
    found: list[dict[str, Any]] = readout.relabelled.to_pylist()
    return sorted(found, key=lambda row: tuple(row[name] for name in _PLACES))

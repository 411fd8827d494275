"""Scores against downstream label noise: errors made on purpose in a task's own training labels.

No average over clean cells includes such cells. Takes the cells with label noise of a `Readout`,
and the clean cells of the same encoders; gives averages by label noise for each source of encoders
(a level of pre-training noise, or one pretrained encoder), domain and method. Percent, 0-100; the
largest fraction alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from analysis import wording
from analysis.averages import Average, Score, average
from analysis.readout import Readout, bounds_of
from analysis.schemas import OWN

_SORT_KEYS = ("domain", "task", "method", "fraction", "label_noise", "tuning_seed", "address")


@dataclass(frozen=True)
class Source:
    """The encoders of one average: those of a pre-training noise level, or a pretrained one."""

    level: float | None  # percent
    encoder: str | None  # name of a pretrained encoder

    @property
    def title(self) -> str:
        """Such as "10 % pre-training noise", or the encoder's name."""
        return self.encoder or f"{wording.percent(self.level or 0.0)} pre-training noise"


def levels(readout: Readout) -> tuple[float, ...]:
    """The label noise levels that were requested or found, rising; empty when all are clean."""
    found = {*readout.question.label_noise, *readout.label_noise_cells["label_noise"].to_pylist()}
    return tuple(sorted(found)) if any(found) else ()


def sources(readout: Readout) -> list[Source]:
    """The sources of the cells with label noise: levels rising, then pretrained encoders."""
    rows = readout.label_noise_cells.select(["noise", "encoder"]).to_pylist()
    found = {Source(row["noise"], row["encoder"]) for row in rows}
    return sorted(found, key=lambda one: (one.encoder or "", one.level or 0.0))


def metrics(readout: Readout, domain: str) -> dict[str, str]:
    """The own metric of each task that has cells with label noise."""
    rows = readout.label_noise_cells.filter(pc.field("domain") == domain)
    names = zip(rows["task"].to_pylist(), rows["metric"].to_pylist(), strict=True)
    return {task: metric or "accuracy" for task, metric in sorted(set(names))}


def scores(readout: Readout, source: Source, domain: str, method: str) -> Average:
    """Test scores over tasks, by each task's own metric, at each label noise; 0: clean cells."""
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
    rows = [*clean.to_pylist(), *noisy.to_pylist()]
    return average(
        (
            Score(row.get("label_noise", 0.0), row.get("pretrain_seed") or 0, row["task"], value, s)
            for row in rows
            if (value := row[OWN]) is not None and math.isfinite(value)
            for s in [row["tuning_seed"]]
        ),
        bounds_of({row["metric"] for row in rows}),
    )


def averages(readout: Readout, source: Source, domain: str) -> Iterator[tuple[str, Average]]:
    """Every method that has cells with label noise there, with its average."""
    for method in readout.methods():
        found = scores(readout, source, domain, method)
        if any(found.levels):
            yield method, found


def domains(readout: Readout) -> tuple[str, ...]:
    """The domains that have cells with label noise, ID first."""
    found = set(readout.label_noise_cells["domain"].to_pylist())
    return tuple(domain for domain in ("id", "ood") if domain in found)


def rows(readout: Readout) -> list[dict[str, Any]]:
    """The cells with label noise as rows, sorted by what they are and by address."""
    found: list[dict[str, Any]] = readout.label_noise_cells.to_pylist()
    return sorted(found, key=lambda row: tuple(row[name] for name in _SORT_KEYS))

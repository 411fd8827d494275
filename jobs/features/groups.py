"""Encoders that are fed from one decoding: those that prepare the same rows alike.

Takes the steps of a turn with their units; gives groups of steps over the same rows of the same
corpus, whose encoders have the same image input. A group is limited by memory, and by the number of
processes: where there are few units, more and smaller groups keep all processes busy. Groups never
affect a result. Knows neither Ray nor torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.contract import Work
from jobs.corpus.shards import Index
from jobs.corpus.units import UNIT_ROWS, Unit
from jobs.encoders.card import WEIGHTS, EncoderCard
from jobs.features.spec import FeaturesStep
from jobs.storage.folder import Folder

_UNITS_EACH = 2  # at least, for each process: the last units end at about the same time


@dataclass(frozen=True)
class Job:
    """One work with its step, corpus index and units."""

    work: Work
    step: FeaturesStep
    index: Index
    units: list[Unit]

    @property
    def encoder(self) -> Folder:
        """The folder of its encoder."""
        return self.work.inputs["encoder"]

    @property
    def rows(self) -> tuple[str, ...]:
        """What decides the rows and their change: equal for jobs that read the same ones."""
        shift = self.step.shift.model_dump_json() if self.step.shift else ""
        return self.work.inputs["corpus"].uri, " ".join(self.step.wanted), shift


@dataclass(frozen=True)
class Weight:
    """What feeding an encoder together with others takes."""

    preparation: str | None  # equal where rows are prepared alike; None: fed alone
    bytes: int = 0  # of memory, in a process


def weights_of(jobs: Sequence[Job]) -> list[Weight]:
    """The weight of each job. An encoder that cannot be read is fed alone, and fails there."""
    cards: dict[str, tuple[EncoderCard, int] | None] = {}
    found = []
    for job in jobs:
        if job.encoder.uri not in cards:
            cards[job.encoder.uri] = _read(job.encoder)
        known = cards[job.encoder.uri]
        if known is None:
            found.append(Weight(None))
            continue
        card, weights = known
        if job.step.grid is not None:  # the model's work on patches outweighs the decoding
            found.append(Weight(None))
            continue
        features = 4 * UNIT_ROWS * (job.step.views.count + 1) * card.feature_dim
        found.append(Weight(card.preparation, weights + features))
    return found


def _read(encoder: Folder) -> tuple[EncoderCard, int] | None:
    """An encoder's card and the bytes of its weights."""
    try:
        return EncoderCard.read(encoder), encoder.stamp(WEIGHTS)[0]
    except Exception:  # the process that loads it says why
        return None


def groups(
    jobs: Sequence[Job], weights: Sequence[Weight], processes: int, memory: float
) -> list[list[int]]:
    """The numbers of the jobs in groups, each fed from one decoding.

    `weights`: of the jobs, in order; `processes`: how many run at once; `memory`: bytes that the
    encoders of a group may take in a process. The jobs of a group keep their order.
    """
    alike: dict[tuple[object, ...], list[int]] = {}
    for number, (job, weight) in enumerate(zip(jobs, weights, strict=True)):
        preparation = number if weight.preparation is None else weight.preparation
        alike.setdefault((job.rows, preparation), []).append(number)
    units = sum(len(jobs[numbers[0]].units) for numbers in alike.values())
    pieces = math.ceil(_UNITS_EACH * processes / max(1, units))
    return [
        piece
        for numbers in alike.values()
        for piece in _cut(numbers, weights, math.ceil(len(numbers) / pieces), memory)
    ]


def _cut(
    numbers: Sequence[int], weights: Sequence[Weight], most: int, memory: float
) -> Iterator[list[int]]:
    """Pieces of at most `most` jobs, and of at most `memory` bytes unless it is one job."""
    piece, taken = list[int](), 0
    for number in numbers:
        size = weights[number].bytes
        if piece and (len(piece) == most or taken + size > memory):
            yield piece
            piece, taken = [], 0
        piece.append(number)
        taken += size
    yield piece

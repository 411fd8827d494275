"""Encoders that are fed from one decoding: those that prepare the same rows alike.

Takes the steps of a turn with their units; gives groups of steps over the same rows of the same
corpus, whose encoders have the same image input. `extract_unit` extracts a unit for a whole group,
and decodes each row once. A group is limited by memory, and by the number of processes: where there
are few units, more and smaller groups keep all processes busy. Groups never affect a result, and
each step of a group resumes and fails by itself. Knows no Ray.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import torch

from jobs.contract import Work
from jobs.corpus.shards import Index
from jobs.corpus.units import UNIT_ROWS, Unit
from jobs.encoders.encoder import CARD, WEIGHTS, Encoder, EncoderCard, gridded, load
from jobs.features.extract import Member, extract_each
from jobs.features.identity import identity
from jobs.features.parts import has_unit, save_unit
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


# -- groups ----------------------------------------------------------------------------------------


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


# -- in a process that extracts --------------------------------------------------------------------


def extract_unit(jobs: Sequence[Job], unit: Unit) -> list[Exception | None]:
    """Extract a unit into the scratch of each job that lacks it; each job's error, if it has one.

    Where memory does not suffice for several encoders at once, half as many are fed together.
    """
    _LOADED.keep(jobs)
    try:
        return _extract_together(jobs, unit)
    except torch.OutOfMemoryError as error:
        if len(jobs) == 1:
            return [error]
    half = len(jobs) // 2  # out here, as the error holds what was allocated
    return extract_unit(jobs[:half], unit) + extract_unit(jobs[half:], unit)


def _extract_together(jobs: Sequence[Job], unit: Unit) -> list[Exception | None]:
    errors: dict[int, Exception] = {}
    members: dict[int, Member] = {}

    @contextmanager
    def of(number: int) -> Iterator[None]:
        """An error inside fails the job alone."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            errors[number] = error

    for number, job in enumerate(jobs):
        with of(number):
            if not _has_unit(job, unit):
                members[number] = Member(_LOADED.open(job), job.step)
    found: Sequence[pa.Table | Exception] = []
    if members:
        job = jobs[min(members)]
        corpus = job.work.inputs["corpus"]
        try:
            found = extract_each(unit, corpus, job.index.name, list(members.values()))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of the rows that they share
            found = [error] * len(members)
    for number, result in zip(members, found, strict=True):
        with of(number):
            if isinstance(result, Exception):
                raise result
            save_unit(jobs[number].work.scratch, unit, result)
    return [errors.get(number) for number in range(len(jobs))]


def _has_unit(job: Job, unit: Unit) -> bool:
    return has_unit(job.work.scratch, unit, made_with(job.step, job.encoder))


def made_with(step: FeaturesStep, encoder: Folder) -> str:
    """All that makes an encoder's features what they are, as JSON (`identity`)."""
    return identity(step, EncoderCard.read(encoder), _device(step))


def _device(step: FeaturesStep) -> str:
    return "cuda" if step.gpus_per_worker > 0 else "cpu"


class _Loaded:
    """The encoders of the jobs whose unit a process has last extracted, each loaded once."""

    def __init__(self) -> None:
        self._encoders: dict[tuple[str, bytes, str, str], Encoder] = {}

    def keep(self, jobs: Sequence[Job]) -> None:
        """Drop the encoders of all other jobs."""
        folders = {job.encoder.uri for job in jobs}
        kept = {key: found for key, found in self._encoders.items() if key[0] in folders}
        if len(kept) < len(self._encoders):
            self._encoders = kept
            torch.cuda.empty_cache()

    def open(self, job: Job) -> Encoder:
        """A job's encoder. Its card holds the weights' sha256, so a replaced one loads again."""
        device = _device(job.step)
        torch.set_num_threads(job.step.cpus_per_worker)
        form = "" if job.step.grid is None else f"{job.step.grid} {len(job.index.classes)} classes"
        key = (job.encoder.uri, job.encoder.read_bytes(CARD), device, form)
        if key not in self._encoders:
            encoder = load(job.encoder, torch.device(device), job.step.source)
            grid = job.step.grid
            if grid is not None:
                encoder = gridded(encoder, grid, len(job.index.classes))
            self._encoders[key] = encoder
        return self._encoders[key]


_LOADED = _Loaded()

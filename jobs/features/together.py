"""A unit of rows through a group of encoders (`groups.py`), in a process that extracts.

Takes the jobs of a group and a unit; each row is read and decoded once, and each job's features go
to its scratch. Each job of a group resumes and fails by itself. A process keeps the encoders that
it used last. Knows no Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import torch

from jobs.contract import StageError
from jobs.corpus.units import Unit
from jobs.encoders.encoder import CARD, Encoder, gridded, load
from jobs.features.extract import Member, extract_each
from jobs.features.groups import Job
from jobs.features.identity import device_of, made_with
from jobs.features.parts import has_unit, save_unit


def extract_unit(jobs: Sequence[Job], unit: Unit) -> list[Exception | None]:
    """Extract a unit into the scratch of each job that lacks it; each job's error, if it has one.

    Where memory does not suffice for several encoders at once, half as many are fed together.
    """
    _LOADED.keep(jobs)
    try:
        return _extract_together(jobs, unit)
    except torch.OutOfMemoryError as error:
        if len(jobs) == 1:
            message = " ".join(str(error).split())[:200]
            remedy = "set features.batch_size to a small number"
            return [StageError(f"{message}; {remedy}")]
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
        device = device_of(job.step)
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

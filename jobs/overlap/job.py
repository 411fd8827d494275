"""The stages that look for test samples among training samples, on Ray.

`run_hashes` spreads the units of all corpora over Ray's CPUs, as plain tasks with a window; `run`
compares one task's test part in each Ray task. Nothing here decides what to run, commits an output
or retries.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import ray

from jobs.contract import Failure, Hooks, Outcome, Work
from jobs.corpus.shards import Index
from jobs.corpus.units import Unit, units_of
from jobs.overlap.compare import compare
from jobs.overlap.hashes import finish, hash_unit
from jobs.remote import POLL_S, guarded, received, report_each

_WAITING = 2  # tasks for each CPU that Ray is given at once


def run(works: Sequence[Work], hooks: Hooks) -> None:
    """Compare each work's test part (spec: `OverlapStep`); see `jobs.overlap.compare`."""
    report_each(compare, [([work], 1, 0) for work in works], hooks)


def run_hashes(works: Sequence[Work], hooks: Hooks) -> None:
    """Hash each work's corpus (spec: `HashesStep`; input: `corpus`); see `jobs.overlap.hashes`.

    A work that fails is reported with its error; the others continue. After a stop, unfinished
    works are not reported and keep their finished units in scratch.
    """
    jobs: list[_Job] = []
    for work in works:
        try:
            index = Index.read(work.inputs["corpus"])
        except Exception as error:
            hooks.done(work.address, error)
            continue
        jobs.append(_Job(work, index, units_of(index, index.parts)))
    _Hashing(jobs, hooks).run()


@dataclass
class _Job:
    """One work, its units, and how many of them are not finished."""

    work: Work
    index: Index
    units: list[Unit]
    left: int = field(init=False)
    seconds: float = 0.0  # of work, in all its tasks
    ended: bool = False

    def __post_init__(self) -> None:
        self.left = len(self.units)


class _Hashing:
    """Some jobs whose units share Ray's CPUs."""

    def __init__(self, jobs: Sequence[_Job], hooks: Hooks) -> None:
        self._jobs, self._hooks = jobs, hooks
        self._waiting = deque((job, unit) for job in jobs for unit in job.units)
        self._running: dict[ray.ObjectRef[Outcome | Failure], _Job] = {}
        self._finishing: dict[ray.ObjectRef[Outcome | Failure], _Job] = {}

    def run(self) -> None:
        """Hash all units; report each job as soon as its files are written."""
        for job in self._jobs:
            if not job.units:
                self._finish(job)
        window = _WAITING * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while self._waiting or self._running or self._finishing:
            if self._hooks.stopping():
                for reference in (*self._running, *self._finishing):
                    ray.cancel(reference)
                return
            while self._waiting and len(self._running) < window:
                job, unit = self._waiting.popleft()
                if not job.ended:
                    self._running[_hash.remote(job.work, unit, job.index)] = job
            self._collect()

    def _collect(self) -> None:
        """Handle the tasks that have ended; wait a moment for the first."""
        pending = [*self._running, *self._finishing]
        for reference in ray.wait(pending, timeout=POLL_S)[0] if pending else ():
            unit = reference in self._running
            job = (self._running if unit else self._finishing).pop(reference)
            try:
                result = received(ray.get(reference))
            except ray.exceptions.RayError as error:  # of the process, not of the unit
                result = error
            if isinstance(result, Outcome):
                job.seconds += result.seconds or 0.0
                result = replace(result, seconds=job.seconds)
            if isinstance(result, Outcome) and unit:
                self._count(job)
            else:
                self._report(job, result)

    def _count(self, job: _Job) -> None:
        job.left -= 1
        share = 1 - job.left / len(job.units)
        if job.left == 0 and not job.ended:
            self._finish(job)
        elif not job.ended:
            samples = sum(unit.stop - unit.start for unit in job.units)
            self._hooks.say(job.work.address, 0.95 * share, f"{share:.0%} of {samples:,} samples")

    def _finish(self, job: _Job) -> None:
        self._finishing[_finish.remote(job.work, job.index, job.units)] = job

    def _report(self, job: _Job, result: Outcome | BaseException) -> None:
        if not job.ended:
            job.ended = True
            self._hooks.done(job.work.address, result)


# -- in the workers --------------------------------------------------------------------------------


@ray.remote(num_cpus=1)
def _hash(work: Work, unit: Unit, index: Index) -> Outcome | Failure:
    def do() -> Outcome:
        hash_unit(unit, work.inputs["corpus"], work.scratch, index.form)
        return Outcome()

    return guarded(work.address, do)


@ray.remote(num_cpus=1)
def _finish(work: Work, index: Index, units: list[Unit]) -> Outcome | Failure:
    return guarded(work.address, lambda: finish(index, units, work.scratch, work.output))

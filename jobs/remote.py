"""A stage's plain Ray tasks: works done in other processes, each reported when its task has ended.

Takes a function that does one work, and the works; a task does one of them or several in turn. An
exception of a work is its result, sent as a `Failure`, and the other works continue. If a task's
process dies, that is the result of all its works. When the user asks to stop, unfinished works are
cancelled and not reported. Stages call this from their `job.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import ray

from jobs.contract import Failure, Hooks, Outcome, Work

POLL_S = 0.5  # seconds between two checks for a request to stop

Needed = tuple[Sequence[Work], float, float]
"""The works of a task, and the CPUs and GPUs that it takes."""


def guarded(address: str, do: Callable[[], Outcome]) -> Outcome | Failure:
    """The outcome of `do`, with the seconds that it took; if it raises, the failure of the step at
    `address`.
    """
    begun = time.monotonic()
    try:
        return do().took(time.monotonic() - begun)
    except Exception as error:
        return Failure.of(error, address)


def received(result: Outcome | Failure) -> Outcome | Exception:
    """A result from another process, as `Hooks.done` expects it."""
    return result.as_error() if isinstance(result, Failure) else result


def report_each(do: Callable[[Work], Outcome], tasks: Iterable[Needed], hooks: Hooks) -> None:
    """Do the works of every task, and report each one. `do` must be importable by its name."""
    remote = ray.remote(_do_all)
    waiting = {
        remote.options(num_cpus=cpus, num_gpus=gpus).remote(do, works): works
        for works, cpus, gpus in tasks
    }
    while waiting:
        if hooks.stopping():
            for reference in waiting:
                ray.cancel(reference)
            return
        for reference in ray.wait(list(waiting), timeout=POLL_S)[0]:
            works = waiting.pop(reference)
            results: list[Outcome | Exception]
            try:
                results = [received(result) for result in ray.get(reference)]
            except ray.exceptions.RayError as error:  # of the process, not of a work
                results = [error] * len(works)
            for work, result in zip(works, results, strict=True):
                hooks.done(work.address, result)


def _do_all(do: Callable[[Work], Outcome], works: Sequence[Work]) -> list[Outcome | Failure]:
    return [guarded(work.address, partial(do, work)) for work in works]

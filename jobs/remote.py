"""A stage's plain Ray tasks: works done elsewhere, each answered as soon as its task has ended.

Takes a function that does one work, and the works; a task does one of them or several in turn. What
a work raises is its answer, sent as a `Failure`, and the others go on; where a task's process died,
that is the answer of all its works. Once the user asks to stop, what has not
ended is cancelled and left unanswered. Stages call this from their `job.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import ray

from jobs.contract import Failure, Hooks, Outcome, Work

POLL_S = 0.5  # how often a wait looks whether the user asked to stop

Needed = tuple[Sequence[Work], float, float]
"""The works of a task, and the CPUs and GPUs that it takes."""


def guarded(address: str, do: Callable[[], Outcome]) -> Outcome | Failure:
    """What `do` gives, or the failure of the step at `address` by what it raises."""
    try:
        return do()
    except Exception as error:
        return Failure.of(error, address)


def received(answer: Outcome | Failure) -> Outcome | Exception:
    """An answer of another process as `Hooks.done` takes it."""
    return answer.as_error() if isinstance(answer, Failure) else answer


def answer_each(do: Callable[[Work], Outcome], tasks: Iterable[Needed], hooks: Hooks) -> None:
    """Do the works of every task, and answer each one. `do` must be importable by its name."""
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
            answers: list[Outcome | Exception]
            try:
                answers = [received(answer) for answer in ray.get(reference)]
            except ray.exceptions.RayError as error:  # of the process, not of a work
                answers = [error] * len(works)
            for work, answer in zip(works, answers, strict=True):
                hooks.done(work.address, answer)


def _do_all(do: Callable[[Work], Outcome], works: Sequence[Work]) -> list[Outcome | Failure]:
    return [guarded(work.address, partial(do, work)) for work in works]

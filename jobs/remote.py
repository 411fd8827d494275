"""A stage's plain Ray tasks: works done elsewhere, each answered as soon as its task has ended.

Takes a function that does one work, and the works; a task does one of them or several in turn. What
a work raises is its answer, in a form that can leave the process, and the others go on; where a
task's process died, that is the answer of all its works. Once the user asks to stop, what has not
ended is cancelled and left unanswered. Stages call this from their `job.py`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence

import ray

from jobs.contract import Hooks, Outcome, StageError, Work

POLL_S = 0.5  # how often a wait looks whether the user asked to stop

Needed = tuple[Sequence[Work], float, float]
"""The works of a task, and the CPUs and GPUs that it takes."""


def portable(error: Exception) -> Exception:
    """The error as it can cross a process border: its class may not be known on the other side."""
    if isinstance(error, StageError):
        return error
    answer = RuntimeError(f"{type(error).__name__}: {error}")
    answer.add_note("".join(traceback.format_exception(error)))
    return answer


def guarded(do: Callable[[], Outcome]) -> Outcome | Exception:
    """What it gives, or what it raises, `portable`."""
    try:
        return do()
    except Exception as error:
        return portable(error)


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
            try:
                answers = ray.get(reference)
            except ray.exceptions.RayError as error:  # of the process, not of a work
                answers = [error] * len(works)
            for work, answer in zip(works, answers, strict=True):
                hooks.done(work.address, answer)


def _do_all(do: Callable[[Work], Outcome], works: Sequence[Work]) -> list[Outcome | Exception]:
    return [guarded(lambda work=work: do(work)) for work in works]  # type: ignore[misc]

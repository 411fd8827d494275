"""Runs that train side by side on one stream of batches: a cohort.

Takes one `Loop` for each run, and the source and inputs that they share. Each batch is read,
decoded, augmented, normalised and mixed once; then each run takes its own step on its own targets.
A run alone is a cohort of one. Runs share no state, so each ends as if it were alone, bit for bit
on a CPU. A run that fails leaves the others training. After an interruption, runs may be at
different batches: those behind train first, until they are level with the next. Knows no Ray and no
folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from jobs.contract import Outcome
from jobs.pretrain.checkpoint import Position
from jobs.pretrain.data.part import Batch, Part, Source, Targets
from jobs.pretrain.distributed import DistributedGroup
from jobs.pretrain.inputs import Inputs
from jobs.pretrain.loop import Loop, StoppedError, Trained
from jobs.pretrain.nonfinite import explain_out_of_memory
from jobs.pretrain.objectives.objective import Objective
from jobs.pretrain.restarts import TooManyTogetherError

Result = Outcome | Exception
"""How a run ended."""


class Cohort:
    """Runs that differ in their noise alone, by the numbers that the source gives them."""

    def __init__(
        self,
        loops: dict[int, Loop],
        source: Source,
        validation: Part,
        objective: Objective,
        inputs: Inputs,
        group: DistributedGroup,
        *,
        images_per_pass: int,
        finish: Callable[[int, Trained], Outcome],
        ended: Callable[[int, Result], None],
    ) -> None:
        """`finish` writes a trained run; `ended` is called with how each run ended, and may raise.

        A run that has ended is taken out of `loops`.
        """
        self._loops = loops  # those that have not ended
        self._source, self._validation, self._objective = source, validation, objective
        self._inputs, self._group, self._most = inputs, group, images_per_pass
        self._finish, self._ended = finish, ended

    def train(self) -> None:
        """Train all runs from their last checkpoints to their ends.

        Raises StoppedError when asked to stop, with checkpoints at the last batch, and
        TooManyTogetherError when memory does not suffice for several runs, or their common input
        fails. Other errors end one run.
        """
        for run, loop in self._all():
            with self._of(run):
                loop.resume()
        while self._loops:
            places = {run: _place(loop.position) for run, loop in self._all()}
            first = min(places.values())
            level = [run for run, place in places.items() if place == first]
            if self._loops[level[0]].finished:  # the others are too
                self._end(level)
            else:
                ahead = min((place for place in places.values() if place > first), default=None)
                self._train_epoch(level, ahead)

    def _all(self) -> list[tuple[int, Loop]]:
        return list(self._loops.items())

    def _among(self, runs: Sequence[int]) -> list[tuple[int, Loop]]:
        """Those of the runs that have not ended."""
        return [(run, self._loops[run]) for run in runs if run in self._loops]

    # -- an epoch --------------------------------------------------------------------------------

    def _train_epoch(self, level: Sequence[int], ahead: tuple[int, int] | None) -> None:
        """Train runs at the same batch to the epoch's end, or to the place of the next run."""
        start = self._loops[level[0]].position
        last = ahead[1] if ahead is not None and ahead[0] == start.epoch else None
        for _, loop in self._among(level):
            loop.begin()
        batches = self._source.batches(start.epoch, start.step, self._group)
        updates, step = start.updates, start.step
        while step != last and self._among(level):
            started = time.monotonic()
            batch: Batch | None = None
            with self._of_all(level):
                batch = next(batches, None)
            if batch is None:
                break
            self._train_batch(level, batch, updates, started)
            updates, step = updates + 1, step + 1
        else:
            return
        self._end_epoch(level)

    def _train_batch(
        self, level: Sequence[int], batch: Batch, updates: int, started: float
    ) -> None:
        """One update of each run. `started`: when the wait for the batch began."""
        runs = self._among(level)
        waited = time.monotonic() - started
        for _, loop in runs:
            loop.waited(waited, len(runs))
        made: list[tuple[Tensor, tuple[Targets, ...]]] = []
        with self._of_all(level):
            made.append(self._inputs.make(batch, updates))
        if not made:
            return
        images, targets = made[0]
        states, version = [], images._version
        for run, loop in runs:
            if images._version != version:  # the run before has changed them
                raise TooManyTogetherError("the model changes its input in place")
            with self._of(run):
                states.append(loop.update(images, targets[run], batch.ends_segment))
        share = (time.monotonic() - started) / len(runs)
        for _, loop in self._among(level):
            loop.spent(share)
        if any(state.stop for state in states):
            self._save(level)
            for run, loop in self._among(level):
                with self._of(run):
                    loop.join()
            if self._loops:
                raise StoppedError
        elif any(state.due for state in states) and not self._at_end(level):
            self._save(level)

    def _at_end(self, level: Sequence[int]) -> bool:
        """Whether the epoch's last batch is done."""
        steps = self._source.steps_per_epoch
        return all(loop.position.step == steps for _, loop in self._among(level))

    def _end_epoch(self, level: Sequence[int]) -> None:
        """Evaluate the runs, on images decoded once; write checkpoints if due."""
        models: dict[int, nn.Module] = {}
        for run, loop in self._among(level):
            with self._of(run):
                models[run] = loop.to_evaluate()
        measured: Sequence[Mapping[str, float]] = []
        with self._of_all(level):
            measured = self._objective.evaluate(
                list(models.values()), self._validation, self._group
            )
        for run, values in zip(models, measured, strict=False):
            with self._of(run):
                self._loops[run].end_epoch(values)
        runs = self._among(level)
        due = self._group.writes and any(loop.due() for _, loop in runs)
        if runs and (runs[0][1].finished or self._group.any(due)):
            self._save(level)

    def _save(self, level: Sequence[int]) -> None:
        """Write a checkpoint of each run, so that they stay level when they are interrupted."""
        for run, loop in self._among(level):
            with self._of(run):
                loop.save()

    def _end(self, level: Sequence[int]) -> None:
        for run, loop in self._among(level):
            outcome = None
            with self._of(run):
                outcome = self._finish(run, loop.finish())
            if outcome is not None:
                del self._loops[run]
                self._ended(run, outcome)

    # -- errors ----------------------------------------------------------------------------------

    @contextmanager
    def _of(self, run: int) -> Iterator[None]:
        """An error inside ends the run, unless the cohort's size is to blame."""
        try:
            with explain_out_of_memory(self._group.world, self._most, len(self._loops)):
                yield
        except TooManyTogetherError:
            raise
        except Exception as error:
            del self._loops[run]
            self._ended(run, error)

    @contextmanager
    def _of_all(self, level: Sequence[int]) -> Iterator[None]:
        """An error inside ends a single run; of several, each must meet it by itself."""
        runs = self._among(level)
        if len(self._loops) == 1 and runs:
            with self._of(runs[0][0]):
                yield
            return
        try:
            with explain_out_of_memory(self._group.world, self._most, len(self._loops)):
                yield
        except TooManyTogetherError:
            raise
        except Exception as error:
            raise TooManyTogetherError(f"their common input fails ({error})") from error


def _place(position: Position) -> tuple[int, int]:
    return position.epoch, position.step

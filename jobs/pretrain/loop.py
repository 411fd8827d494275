"""The training loop: one for both objectives, pure torch, resumable at any batch.

Takes an objective, a source of batches, the schedule and a seed; gives the trained model and its
curves. The global batch is what the recipe says, whatever the workers: each takes its share, in
as many passes as it must. Every random draw comes from the seed and the position, so a run that
goes on from a checkpoint ends with the same weights, bit for bit on a CPU with as many workers (in
bf16 too: `jobs/__init__.py` keeps oneDNN from AMX).
Model, optimiser, schedule, average and mixing are timm's and open_clip's; this joins them. It knows
no Ray, no folder but its checkpoints', and nothing of other runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jobs.contract import StageError
from jobs.images.augment import mix
from jobs.images.spec import Augment, ImageInput
from jobs.images.training import seed_torch, training_input
from jobs.pretrain.checkpoint import Checkpoints, Point, Position, Progress
from jobs.pretrain.data.part import Batch, Part, Source, Targets
from jobs.pretrain.distributed import Agreed, Group, Meeting
from jobs.pretrain.nonfinite import Faults, out_of_memory
from jobs.pretrain.objectives.objective import Objective, Scored
from jobs.pretrain.optimizer import (
    lay_out_like_parameters,
    make_average,
    make_optimizer,
    make_scheduler,
)
from jobs.pretrain.precision import Precision
from jobs.pretrain.spec import OnNan, Resources, Schedule
from jobs.pretrain.telemetry import Row, Telemetry


class StoppedError(Exception):
    """The run was asked to stop; its last checkpoint is at the very batch."""


@dataclass(frozen=True)
class Watch:
    """How a run talks while it trains. Only the first worker's is heard."""

    say: Callable[[float, str], None] = lambda share, words: None  # in [0, 1]
    stopping: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Pace:
    """When checkpoints are taken: at segment ends that are worth it, and by time anywhere."""

    minutes: float = 10  # at most this long without one
    time_share: float = 0.02  # segment ends wait until writing costs no more of the time than this


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    model: nn.Module  # the weights' moving average where the schedule has one
    curves: tuple[Point, ...]
    updates: int
    images_per_s: float  # of this process's own steps, over all workers; 0 when it took none
    skipped: int = 0  # updates left out for a loss that was not finite
    overflows: int = 0  # and for fp16 gradients that overflowed their scale
    telemetry: tuple[Row, ...] = ()


@contextmanager
def settled(threads: int) -> Iterator[None]:
    """Fixed threads and deterministic kernels, put back at the end."""
    before = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filling: Any = torch.utils.deterministic  # its types do not know the setting
    fill = filling.fill_uninitialized_memory
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Else every new tensor is first filled with NaN, which finds faults and costs a pass.
    filling.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        filling.fill_uninitialized_memory = fill


class Loop:
    """One run of one worker group."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        source: Source,
        validation: Part,
        checkpoints: Checkpoints,
        *,
        schedule: Schedule,
        model_input: ImageInput,
        augment: Augment,
        seed: int,
        group: Group,
        resources: Resources | None = None,
        on_nan: OnNan = "stop",
        telemetry_steps: int = 50,
        pace: Pace | None = None,
        watch: Watch | None = None,
    ) -> None:
        """`model` is at its initial weights; it is trained in place.

        Raises StageError when the workers cannot share the batch out evenly.
        """
        if source.batch_size % group.world:
            raise StageError(
                f"schedule.batch_size {source.batch_size} cannot be shared evenly by "
                f"{group.world} workers; change `pretrain.resources.workers`"
            )
        resources = resources or Resources()
        self._objective, self._source, self._validation = objective, source, validation
        self._checkpoints, self._schedule, self._group = checkpoints, schedule, group
        self._input, self._augment, self._seed = model_input, augment, seed
        self._most = resources.images_per_pass or source.batch_size
        self._layout = torch.channels_last if resources.channels_last else torch.contiguous_format
        self._pace, self._watch = pace or Pace(), watch or Watch()
        self._spent = (0, 0.0)  # updates, and the seconds they took
        self._written, self._write_seconds = time.monotonic(), 0.0
        # Of the epoch so far. Rows: clean, flipped; columns: rows, loss, as noisy, as clean.
        self._sums = torch.zeros(2, 4, dtype=torch.float64, device=group.device)
        self._room: Tensor | None = None
        self._progress = Progress()
        self._bare = model.to(group.device)
        if resources.channels_last:
            self._bare.to(memory_format=torch.channels_last)
        groups = objective.parameter_groups(self._bare, schedule.weight_decay)
        self._optimizer = make_optimizer(schedule, groups)
        self._scheduler = make_scheduler(schedule, self._optimizer, source.steps_per_epoch)
        self._average = make_average(schedule, self._bare)
        self._precision = Precision(schedule.precision, group.device)
        self._faults = Faults(self._bare, on_nan, checkpoints.last_good)
        self._meeting = Meeting(group, late=on_nan == "stop")
        self._total = schedule.epochs * source.steps_per_epoch
        self._telemetry = Telemetry(telemetry_steps, self._total, source.batch_size, group.device)
        inner: Any = torch.compile(self._bare) if resources.compile else self._bare
        self._model = group.wrap(inner)

    def train(self) -> Trained:
        """Train from the last checkpoint, if there is one, to the end.

        Raises StageError for a loss or weights that are not finite and for memory that does not
        suffice, StoppedError when asked to stop.
        """
        self._resume()
        with out_of_memory(self._group.world, self._most):
            while self._progress.position.epoch < self._schedule.epochs:
                self._epoch()
            self._checkpoints.join()
        images = self._spent[0] * self._source.batch_size
        speed = images / self._spent[1] if self._spent[1] else 0.0
        done = self._progress
        return Trained(
            self._kept,
            done.curves,
            done.position.updates,
            speed,
            self._faults.skipped,
            self._precision.overflows,
            tuple(self._telemetry.rows),
        )

    @property
    def _kept(self) -> nn.Module:
        """The weights that are evaluated and kept."""
        average: nn.Module | None = None if self._average is None else self._average.module
        return self._bare if average is None else average

    # -- an epoch --------------------------------------------------------------------------------

    def _epoch(self) -> None:
        start = self._progress.position
        self._model.train()
        self._telemetry.restart()
        batches = self._source.batches(start.epoch, start.step, self._group)
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                break
            self._telemetry.waited(time.monotonic() - asked)
            position = self._progress.position
            agreed = self._update(batch, position)
            self._spent = (self._spent[0] + 1, self._spent[1] + time.monotonic() - asked)
            position = Position(position.epoch, position.step + 1, position.updates + 1)
            self._progress = Progress(position, curves=self._progress.curves)
            self._checkpoints.check()
            if agreed.stop:
                self._save()
                self._checkpoints.join()
                raise StoppedError
            if agreed.due and position.step < self._source.steps_per_epoch:
                self._save()
        self._faults.check(self._meeting.flush())
        self._close_epoch()

    def _update(self, batch: Batch, position: Position) -> Agreed:
        """One batch; what the workers agreed on, of this update or (on a GPU) the one before."""
        self._scheduler.step_update(position.updates)
        self._optimizer.zero_grad(set_to_none=True)
        images, targets = self._inputs(batch, position)
        self._faults.before_pass()
        scored = self._objective.step(self._model, images, targets, self._most, self._precision)
        agreed = self._meet(scored, batch.ends_segment, position)
        self._faults.check(agreed)
        update = position.updates + 1
        recorded = self._telemetry.due(update)
        norm: Tensor | None = None
        if recorded or self._schedule.clip_grad_norm is not None or self._faults.skips:
            clip = self._schedule.clip_grad_norm
            norm = self._precision.norm(self._optimizer, self._bare, clip)
        if self._faults.leave_out(agreed, None if self._precision.scales else norm):
            self._precision.leave_out()
            return agreed
        self._precision.update(self._optimizer)
        self._objective.after_update(self._bare)
        if self._average is not None:
            self._average.update(self._bare, step=update)
        self._count(scored, targets)
        if recorded and norm is not None:
            loss = self._group.total(scored.losses.double().mean()).item() / self._group.world
            rate = self._optimizer.param_groups[-1]["lr"]
            self._telemetry.record(update, loss, rate, norm.item())
        if agreed.update:
            self._say(position, agreed.loss)
        return agreed

    def _inputs(self, batch: Batch, position: Position) -> tuple[Tensor, Targets]:
        """Augmented, normalised, mixed; torch's generators as a function of where the run is."""
        images = training_input(batch.images, self._input, self._augment, batch.hashes, self._room)
        if self._group.device.type == "cpu":
            self._room = images  # for the next update, when nobody reads this one's any more
        # Of the run and the update, for draws that all workers share; mixed again for those
        # of a worker's own.
        drawn = _step_seed(self._seed, position.updates)
        images, targets = self._objective.mix(images, batch.targets, drawn)
        seed_torch(_worker_seed(drawn, self._group.rank), self._group.device)  # dropout, say
        return images.contiguous(memory_format=self._layout), targets

    def _meet(self, scored: Scored, segment_ended: bool, position: Position) -> Agreed:
        """The global batch's mean loss, whether to stop and whether a checkpoint is due.

        The same on all workers: the first one's wishes count.
        """
        stop = self._group.writes and self._watch.stopping()
        due = self._group.writes and self._due(segment_ended)
        loss = scored.losses.double().mean() / self._group.world
        return self._meeting.exchange(position.updates + 1, position.epoch + 1, loss, stop, due)

    def _say(self, position: Position, loss: float) -> None:
        done = position.updates + 1
        words = f"epoch {position.epoch + 1}/{self._schedule.epochs} loss {loss:.3f}"
        self._watch.say(done / self._total, words + self._telemetry.pace(done))

    def _count(self, scored: Scored, targets: Targets) -> None:
        columns = (
            torch.ones_like(scored.losses),
            scored.losses,
            scored.as_noisy,
            scored.as_clean,
        )
        values = torch.stack([column.double() for column in columns], dim=1)
        self._sums += torch.stack([~targets.flipped, targets.flipped]).double() @ values

    def _close_epoch(self) -> None:
        """Evaluate, add to the curves, start the next epoch, checkpoint."""
        kept = self._kept
        self._align()
        self._bare.eval()
        epoch = self._progress.position.epoch + 1
        measured = _train_measures(self._group.total(self._sums).tolist())
        measured.update(self._objective.evaluate(kept, self._validation, self._group))
        points = tuple(Point(name, epoch, value) for name, value in measured.items())
        position = Position(epoch, 0, self._progress.position.updates)
        self._progress = Progress(position, curves=(*self._progress.curves, *points))
        self._sums.zero_()
        if (
            self._group.any(self._group.writes and self._due(True))
            or epoch == self._schedule.epochs
        ):
            self._save()

    # -- checkpoints -----------------------------------------------------------------------------

    def _resume(self) -> None:
        checkpoint = self._checkpoints.latest()
        if checkpoint is None:
            return
        checkpoint.restore(self._bare, self._optimizer)
        lay_out_like_parameters(self._optimizer)
        self._progress = checkpoint.progress
        self._faults.restore(self._progress.skipped)
        self._telemetry.restore(self._progress.telemetry)
        self._precision.restore(checkpoint.extra("scaler"))
        if self._average is not None:
            self._average.module.load_state_dict(checkpoint.extra("average"))
        if self._progress.sums and self._group.writes:  # they are of all workers together
            self._sums += torch.tensor(self._progress.sums, dtype=torch.float64).to(self._sums)

    def _due(self, segment_ended: bool) -> bool:
        since = time.monotonic() - self._written
        worth = segment_ended and self._write_seconds <= self._pace.time_share * since
        return worth or since > 60 * self._pace.minutes

    def _save(self) -> None:
        self._align()
        sums = self._group.total(self._sums)
        if self._group.writes:
            started = time.monotonic()
            progress = Progress(
                self._progress.position,
                tuple(tuple(row) for row in sums.tolist()),
                self._progress.curves,
                tuple(self._telemetry.rows),
                (self._faults.skipped, self._faults.in_a_row),
            )
            extras = {"scaler": self._precision.state()}
            if self._average is not None:
                extras["average"] = self._average.module.state_dict()
            self._checkpoints.save(self._bare, self._optimizer, progress, extras)
            self._written = time.monotonic()
            self._write_seconds = max(self._written - started, self._checkpoints.seconds)

    def _align(self) -> None:
        self._group.align(self._bare)
        if self._average is not None:
            self._group.align(self._average.module)


def _step_seed(seed: int, updates: int) -> int:
    """The seed of one update's draws, of all workers, below 2^64."""
    return int(mix(np.array([seed], np.uint64), updates)[0])


def _worker_seed(step_seed: int, rank: int) -> int:
    """The seed of one worker's draws in one step, below 2^63."""
    return int(mix(np.array([step_seed], np.uint64), rank)[0] >> np.uint64(1))


def _train_measures(sums: list[list[float]]) -> dict[str, float]:
    """An epoch's training measures, apart for clean and flipped rows; none for no rows."""
    measures = {}
    for name, (rows, loss, as_noisy, as_clean) in zip(("clean", "flipped"), sums, strict=True):
        if rows:
            measures[f"train_loss_{name}"] = loss / rows
            measures[f"train_accuracy_{name}"] = 100 * as_noisy / rows
            if name == "flipped":
                measures["train_recovered_percent"] = 100 * as_clean / rows
    return measures

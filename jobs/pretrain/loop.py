"""The training loop: one for both objectives, pure torch, resumable at any batch.

Takes an objective, a source of batches, the schedule and a seed; gives the trained model and its
curves. The global batch is the recipe's for any number of workers: each takes its share, in as many
passes as needed. Every random draw comes from the seed and the position, so a run that
resumes from a checkpoint ends with the same weights, bit for bit on a CPU with as many workers (in
bf16 too: `jobs/__init__.py` keeps oneDNN from AMX).
Model, optimizer, schedule, average and mixing are timm's and open_clip's; this combines them. It
knows no Ray, no folder but its checkpoints', and no other runs.
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
from jobs.pretrain.damaged import DamagedImages
from jobs.pretrain.data.part import Batch, Part, Source, Targets
from jobs.pretrain.distributed import Agreed, DistributedGroup, Synchronizer
from jobs.pretrain.nonfinite import NonFiniteGuard, explain_out_of_memory
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
    """The run was asked to stop; its last checkpoint is at the last batch."""


@dataclass(frozen=True)
class Watch:
    """Callbacks of a running training. Only the first worker's are called."""

    on_progress: Callable[[float, str], None] = lambda share, message: None  # share in [0, 1]
    stopping: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Pace:
    """When to write checkpoints: at segment ends if cheap, and anywhere after some minutes."""

    minutes: float = 10  # longest time without one
    time_share: float = 0.02  # at segment ends: largest share of time for writing


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    model: nn.Module  # the weights' moving average if the schedule has one
    curves: tuple[Point, ...]
    updates: int
    images_per_s: float  # of all workers, over this process's steps; 0 without any
    skipped: int = 0  # updates skipped for a loss that was not finite
    overflows: int = 0  # updates skipped for overflowing fp16 gradients
    telemetry: tuple[Row, ...] = ()
    damaged: int = 0  # images that could not be decoded


@contextmanager
def deterministic_torch(threads: int) -> Iterator[None]:
    """Set a fixed number of threads and deterministic kernels; restore both at the end."""
    before = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filling: Any = torch.utils.deterministic  # its types lack the setting
    fill = filling.fill_uninitialized_memory
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Otherwise torch fills every new tensor with NaN first, which takes time.
    filling.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        filling.fill_uninitialized_memory = fill


class Loop:
    """One run on one worker of a distributed group."""

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
        group: DistributedGroup,
        resources: Resources | None = None,
        on_nan: OnNan = "stop",
        max_damaged: int = 0,
        telemetry_steps: int = 50,
        pace: Pace | None = None,
        watch: Watch | None = None,
    ) -> None:
        """`model` has its initial weights; it is trained in place.

        Raises StageError when the batch is no multiple of the number of workers.
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
        # Sums of the epoch so far. Rows: clean, flipped; columns: rows, loss, as noisy, as clean.
        self._sums = torch.zeros(2, 4, dtype=torch.float64, device=group.device)
        self._buffer: Tensor | None = None
        self._progress = Progress()
        self._bare = model.to(group.device)
        if resources.channels_last:
            self._bare.to(memory_format=torch.channels_last)
        groups = objective.parameter_groups(self._bare, schedule.weight_decay)
        self._optimizer = make_optimizer(schedule, groups)
        self._scheduler = make_scheduler(schedule, self._optimizer, source.steps_per_epoch)
        self._average = make_average(schedule, self._bare)
        self._precision = Precision(schedule.precision, group.device)
        self._guard = NonFiniteGuard(self._bare, on_nan, checkpoints.last_good)
        self._damaged = DamagedImages(group, max_damaged, (source.damaged, validation.damaged))
        self._synchronizer = Synchronizer(group, late=on_nan == "stop")
        self._total = schedule.epochs * source.steps_per_epoch
        self._telemetry = Telemetry(telemetry_steps, self._total, source.batch_size, group.device)
        inner: Any = torch.compile(self._bare) if resources.compile else self._bare
        self._model = group.wrap(inner)

    def train(self) -> Trained:
        """Train from the last checkpoint, if there is one, to the end.

        Raises StageError for a loss or weights that are not finite and when memory runs out,
        StoppedError when asked to stop.
        """
        self._resume()
        self._damaged.check()
        with explain_out_of_memory(self._group.world, self._most):
            while self._progress.position.epoch < self._schedule.epochs:
                self._train_epoch()
            self._checkpoints.join()
        images = self._spent[0] * self._source.batch_size
        speed = images / self._spent[1] if self._spent[1] else 0.0
        done = self._progress
        return Trained(
            self._final_model,
            done.curves,
            done.position.updates,
            speed,
            self._guard.skipped,
            self._precision.overflows,
            tuple(self._telemetry.rows),
            len(self._damaged.check()),
        )

    @property
    def _final_model(self) -> nn.Module:
        """The model that is evaluated and stored."""
        average: nn.Module | None = None if self._average is None else self._average.module
        return self._bare if average is None else average

    # -- an epoch --------------------------------------------------------------------------------

    def _train_epoch(self) -> None:
        start = self._progress.position
        self._model.train()
        self._telemetry.restart()
        batches = self._source.batches(start.epoch, start.step, self._group)
        while True:
            started = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                break
            self._telemetry.waited(time.monotonic() - started)
            position = self._progress.position
            agreed = self._update(batch, position)
            self._spent = (self._spent[0] + 1, self._spent[1] + time.monotonic() - started)
            position = Position(position.epoch, position.step + 1, position.updates + 1)
            self._progress = Progress(position, curves=self._progress.curves)
            self._checkpoints.check()
            self._damaged.check_own()
            if agreed.stop:
                self._save()
                self._checkpoints.join()
                raise StoppedError
            if agreed.due and position.step < self._source.steps_per_epoch:
                self._save()
        self._guard.check(self._synchronizer.flush())
        self._end_epoch()

    def _update(self, batch: Batch, position: Position) -> Agreed:
        """Train on one batch; the workers' state of this update or (on a GPU) the previous one."""
        self._scheduler.step_update(position.updates)
        self._optimizer.zero_grad(set_to_none=True)
        images, targets = self._make_inputs(batch, position)
        self._guard.save_buffers()
        scored = self._objective.step(self._model, images, targets, self._most, self._precision)
        agreed = self._synchronize(scored, batch.ends_segment, position)
        self._guard.check(agreed)
        update = position.updates + 1
        recorded = self._telemetry.due(update)
        norm: Tensor | None = None
        if recorded or self._schedule.clip_grad_norm is not None or self._guard.skips:
            clip = self._schedule.clip_grad_norm
            norm = self._precision.norm(self._optimizer, self._bare, clip)
        if self._guard.skip_update(agreed, None if self._precision.scales else norm):
            self._precision.skip_update()
            return agreed
        self._precision.update(self._optimizer)
        self._objective.after_update(self._bare)
        if self._average is not None:
            self._average.update(self._bare, step=update)
        self._add_to_sums(scored, targets)
        if recorded and norm is not None:
            loss = self._group.total(scored.losses.double().mean()).item() / self._group.world
            rate = self._optimizer.param_groups[-1]["lr"]
            self._telemetry.record(update, loss, rate, norm.item())
        if agreed.update:
            self._report_progress(position, agreed.loss)
        return agreed

    def _make_inputs(self, batch: Batch, position: Position) -> tuple[Tensor, Targets]:
        """Augment, normalise and mix the batch; seed torch's generators for the forward pass."""
        images = training_input(
            batch.images, self._input, self._augment, batch.hashes, self._buffer
        )
        if self._group.device.type == "cpu":
            self._buffer = images  # reused by the next update, when this one is done
        # The seed of the draws that all workers share; mixed again for a worker's own draws.
        step_seed = _step_seed(self._seed, position.updates)
        images, targets = self._objective.mix(images, batch.targets, step_seed)
        # For dropout and the like.
        seed_torch(_worker_seed(step_seed, self._group.rank), self._group.device)
        return images.contiguous(memory_format=self._layout), targets

    def _synchronize(self, scored: Scored, segment_ended: bool, position: Position) -> Agreed:
        """The global batch's mean loss, whether to stop and whether to write a checkpoint.

        Equal on all workers; the first worker decides.
        """
        stop = self._group.writes and self._watch.stopping()
        due = self._group.writes and self._due(segment_ended)
        loss = scored.losses.double().mean() / self._group.world
        return self._synchronizer.exchange(
            position.updates + 1, position.epoch + 1, loss, stop, due
        )

    def _report_progress(self, position: Position, loss: float) -> None:
        done = position.updates + 1
        message = f"epoch {position.epoch + 1}/{self._schedule.epochs} loss {loss:.3f}"
        self._watch.on_progress(done / self._total, message + self._telemetry.pace(done))

    def _add_to_sums(self, scored: Scored, targets: Targets) -> None:
        columns = (
            torch.ones_like(scored.losses),
            scored.losses,
            scored.as_noisy,
            scored.as_clean,
        )
        values = torch.stack([column.double() for column in columns], dim=1)
        self._sums += torch.stack([~targets.flipped, targets.flipped]).double() @ values

    def _end_epoch(self) -> None:
        """Evaluate, add to the curves, move on to the next epoch, write a checkpoint if due."""
        kept = self._final_model
        self._align()
        self._bare.eval()
        epoch = self._progress.position.epoch + 1
        measured = _train_measures(self._group.total(self._sums).tolist())
        measured.update(self._objective.evaluate(kept, self._validation, self._group))
        self._damaged.check()
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
        self._guard.restore(self._progress.skipped)
        self._damaged.restore(self._progress.damaged)
        self._telemetry.restore(self._progress.telemetry)
        self._precision.restore(checkpoint.extra("scaler"))
        if self._average is not None:
            self._average.module.load_state_dict(checkpoint.extra("average"))
        if self._progress.sums and self._group.writes:  # they are sums over all workers
            self._sums += torch.tensor(self._progress.sums, dtype=torch.float64).to(self._sums)

    def _due(self, segment_ended: bool) -> bool:
        since = time.monotonic() - self._written
        cheap = segment_ended and self._write_seconds <= self._pace.time_share * since
        return cheap or since > 60 * self._pace.minutes

    def _save(self) -> None:
        self._align()
        sums, damaged = self._group.total(self._sums), self._damaged.check()
        if self._group.writes:
            started = time.monotonic()
            progress = Progress(
                self._progress.position,
                tuple(tuple(row) for row in sums.tolist()),
                self._progress.curves,
                tuple(self._telemetry.rows),
                (self._guard.skipped, self._guard.in_a_row),
                damaged,
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
    """The seed of the draws that all workers share in one update, below 2^64."""
    return int(mix(np.array([seed], np.uint64), updates)[0])


def _worker_seed(step_seed: int, rank: int) -> int:
    """The seed of one worker's own draws in one update, below 2^63."""
    return int(mix(np.array([step_seed], np.uint64), rank)[0] >> np.uint64(1))


def _train_measures(sums: list[list[float]]) -> dict[str, float]:
    """An epoch's training measures, separate for clean and flipped rows; none without rows."""
    measures = {}
    for name, (rows, loss, as_noisy, as_clean) in zip(("clean", "flipped"), sums, strict=True):
        if rows:
            measures[f"train_loss_{name}"] = loss / rows
            measures[f"train_accuracy_{name}"] = 100 * as_noisy / rows
            if name == "flipped":
                measures["train_recovered_percent"] = 100 * as_clean / rows
    return measures

"""The training loop of one run: one for both objectives, pure torch, resumable at any batch.

Takes a model, an objective, the schedule and a seed; takes updates on inputs that `cohort.py` gives
it, and has the trained model and its curves at the end. The global batch is the recipe's for any
number of workers: each takes its share, in as many passes as needed. Every random draw comes from
the seed and the position, so a run that resumes from a checkpoint, or has others beside it, ends
with the same weights, bit for bit on a CPU with as many workers (in bf16 too: `jobs/__init__.py`
keeps oneDNN from AMX).
Model, optimizer, schedule, average and mixing are timm's and open_clip's; this combines them. It
knows no Ray, no folder but its checkpoints', and no other runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jobs.contract import StageError
from jobs.images.training import seed_torch
from jobs.pretrain.checkpoint import Checkpoints, Point, Position, Progress
from jobs.pretrain.damaged import DamagedImages
from jobs.pretrain.data.part import Part, Source, Targets
from jobs.pretrain.distributed import Agreed, DistributedGroup, Synchronizer
from jobs.pretrain.inputs import worker_seed
from jobs.pretrain.nonfinite import NonFiniteGuard
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
    # Of all workers, over this process's steps and its share of their time; 0 without any.
    images_per_s: float
    skipped: int = 0  # updates skipped for a loss that was not finite
    overflows: int = 0  # updates skipped for overflowing fp16 gradients
    telemetry: tuple[Row, ...] = ()
    damaged: int = 0  # images that could not be decoded


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
        seed: int,
        group: DistributedGroup,
        resources: Resources | None = None,
        on_nan: OnNan = "stop",
        max_damaged: int = 0,
        telemetry_steps: int = 50,
        pace: Pace | None = None,
        watch: Watch | None = None,
        remark: str = "",
    ) -> None:
        """`model` has its initial weights; it is trained in place. `remark` ends each message.

        Raises StageError when the batch is no multiple of the number of workers.
        """
        if source.batch_size % group.world:
            raise StageError(
                f"pretrain.recipe.schedule.batch_size {source.batch_size} cannot be shared evenly "
                f"by {group.world} workers; change `pretrain.resources.workers`"
            )
        resources = resources or Resources()
        self._objective, self._source, self._seed = objective, source, seed
        self._checkpoints, self._schedule, self._group = checkpoints, schedule, group
        self._most = resources.images_per_pass or source.batch_size
        self._pace, self._watch, self._remark = pace or Pace(), watch or Watch(), remark
        self._spent = (0, 0.0)  # updates, and the seconds they took
        self._written, self._write_seconds = time.monotonic(), 0.0
        # Sums of the epoch so far. Rows: clean, flipped; columns: rows, loss, as noisy, as clean.
        self._sums = torch.zeros(2, 4, dtype=torch.float64, device=group.device)
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

    @property
    def position(self) -> Position:
        """How far the run is."""
        return self._progress.position

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.position.epoch == self._schedule.epochs

    def resume(self) -> None:
        """Continue from the last checkpoint, if there is one."""
        checkpoint = self._checkpoints.latest()
        if checkpoint is not None:
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
        self._damaged.check()

    def finish(self) -> Trained:
        """The finished run, when its last checkpoint is written."""
        self._checkpoints.join()
        images = self._spent[0] * self._source.batch_size
        speed = images / self._spent[1] if self._spent[1] else 0.0
        return Trained(
            self._final_model,
            self._progress.curves,
            self.position.updates,
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

    def begin(self) -> None:
        """Begin an epoch, or continue within one."""
        self._model.train()
        self._telemetry.restart()

    def waited(self, seconds: float, beside: int) -> None:
        """Note the wait for the coming batch, and how many runs share this worker's time."""
        self._telemetry.waited(seconds, beside)

    def spent(self, seconds: float) -> None:
        """Note this run's share of the time that the last batch took."""
        self._spent = (self._spent[0] + 1, self._spent[1] + seconds)

    def update(self, images: Tensor, targets: Targets, ends_segment: bool) -> Agreed:
        """Train on a batch; the workers' state of this update or (on a GPU) the previous one.

        Leaves `images` as they are. Raises StageError for a loss that is not finite.
        """
        position = self.position
        # For dropout and the like.
        seed = worker_seed(self._seed, position.updates, self._group.rank)
        seed_torch(seed, self._group.device)
        agreed = self._step(images, targets, ends_segment, position)
        self._optimizer.zero_grad(set_to_none=True)  # the runs beside this one take the memory
        position = Position(position.epoch, position.step + 1, position.updates + 1)
        self._progress = Progress(position, curves=self._progress.curves)
        self._checkpoints.check()
        self._damaged.check_own()
        return agreed

    def _step(
        self, images: Tensor, targets: Targets, ends_segment: bool, position: Position
    ) -> Agreed:
        self._scheduler.step_update(position.updates)
        self._guard.save_buffers()
        scored = self._objective.step(self._model, images, targets, self._most, self._precision)
        agreed = self._synchronize(scored, ends_segment, position)
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

    def _synchronize(self, scored: Scored, segment_ended: bool, position: Position) -> Agreed:
        """The global batch's mean loss, whether to stop and whether to write a checkpoint.

        Equal on all workers; the first worker decides.
        """
        stop = self._group.writes and self._watch.stopping()
        due = self._group.writes and self.due(segment_ended)
        loss = scored.losses.double().mean() / self._group.world
        return self._synchronizer.exchange(
            position.updates + 1, position.epoch + 1, loss, stop, due
        )

    def _report_progress(self, position: Position, loss: float) -> None:
        done = position.updates + 1
        message = f"epoch {position.epoch + 1}/{self._schedule.epochs} loss {loss:.3f}"
        pace = self._telemetry.pace(done)
        self._watch.on_progress(done / self._total, f"{message}{pace}{self._remark}")

    def _add_to_sums(self, scored: Scored, targets: Targets) -> None:
        columns = (
            torch.ones_like(scored.losses),
            scored.losses,
            scored.as_noisy,
            scored.as_clean,
        )
        values = torch.stack([column.double() for column in columns], dim=1)
        self._sums += torch.stack([~targets.flipped, targets.flipped]).double() @ values

    def to_evaluate(self) -> nn.Module:
        """The model to evaluate when an epoch's last batch is done, in eval mode."""
        self._guard.check(self._synchronizer.flush())
        self._align()
        self._bare.eval()
        return self._final_model

    def end_epoch(self, validation: Mapping[str, float]) -> None:
        """Add the epoch's measures to the curves, and move on to the next epoch.

        Raises StageError for a measure that is not finite.
        """
        epoch = self.position.epoch + 1
        measured = _train_measures(self._group.total(self._sums).tolist()) | dict(validation)
        self._guard.check_epoch(measured, epoch)
        self._damaged.check()
        points = tuple(Point(name, epoch, value) for name, value in measured.items())
        position = Position(epoch, 0, self.position.updates)
        self._progress = Progress(position, curves=(*self._progress.curves, *points))
        self._sums.zero_()

    # -- checkpoints -----------------------------------------------------------------------------

    def join(self) -> None:
        """Wait until the last checkpoint is written."""
        self._checkpoints.join()

    def due(self, segment_ended: bool = True) -> bool:
        """Whether it is time for a checkpoint, by this worker's clock."""
        since = time.monotonic() - self._written
        cheap = segment_ended and self._write_seconds <= self._pace.time_share * since
        return cheap or since > 60 * self._pace.minutes

    def save(self) -> None:
        """Begin to write a checkpoint, in a thread. All workers must call this."""
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

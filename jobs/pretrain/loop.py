"""The training loop: one for both objectives, pure torch, resumable at any batch.

Takes an objective, a source of batches, the schedule and a seed; gives the trained model and its
curves. The global batch is what the recipe says, whatever the workers: each takes its share, in
as many passes as it must. Every random draw comes from the seed and the position, so a run that
goes on from a checkpoint ends with the same weights, bit for bit on a CPU with as many workers.
It knows no Ray, no folder but its checkpoints', and nothing of other runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from timm.scheduler import CosineLRScheduler  # type: ignore[attr-defined]
from torch import nn
from torch.optim import Optimizer

from jobs.contract import StageError
from jobs.pretrain.augment import augment, draws, mix
from jobs.pretrain.checkpoint import Checkpoints, Point, Position, Progress
from jobs.pretrain.data import Batch, Part, Source, Targets
from jobs.pretrain.group import Group
from jobs.pretrain.objective import Objective, Scored
from jobs.pretrain.pixels import normalise, unit_range
from jobs.pretrain.spec import Augment, ImageInput, Schedule

WARMUP_START = 0.01  # share of the learning rate that a warm-up starts from

_CLEAN, _FLIPPED = 0, 1  # rows of the running sums; columns: rows, loss, as noisy, as clean


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

    model: nn.Module
    curves: tuple[Point, ...]
    updates: int
    images_per_s: float  # of this process's own steps, over all workers; 0 when it took none


@contextmanager
def settled(threads: int) -> Iterator[None]:
    """Fixed threads and deterministic kernels, put back at the end."""
    before = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


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
        image: ImageInput,
        augment: Augment,
        seed: int,
        group: Group,
        images_per_pass: int | None = None,
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
        self._objective, self._source, self._validation = objective, source, validation
        self._checkpoints, self._schedule, self._group = checkpoints, schedule, group
        self._image, self._augment, self._seed = image, augment, seed
        self._most = images_per_pass or source.batch_size
        self._pace, self._watch = pace or Pace(), watch or Watch()
        self._spent = (0, 0.0)  # updates, and the seconds they took
        self._written, self._write_seconds = time.monotonic(), 0.0
        self._sums = torch.zeros(2, 4, dtype=torch.float64, device=group.device)
        self._progress = Progress()
        self._bare = model.to(group.device)
        self._optimizer = self._make_optimizer()
        self._scheduler = self._make_scheduler()
        self._model = group.wrap(self._bare)

    def train(self) -> Trained:
        """Train from the last checkpoint, if there is one, to the end.

        Raises StageError for a loss or weights that are not finite, StoppedError when asked to
        stop.
        """
        self._resume()
        while self._progress.position.epoch < self._schedule.epochs:
            self._epoch()
        self._checkpoints.join()
        images = self._spent[0] * self._source.batch_size
        speed = images / self._spent[1] if self._spent[1] else 0.0
        done = self._progress
        return Trained(self._bare, done.curves, done.position.updates, speed)

    # -- an epoch --------------------------------------------------------------------------------

    def _epoch(self) -> None:
        start = self._progress.position
        self._model.train()
        for batch in self._source.batches(start.epoch, start.step, self._group):
            position = self._progress.position
            stop, due = self._update(batch, position)
            position = Position(position.epoch, position.step + 1, position.updates + 1)
            self._progress = Progress(position, curves=self._progress.curves)
            self._checkpoints.check()
            if stop:
                self._save()
                self._checkpoints.join()
                raise StoppedError
            if due and position.step < self._source.steps_per_epoch:
                self._save()
        self._close_epoch()

    def _update(self, batch: Batch, position: Position) -> tuple[bool, bool]:
        """One batch; whether to stop after it, and whether a checkpoint is due."""
        started = time.monotonic()
        # A draw inside the model (dropout, say) is a function of where the run is.
        torch.manual_seed(_step_seed(self._seed, position.updates, self._group.rank))
        self._scheduler.step_update(position.updates)
        self._optimizer.zero_grad(set_to_none=True)
        images = augment(unit_range(batch.images), self._augment, draws(batch.hashes))
        images = normalise(images, self._image)
        scored = self._objective.step(self._model, images, batch.targets, self._most)
        loss, stop, due = self._meet(scored, batch.ends_segment)
        if not math.isfinite(loss):
            raise StageError(
                f"the loss is {loss} at update {position.updates + 1} (epoch "
                f"{position.epoch + 1}); {self._checkpoints.last_good()}; lower schedule.lr, "
                f"lengthen schedule.warmup_epochs or set schedule.clip_grad_norm"
            )
        if self._schedule.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._bare.parameters(), self._schedule.clip_grad_norm)
        self._optimizer.step()
        self._objective.after_update(self._bare)
        self._count(scored, batch.targets)
        self._spent = (self._spent[0] + 1, self._spent[1] + time.monotonic() - started)
        total = self._schedule.epochs * self._source.steps_per_epoch
        epochs = f"epoch {position.epoch + 1}/{self._schedule.epochs}"
        self._watch.say((position.updates + 1) / total, f"{epochs} loss {loss:.3f}")
        return stop, due

    def _meet(self, scored: Scored, segment_ended: bool) -> tuple[float, bool, bool]:
        """The global batch's mean loss, whether to stop and whether a checkpoint is due.

        The same on all workers: the first one's wishes count.
        """
        stop = self._group.writes and self._watch.stopping()
        due = self._group.writes and self._due(segment_ended)
        loss = scored.losses.double().mean().item() / self._group.world
        mine = torch.tensor([loss, float(stop), float(due)], dtype=torch.float64)
        agreed = self._group.total(mine).tolist()
        return agreed[0], agreed[1] > 0, agreed[2] > 0

    def _count(self, scored: Scored, targets: Targets) -> None:
        columns = (
            torch.ones_like(scored.losses),
            scored.losses,
            scored.as_noisy,
            scored.as_clean,
        )
        values = torch.stack([column.double() for column in columns], dim=1)
        flipped = targets.flipped.double().unsqueeze(1)
        self._sums[_FLIPPED] += (values * flipped).sum(dim=0)
        self._sums[_CLEAN] += (values * (1 - flipped)).sum(dim=0)

    def _close_epoch(self) -> None:
        """Evaluate, add to the curves, start the next epoch, checkpoint."""
        self._group.align(self._bare)
        self._bare.eval()
        epoch = self._progress.position.epoch + 1
        measured = _train_measures(self._group.total(self._sums).tolist())
        measured.update(self._objective.evaluate(self._bare, self._validation, self._group))
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
        self._progress = checkpoint.progress
        if self._progress.sums and self._group.writes:  # they are of all workers together
            self._sums += torch.tensor(self._progress.sums, dtype=torch.float64).to(self._sums)

    def _due(self, segment_ended: bool) -> bool:
        since = time.monotonic() - self._written
        worth = segment_ended and self._write_seconds <= self._pace.time_share * since
        return worth or since > 60 * self._pace.minutes

    def _save(self) -> None:
        self._group.align(self._bare)
        sums = self._group.total(self._sums)
        if self._group.writes:
            started = time.monotonic()
            rows = tuple(tuple(row) for row in sums.tolist())
            progress = Progress(self._progress.position, rows, self._progress.curves)
            self._checkpoints.save(self._bare, self._optimizer, progress)
            self._written = time.monotonic()
            self._write_seconds = max(self._written - started, self._checkpoints.seconds)

    # -- optimiser and schedule ------------------------------------------------------------------

    def _make_optimizer(self) -> Optimizer:
        schedule = self._schedule
        # One kernel for an update where torch has one: small models spend much of a step on it.
        fused: dict[str, Any] = {} if schedule.optimizer == "lamb" else {"fused": True}
        optimizer: Optimizer = create_optimizer_v2(
            self._bare,
            opt=schedule.optimizer,
            lr=schedule.lr,
            weight_decay=schedule.weight_decay,
            **fused,
        )
        return optimizer

    def _make_scheduler(self) -> CosineLRScheduler:
        """Linear warm-up, then half a cosine to 0 at the end, update by update."""
        schedule, steps = self._schedule, self._source.steps_per_epoch
        return CosineLRScheduler(
            self._optimizer,
            t_initial=schedule.epochs * steps,
            warmup_t=round(schedule.warmup_epochs * steps),
            warmup_lr_init=WARMUP_START * schedule.lr,
            t_in_epochs=False,
        )


def _step_seed(seed: int, updates: int, rank: int) -> int:
    """The seed of one worker's draws in one step, below 2^63."""
    return int(mix(mix(np.array([seed], np.uint64), updates), rank)[0] >> np.uint64(1))


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

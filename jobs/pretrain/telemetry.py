"""Telemetry: measures of a run within its epochs, one point every so many updates.

Takes the loop's measurements; gives two tables of (metric: string, step: int64 in updates, value:
float64). `telemetry.parquet` has the functions of the step (loss, learning rate, gradient norm),
`timings.parquet` those of the machine (images/s, share of time spent waiting for data, GPU memory).
Runs that train together share the time equally, so images/s is what each costs.
A run of any length has at most a thousand points of each metric: the distance between points is
doubled until they fit. Checkpoints keep the points of a resumed run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence

import pyarrow as pa
import torch

TELEMETRY = "telemetry.parquet"
TIMINGS = "timings.parquet"

MOST = 1000  # points of a metric

_OF_STEP = ("loss", "lr", "grad_norm")
_OF_MACHINE = ("images_per_s", "data_wait_percent", "gpu_memory_mb")

Row = tuple[float, ...]
"""The update, then the values of `_OF_STEP` and `_OF_MACHINE`."""


class Telemetry:
    """The points of one run, and the clock between them."""

    def __init__(self, every: int, updates: int, batch_size: int, device: torch.device) -> None:
        """`updates`: of the whole run; `batch_size`: the global one."""
        self._every, self._of_run = every, updates
        while updates // self._every > MOST:
            self._every *= 2
        self._batch_size, self._device = batch_size, device
        self._beside = 1
        self.rows: list[Row] = []
        self.speed = 0.0
        """Images/s over all workers, between the last two points, in this run's share of time."""
        self._since, self._waited, self._updates = time.monotonic(), 0.0, 0

    def pace(self, update: int) -> str:
        """Speed, and time left for training alone, after `update`; empty before the first point."""
        if not self.speed:
            return ""
        left = (self._of_run - update) * self._batch_size / self.speed * self._beside
        return f", {self.speed:,.0f} images/s, {_format_time(left)} left"

    def restore(self, rows: Iterable[Sequence[float]]) -> None:
        """Continue after the points of a checkpoint."""
        self.rows = [tuple(row) for row in rows]

    def due(self, update: int) -> bool:
        """Whether to record the update (counted from 1)."""
        return update % self._every == 0

    def waited(self, seconds: float, beside: int = 1) -> None:
        """Add the time that the loop waited for a batch, and count the batch's update.

        `beside`: runs that train on the batch one after another, each with an equal share of time.
        """
        self._beside = beside
        self._waited += seconds
        self._updates += 1

    def restart(self) -> None:
        """Restart the clock, which leaves out evaluation and checkpoints."""
        self._since, self._waited, self._updates = time.monotonic(), 0.0, 0

    def record(self, update: int, loss: float, lr: float, grad_norm: float) -> None:
        """Add a point, unless a value is not finite, as in an update that overflowed in fp16."""
        spent = max(time.monotonic() - self._since, 1e-9)
        self.speed = self._beside * self._updates * self._batch_size / spent
        memory = 0.0
        if self._device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(self._device) / 1e6
        share = min(100.0, 100 * self._waited / spent)
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.rows.append((update, loss, lr, grad_norm, self.speed, share, memory))
        self.restart()


def _format_time(seconds: float) -> str:
    """The time, rounded up: "40 s", "12 min" or "3 h 20 min"."""
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def tables(rows: Sequence[Row], on_gpu: bool) -> dict[str, pa.Table]:
    """The points as tables, by file name; GPU memory only on a GPU."""
    machine = _OF_MACHINE if on_gpu else _OF_MACHINE[:-1]
    first = 1 + len(_OF_STEP)
    return {
        TELEMETRY: _table(rows, _OF_STEP, 1),
        TIMINGS: _table(rows, machine, first),
    }


def _table(rows: Sequence[Row], names: Sequence[str], first: int) -> pa.Table:
    points = [
        (name, int(row[0]), row[column]) for column, name in enumerate(names, first) for row in rows
    ]
    metric, step, value = zip(*points, strict=True) if points else ((), (), ())
    return pa.table(
        {
            "metric": pa.array(metric, pa.string()),
            "step": pa.array(step, pa.int64()),
            "value": pa.array(value, pa.float64()),
        }
    )

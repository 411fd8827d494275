"""The workers of one run: which of them this process is, and what they agree on.

One worker needs no process group, so that everything but `job.py` runs and is tested in a plain
process. Only sums cross between workers: gradients (by DDP), statistics, and the wish to stop. On
a GPU what they agree on is read one update late, so that the host never waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Group:
    """This process among its run's workers."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    sharing: int = 1  # pre-training workers that a node's memory has to do for, at most

    @property
    def writes(self) -> bool:
        """Whether this worker is the one that writes files and reports."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum of the workers' tensors, the same bytes on all of them."""
        if self.world == 1:
            return values
        summed = values.to(self.device, copy=True)
        torch.distributed.all_reduce(summed)
        return summed.to(values.device)

    def any(self, flag: bool) -> bool:
        """Whether any worker says so; a meeting point of all of them."""
        return bool(self.total(torch.tensor(float(flag))).item())

    def first_error(self, error: str | None) -> str | None:
        """The error of the first worker that has one; a meeting point of all of them."""
        if self.world == 1:
            return error
        errors: list[str | None] = [None] * self.world
        torch.distributed.all_gather_object(errors, error)
        return next((each for each in errors if each is not None), None)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, its gradients averaged over the workers."""
        if self.world == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def align(self, model: nn.Module) -> None:
        """Give every worker the first one's buffers (batch statistics are each worker's own)."""
        if self.world > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def mine(self, rows: int) -> slice:
        """This worker's rows of a set that the workers share out."""
        return slice(self.rank, rows, self.world)


@dataclass(frozen=True)
class Agreed:
    """What all workers know of an update."""

    update: int = 0  # from 1; 0: of none yet
    epoch: int = 0  # from 1
    loss: float = 0.0  # the global batch's mean
    stop: bool = False
    due: bool = False  # a checkpoint


class Meeting:
    """Where workers agree, once an update."""

    def __init__(self, group: Group, late: bool) -> None:
        """`late`: on a GPU, an answer may be of the update before."""
        self._group, self._late = group, late and group.device.type == "cuda"
        self._pending: tuple[int, int, Tensor, torch.cuda.Event] | None = None

    def exchange(self, update: int, epoch: int, loss: Tensor, stop: bool, due: bool) -> Agreed:
        """Sum the workers' parts (`loss`: a scalar on the device) and give what is known."""
        device = self._group.device
        wishes = torch.tensor([float(stop), float(due)], dtype=torch.float64)
        if device.type == "cuda":
            wishes = wishes.pin_memory().to(device, non_blocking=True)
        mine = self._group.total(torch.cat([loss.double().reshape(1), wishes]))
        if not self._late:
            return _agreed(update, epoch, mine)
        before = self.flush()
        host = torch.empty(3, dtype=torch.float64, pin_memory=True)
        host.copy_(mine, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._pending = (update, epoch, host, event)
        return before

    def flush(self) -> Agreed:
        """What is not yet known, once it is."""
        if self._pending is None:
            return Agreed()
        update, epoch, host, event = self._pending
        self._pending = None
        event.synchronize()
        return _agreed(update, epoch, host)


def _agreed(update: int, epoch: int, summed: Tensor) -> Agreed:
    loss, stop, due = summed.tolist()
    return Agreed(update, epoch, loss, stop > 0, due > 0)


@contextmanager
def gradients_stay(model: nn.Module, stay: bool) -> Iterator[None]:
    """Inside, when `stay`: a backward pass is not yet averaged over the workers."""
    if stay and isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield

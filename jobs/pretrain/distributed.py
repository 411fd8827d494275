"""The distributed group of one run: this process's rank, and sums over all workers.

One worker needs no process group, so all modules but `job.py` run and are tested in a plain
process. Workers exchange only sums (gradients by DDP, statistics, requests to stop) and errors. On
a GPU a sum is read one update late, so the host never waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class DistributedGroup:
    """This process's rank among its run's workers, and its device."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    sharing: int = 1  # most pre-training workers that share the node's memory

    @property
    def writes(self) -> bool:
        """Whether this worker writes files and reports progress."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum of the workers' tensors, the same bytes on all of them."""
        if self.world == 1:
            return values
        summed = values.to(self.device, copy=True)
        torch.distributed.all_reduce(summed)
        return summed.to(values.device)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any worker. All workers must call this."""
        return bool(self.total(torch.tensor(float(flag))).item())

    def first_error(self, error: str | None) -> str | None:
        """The error of the first worker that has one. All workers must call this."""
        if self.world == 1:
            return error
        errors: list[str | None] = [None] * self.world
        torch.distributed.all_gather_object(errors, error)
        return next((each for each in errors if each is not None), None)

    def union(self, names: set[str]) -> set[str]:
        """The names of all workers. All workers must call this."""
        if self.world == 1:
            return names
        each: list[set[str]] = [set()] * self.world
        torch.distributed.all_gather_object(each, names)
        return set().union(*each)

    def least(self, number: int) -> int:
        """The smallest number of any worker. All workers must call this."""
        return min(int(each) for each in self.union({str(number)}))

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, with gradients averaged over the workers."""
        if self.world == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def align(self, model: nn.Module) -> None:
        """Copy the first worker's buffers to all (each worker has its own batch statistics)."""
        if self.world > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def mine(self, rows: int) -> slice:
        """This worker's share of a set of rows, as a slice."""
        return slice(self.rank, rows, self.world)


@dataclass(frozen=True)
class Agreed:
    """The state of an update, equal on all workers."""

    update: int = 0  # from 1; 0: of none yet
    epoch: int = 0  # from 1
    loss: float = 0.0  # the global batch's mean
    stop: bool = False
    due: bool = False  # whether to write a checkpoint


class Synchronizer:
    """Exchanges the loss and the requests of all workers, once an update."""

    def __init__(self, group: DistributedGroup, late: bool) -> None:
        """`late`: on a GPU, results may be of the previous update."""
        self._group, self._late = group, late and group.device.type == "cuda"
        self._pending: tuple[int, int, Tensor, torch.cuda.Event] | None = None

    def exchange(self, update: int, epoch: int, loss: Tensor, stop: bool, due: bool) -> Agreed:
        """Sum the workers' values (`loss`: a scalar on the device); the latest known result."""
        device = self._group.device
        requests = torch.tensor([float(stop), float(due)], dtype=torch.float64)
        if device.type == "cuda":
            requests = requests.pin_memory().to(device, non_blocking=True)
        mine = self._group.total(torch.cat([loss.double().reshape(1), requests]))
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
        """Wait for the pending result and return it; an empty one if nothing is pending."""
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
def no_gradient_sync(model: nn.Module, skip: bool) -> Iterator[None]:
    """With `skip`, backward passes inside do not average gradients over the workers yet."""
    if skip and isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield

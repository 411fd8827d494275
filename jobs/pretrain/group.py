"""The workers of one run: which of them this process is, and what they agree on.

One worker needs no process group, so that everything but `job.py` runs and is tested in a plain
process. Only sums cross between workers: gradients (by DDP), statistics, and the wish to stop.
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


@contextmanager
def gradients_stay(model: nn.Module, stay: bool) -> Iterator[None]:
    """Inside, when `stay`: a backward pass is not yet averaged over the workers."""
    if stay and isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield

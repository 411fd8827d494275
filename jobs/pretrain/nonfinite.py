"""What can go wrong in a step, and what becomes of it: losses that are not finite, memory.

A loss that is not finite ends the run with one sentence, or (`on_nan: skip`) its update is left out
and counted; weights, optimiser and batch statistics are then as if the batch had not been. Memory
that does not suffice is answered with the two remedies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from jobs.contract import StageError
from jobs.pretrain.distributed import Agreed
from jobs.pretrain.spec import OnNan

MOST_IN_A_ROW = 10
"""Updates that `skip` leaves out one after another before it gives the run up."""

_REMEDY = "lower schedule.lr, lengthen schedule.warmup_epochs or set schedule.clip_grad_norm"

_HOST_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc")  # torch's words


class Faults:
    """Updates that must not be taken."""

    def __init__(self, model: nn.Module, on_nan: OnNan, last_good: Callable[[], str]) -> None:
        """`last_good` says in words where the newest checkpoint lies."""
        self.skips = on_nan == "skip"
        self.skipped, self.in_a_row = 0, 0
        self._last_good = last_good
        self._buffers = [buffer for buffer in model.buffers() if self.skips]
        self._before: list[Tensor] = []

    def restore(self, skipped: tuple[int, int]) -> None:
        """Go on counting from a checkpoint."""
        self.skipped, self.in_a_row = skipped

    def before_pass(self) -> None:
        """Remember what a forward pass changes (batch statistics), where it may be undone."""
        self._before = [buffer.clone() for buffer in self._buffers]

    def check(self, agreed: Agreed) -> None:
        """Raises StageError for a loss that is not finite, unless such updates are left out."""
        if not self.skips and not math.isfinite(agreed.loss):
            raise StageError(
                f"the loss is {agreed.loss} at update {agreed.update} (epoch {agreed.epoch}); "
                f"{self._last_good()}; {_REMEDY}"
            )

    def leave_out(self, agreed: Agreed, norm: Tensor | None) -> bool:
        """Whether to leave the update out: its loss or its gradient's norm is not finite.

        Both are the same on all workers. Raises StageError after too many in a row.
        """
        if not self.skips:
            return False
        if math.isfinite(agreed.loss) and (norm is None or math.isfinite(norm.item())):
            self.in_a_row = 0
            return False
        self.skipped += 1
        self.in_a_row += 1
        with torch.no_grad():
            for buffer, before in zip(self._buffers, self._before, strict=True):
                buffer.copy_(before)
        if self.in_a_row >= MOST_IN_A_ROW:
            raise StageError(
                f"the loss or its gradient is not finite in {self.in_a_row} updates in a row, the "
                f"last of them {agreed.update} (epoch {agreed.epoch}), {self.skipped} in all; "
                f"{self._last_good()}; {_REMEDY}"
            )
        return True


@contextmanager
def out_of_memory(world: int, images_per_pass: int) -> Iterator[None]:
    """Inside, memory that runs out is said in one sentence.

    One worker's run ends with it (StageError). Of several, the others wait for this one in the
    middle of a step, so all of them must be ended from outside: RuntimeError.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        where = _where(error)
        if where is None:
            raise
        sentence = (
            f"{where} memory does not suffice for a pass of {images_per_pass} images; set "
            f"`pretrain.resources.images_per_pass` lower (the result stays the same batch's), or "
            f"use a smaller image.size or schedule.batch_size, or more `pretrain.resources.workers`"
        )
        raise (StageError if world == 1 else RuntimeError)(sentence) from error


def _where(error: BaseException) -> str | None:
    """Whose memory it is, None for another error."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's"
    if isinstance(error, MemoryError) or any(words in str(error) for words in _HOST_MEMORY):
        return "the machine's"
    return None

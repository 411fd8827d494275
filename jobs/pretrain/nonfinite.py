"""Handle errors of a training step: losses that are not finite, and memory that runs out.

A loss that is not finite ends the run with one sentence. With `on_nan: skip`, its update is skipped
and counted instead: weights, optimizer and batch statistics stay as before the batch. Running out
of memory raises an error with the remedies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from jobs.contract import StageError
from jobs.pretrain.checkpoint import LOWER_LR
from jobs.pretrain.distributed import Agreed
from jobs.pretrain.restarts import TooManyTogetherError
from jobs.pretrain.spec import OnNan

MOST_IN_A_ROW = 10
"""Updates that `skip` skips in a row before it ends the run."""


_HOST_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc")  # in torch's messages


class NonFiniteGuard:
    """Stops at, or skips, updates whose loss or gradient is not finite."""

    def __init__(self, model: nn.Module, on_nan: OnNan, last_good: Callable[[], str]) -> None:
        """`last_good` gives a clause that names the newest checkpoint."""
        self.skips = on_nan == "skip"
        self.skipped, self.in_a_row = 0, 0
        self._last_good = last_good
        self._buffers = [buffer for buffer in model.buffers() if self.skips]
        self._before: list[Tensor] = []

    def restore(self, skipped: tuple[int, int]) -> None:
        """Continue the counts of a checkpoint: in all, and in a row."""
        self.skipped, self.in_a_row = skipped

    def save_buffers(self) -> None:
        """Save what a forward pass changes (batch statistics), if updates may be skipped."""
        self._before = [buffer.clone() for buffer in self._buffers]

    def check(self, agreed: Agreed) -> None:
        """Raise StageError for a loss that is not finite, unless such updates are skipped."""
        if not self.skips and not math.isfinite(agreed.loss):
            raise StageError(
                f"the loss is {agreed.loss} at update {agreed.update} (epoch {agreed.epoch}); "
                f"{self._last_good()}; {LOWER_LR}"
            )

    def check_epoch(self, measured: Mapping[str, float], epoch: int) -> None:
        """Raise StageError for a measure of an epoch that is not finite: none can be recorded.

        Weights can be too large for a forward pass although each is finite.
        """
        for name, value in measured.items():
            if not math.isfinite(value):
                raise StageError(
                    f"{name} is {value} after epoch {epoch}; {self._last_good()}; {LOWER_LR}"
                )

    def skip_update(self, agreed: Agreed, norm: Tensor | None) -> bool:
        """Skip the update, count it and return True if its loss or gradient norm is not finite.

        Both are equal on all workers. Raises StageError after MOST_IN_A_ROW skips in a row.
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
                f"{self._last_good()}; {LOWER_LR}"
            )
        return True


@contextmanager
def explain_out_of_memory(world: int, images_per_pass: int, together: int = 1) -> Iterator[None]:
    """Turn errors of running out of memory inside into one sentence.

    Raises TooManyTogetherError if several runs train side by side. A single worker raises
    StageError, which ends its run. One of several raises RuntimeError, since the others wait for it
    inside a step and the driver must end them all.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        owner = _memory_owner(error)
        if owner is None:
            raise
        if together > 1:
            raise TooManyTogetherError(
                f"{owner} memory does not suffice for {together} runs at once"
            ) from error
        message = (
            f"{owner} memory does not suffice for a pass of {images_per_pass} images; set "
            f"`pretrain.resources.images_per_pass` lower (the batch stays the same), or "
            f"use smaller images (`pretrain.recipe.image`) or a smaller "
            f"`pretrain.recipe.schedule.batch_size`, or more `pretrain.resources.workers`"
        )
        raise (StageError if world == 1 else RuntimeError)(message) from error


def _memory_owner(error: BaseException) -> str | None:
    """Whose memory ran out; None for any other error."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's"
    if isinstance(error, MemoryError) or any(words in str(error) for words in _HOST_MEMORY):
        return "the machine's"
    return None

"""What a stack needs to train an epoch again: copies of its weights, statistics and moments."""

from __future__ import annotations

import torch

from jobs.tuning.frozen.stacked_adamw import StackedAdamW
from jobs.tuning.heads import StackedHeads


class Snapshot:
    """A stack as it was; three numbers for each weight."""

    def __init__(self, heads: StackedHeads, optimizer: StackedAdamW) -> None:
        kept = [*heads.parameters.values(), *heads.buffers.values(), *optimizer.moments]
        self._copies = [(tensor, tensor.detach().clone()) for tensor in kept]
        self._optimizer, self._taken = optimizer, optimizer.taken

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back, in place."""
        for tensor, copy in self._copies:
            tensor.copy_(copy)
        self._optimizer.taken = self._taken

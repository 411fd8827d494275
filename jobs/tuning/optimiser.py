"""AdamW for a stack: one step for all members, each with its own learning rate and decay.

Takes [K, ...] parameters with gradients; changes them in place as `torch.optim.AdamW` would change
each member alone (betas 0.9 and 0.999, eps 1e-8, decay on every parameter). A member can be left
out of a step, and then none of its numbers change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPS = 1e-8


def cosine(step: int, steps: int) -> float:
    """The share of the base learning rate at a step (from 0) of `steps`: 1 falling towards 0."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


class StackedAdamW:
    """AdamW with a learning rate and a weight decay for each member ([K] tensors)."""

    def __init__(self, parameters: Iterable[Tensor], lr: Tensor, weight_decay: Tensor) -> None:
        self.parameters = list(parameters)
        self.lr = lr.double()
        self.weight_decay = weight_decay.double()
        self.taken = 0
        self._means = [torch.zeros_like(p) for p in self.parameters]
        self._squares = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, lr_share: float, moving: Tensor) -> None:
        """One step at `lr_share` of the base rates for the members where `moving` [K] is true."""
        self.taken += 1
        root = math.sqrt(1 - BETAS[1] ** self.taken)
        lr = self.lr * lr_share
        rate = torch.where(moving, lr * root / (1 - BETAS[0] ** self.taken), 0.0)
        keep = torch.where(moving, 1 - lr * self.weight_decay, 1.0)
        some_stay = not bool(moving.all())
        for parameter, mean, square in zip(
            self.parameters, self._means, self._squares, strict=True
        ):
            grad = parameter.grad
            if grad is None:
                raise AssertionError("every parameter of a head has a gradient")
            members = (-1, *[1] * (parameter.dim() - 1))
            mean.lerp_(grad, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
            change = square.sqrt().add_(EPS * root)
            torch.div(mean, change, out=change)
            if some_stay:  # the moments of a frozen member may be NaN, and 0 x NaN is not 0
                change = torch.where(moving.view(members), change, 0.0)
            parameter.mul_(keep.to(parameter.dtype).view(members))
            parameter.addcmul_(change, rate.to(parameter.dtype).view(members), value=-1)
            parameter.grad = None

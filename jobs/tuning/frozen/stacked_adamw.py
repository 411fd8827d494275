"""AdamW for a stack: one step for all members, each with its own learning rate and decay.

Takes [K, ...] parameters with gradients; changes them in place as `torch.optim.AdamW` would change
each member alone (betas 0.9 and 0.999, eps 1e-8, decay on every parameter). A member can be left
out of a step; then none of its numbers change.

`torch.optim.AdamW` cannot do this: there a whole tensor has one learning rate and one decay. It
would need a parameter group and separate tensors for each member, while the products need stacked
weights. For 8 members its fused kernel then takes 1.7 times as long for linear probes at D = 512,
and for two-layer heads 1.2 to 1.5 times at D = 32, 0.8 times at 96 and as long at 512
(`benchmarks/stacked_adamw.py`, one thread, three runs).

A step reads and writes a member's weights, gradient and moments and does little arithmetic, so
memory bounds its speed. Large members on a CPU are updated one by one with torch's fused kernel,
which makes one pass over memory where the plain form makes ten. Small members, and members on a
GPU, are updated all at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from jobs.tuning.schedule import BETAS, EPS

_LARGE = 1 << 16  # weights of a member; from here on the cost of one kernel call each is negligible


class StackedAdamW:
    """AdamW with a learning rate and a weight decay for each member ([K] tensors)."""

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: Tensor,
        weight_decay: Tensor,
        *,
        fused: bool | None = None,
    ) -> None:
        self.parameters = list(parameters)
        self.lr = lr.double()
        self.weight_decay = weight_decay.double()
        self.taken = 0
        self._means = [torch.zeros_like(p) for p in self.parameters]
        self._squares = [torch.zeros_like(p) for p in self.parameters]
        weights = sum(p[0].numel() for p in self.parameters)
        on_cpu = all(p.device.type == "cpu" for p in self.parameters)
        self._fused = on_cpu and weights >= _LARGE if fused is None else fused

    @property
    def moments(self) -> list[Tensor]:
        """Both moments of every parameter."""
        return [*self._means, *self._squares]

    def release(self) -> list[Tensor]:
        """Return both moments of every parameter, and drop all tensors; `resume` undoes it."""
        moments = self.moments
        self.parameters, self._means, self._squares = [], [], []
        return moments

    def resume(self, parameters: Iterable[Tensor], moments: Sequence[Tensor]) -> None:
        """Continue with the parameters and moments from before `release`."""
        self.parameters = list(parameters)
        half = len(self.parameters)
        self._means, self._squares = list(moments[:half]), list(moments[half:])

    @torch.no_grad()
    def step(self, lr_share: float, moving: Tensor) -> None:
        """One step at `lr_share` of the base rates for the members where `moving` [K] is true."""
        self.taken += 1
        if any(parameter.grad is None for parameter in self.parameters):
            raise AssertionError("every parameter of a head has a gradient")
        (self._step_one_by_one if self._fused else self._step_at_once)(lr_share, moving)
        for parameter in self.parameters:
            parameter.grad = None

    def keep(self, parameters: Iterable[Tensor], members: Tensor) -> None:
        """Continue with some `members` (indices); `parameters`: theirs, in the same order."""
        self.parameters = list(parameters)
        self.lr, self.weight_decay = self.lr[members], self.weight_decay[members]
        self._means = [mean[members] for mean in self._means]
        self._squares = [square[members] for square in self._squares]

    def _step_one_by_one(self, lr_share: float, moving: Tensor) -> None:
        grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        before = float(self.taken - 1)  # the kernel counts the step itself
        for member in moving.nonzero().flatten().tolist():
            adamw(
                [parameter[member] for parameter in self.parameters],
                [grad[member] for grad in grads],
                [mean[member] for mean in self._means],
                [square[member] for square in self._squares],
                [],
                [torch.tensor(before) for _ in grads],
                fused=True,
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=float(self.lr[member]) * lr_share,
                weight_decay=float(self.weight_decay[member]),
                eps=EPS,
                maximize=False,
            )

    def _step_at_once(self, lr_share: float, moving: Tensor) -> None:
        root = math.sqrt(1 - BETAS[1] ** self.taken)
        lr = self.lr * lr_share
        rate = (lr * root / (1 - BETAS[0] ** self.taken)).masked_fill(~moving, 0.0)
        keep = (1 - lr * self.weight_decay).masked_fill(~moving, 1.0)
        # On a GPU, asking would wait for the device.
        some_stay = moving.device.type != "cpu" or not bool(moving.all())
        for parameter, mean, square in zip(
            self.parameters, self._means, self._squares, strict=True
        ):
            grad = parameter.grad
            assert grad is not None
            members = (-1, *[1] * (parameter.dim() - 1))
            mean.lerp_(grad, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
            change = square.sqrt().add_(EPS * root)
            torch.div(mean, change, out=change)
            if some_stay:  # the moments of a frozen member may be NaN, and 0 x NaN is not 0
                change.masked_fill_(~moving.view(members), 0.0)
            parameter.mul_(keep.to(parameter.dtype).view(members))
            parameter.addcmul_(change, rate.to(parameter.dtype).view(members), value=-1)

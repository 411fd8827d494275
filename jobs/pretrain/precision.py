"""Mixed precision: torch's autocast, and the loss scale that fp16 needs.

Takes the recipe's `precision` and a device. bf16 has the range of fp32 and needs no scale. The
scale is state (it grows and shrinks with the gradients), so checkpoints keep it. Weights and
optimiser stay fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """How a run's forward and backward passes, and its updates, are rounded."""

    def __init__(
        self,
        kind: Literal["fp32", "bf16", "fp16"] = "fp32",
        device: torch.device | None = None,
    ) -> None:
        device = device or torch.device("cpu")
        self._dtype, self._device = _DTYPES.get(kind), device.type
        self._scaler = torch.amp.GradScaler(device.type) if kind == "fp16" else None
        self._one = torch.ones((), device=device)
        self._overflows = torch.zeros((), device=device)  # read only when it is asked for

    @property
    def scales(self) -> bool:
        """Whether gradients carry a scale, and an update that overflows is left out by it."""
        return self._scaler is not None

    def autocast(self) -> AbstractContextManager[Any]:
        """Around a forward pass. A pass of its own each: what was cast is kept until its end."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device, dtype=self._dtype)

    @property
    def overflows(self) -> int:
        """Updates left out for gradients beyond fp16's range, which lowers the scale."""
        return int(self._overflows.item())

    def backward(self, loss: Tensor) -> None:
        """Add the loss's (scaled) gradients."""
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def norm(self, optimizer: Optimizer, model: nn.Module, clip: float | None) -> Tensor:
        """The gradients' norm (a scalar on the device), at full size from here on, and clipped."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        if clip is not None:
            return nn.utils.clip_grad_norm_(model.parameters(), clip)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return nn.utils.get_total_norm(gradients)

    def leave_out(self) -> None:
        """Make no step of gradients whose `norm` was taken."""
        if self._scaler is not None:
            self._scaler.update()

    def update(self, optimizer: Optimizer) -> None:
        """The optimiser's step; none when fp16 gradients overflowed."""
        if self._scaler is None:
            optimizer.step()
        else:
            before = self._scaler.scale(self._one)
            self._scaler.step(optimizer)
            self._scaler.update()
            self._overflows += self._scaler.scale(self._one) < before

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold; empty without a scale."""
        if self._scaler is None:
            return {}
        state = self._scaler.state_dict() | {"overflows": self.overflows}
        return {
            name: torch.tensor(state[name], dtype=torch.float64)
            for name in ("scale", "_growth_tracker", "overflows")
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave; an empty one is the start."""
        if self._scaler is not None and state:
            held = self._scaler.state_dict()
            held["scale"] = float(state["scale"])
            held["_growth_tracker"] = int(state["_growth_tracker"])
            self._scaler.load_state_dict(held)
            self._overflows.fill_(float(state["overflows"]))

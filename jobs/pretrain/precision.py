"""Mixed precision: torch's autocast, and the loss scale that fp16 needs.

Takes the recipe's `precision` and a device. bf16 has the range of fp32 and needs no scale. The
scale is state (it grows and shrinks with the gradients), so checkpoints store it. Weights and
optimizer stay fp32.
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
    """The arithmetic of a run's passes and updates."""

    def __init__(
        self,
        kind: Literal["fp32", "bf16", "fp16"] = "fp32",
        device: torch.device | None = None,
    ) -> None:
        device = device or torch.device("cpu")
        self._dtype, self._device = _DTYPES.get(kind), device.type
        self._scaler = torch.amp.GradScaler(device.type) if kind == "fp16" else None
        self._one = torch.ones((), device=device)
        self._overflows = torch.zeros((), device=device)  # on the device, read only on request

    @property
    def scales(self) -> bool:
        """Whether gradients are scaled, and the scaler skips updates that overflow."""
        return self._scaler is not None

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast for one forward pass; use one for each, as it caches cast weights to its end."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device, dtype=self._dtype)

    @property
    def overflows(self) -> int:
        """Number of updates skipped for gradients beyond fp16's range; each lowers the scale."""
        return int(self._overflows.item())

    def backward(self, loss: Tensor) -> None:
        """Add the loss's (scaled) gradients."""
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def norm(self, optimizer: Optimizer, model: nn.Module, clip: float | None) -> Tensor:
        """Unscale and clip the gradients; their norm before clipping, a scalar on the device."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        if clip is not None:
            return nn.utils.clip_grad_norm_(model.parameters(), clip)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return nn.utils.get_total_norm(gradients)

    def skip_update(self) -> None:
        """Take no step with gradients whose `norm` was computed."""
        if self._scaler is not None:
            self._scaler.update()

    def update(self, optimizer: Optimizer) -> None:
        """Take the optimizer's step; no step when fp16 gradients overflowed."""
        if self._scaler is None:
            optimizer.step()
        else:
            before = self._scaler.scale(self._one)
            self._scaler.step(optimizer)
            self._scaler.update()
            self._overflows += self._scaler.scale(self._one) < before

    def state(self) -> dict[str, Tensor]:
        """The state for a checkpoint; empty without a scale."""
        if self._scaler is None:
            return {}
        state = self._scaler.state_dict() | {"overflows": self.overflows}
        return {
            name: torch.tensor(state[name], dtype=torch.float64)
            for name in ("scale", "_growth_tracker", "overflows")
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state that `state` returned; an empty one changes nothing."""
        if self._scaler is not None and state:
            scaler = self._scaler.state_dict()
            scaler["scale"] = float(state["scale"])
            scaler["_growth_tracker"] = int(state["_growth_tracker"])
            self._scaler.load_state_dict(scaler)
            self._overflows.fill_(float(state["overflows"]))

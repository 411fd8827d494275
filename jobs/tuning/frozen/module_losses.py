"""The losses of an extension's heads in one step: what the class's own `loss` gives.

Same interface as `losses.py`. Members are computed as one stack (`torch.vmap`) if the class allows
it. The first step finds out, on copies: it computes every member alone and all as a stack, and
compares. What cannot be stacked, or would differ, trains one by one, with the same results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jobs.contract import StageError
from jobs.extensions.load import sentence
from jobs.tuning.frozen.losses import Step, Terms, autocast
from jobs.tuning.heads import Shape, StackedHeads
from jobs.tuning.module_heads import Batch, ModuleHeads, checked_losses, drawing, hyper_of
from jobs.tuning.spec import Precision
from jobs.tuning.trained import Configuration

_CLOSE = 1e-3  # relative, of a stack's losses to those of its members alone, in the first step


class ModuleLosses:
    """The losses of a stack of an extension's heads."""

    def __init__(
        self,
        shape: Shape,
        configurations: Sequence[Configuration],
        seed: int,
        device: torch.device,
        precision: Precision,
    ) -> None:
        self._target, self._part = shape.target, shape.part
        self._seed = seed
        self._device = device
        self._precision: Precision = precision
        self.hyper = {n: v.to(device) for n, v in hyper_of(shape, configurations).items()}
        self.tried = False
        self.unstackable: str | None = None  # why members train one by one

    def keep(self, members: Tensor) -> None:
        """See `losses.Losses.keep`."""
        self.hyper = {name: values[members] for name, values in self.hyper.items()}

    @property
    def iterative(self) -> bool:
        """See `losses.Losses.iterative`."""
        return False

    def converged(self) -> bool:
        """See `losses.Losses.converged`."""
        return True

    def total(self, terms: Terms) -> Tensor:
        """See `losses.Losses.total`: the sum of the class's losses."""
        return torch.stack(list(terms.values())).sum(0)

    def terms(self, heads: StackedHeads, step: Step) -> Terms:
        """See `losses.Losses.terms`. Raises StageError for an error in the extension's code."""
        assert isinstance(heads, ModuleHeads)
        if not self.tried:
            self.tried = True
            heads.stacked = self._can_be_stacked(heads, step)
        return self._compute(heads, step)

    def _compute(self, heads: ModuleHeads, step: Step) -> Terms:
        rows, targets = step.rows, step.targets[0]  # one group: all members share them
        views, progress = step.features.shape[-3], step.taken / step.steps

        def loss(method: Any, hyper: Mapping[str, Tensor]) -> Terms:
            batch = Batch(
                features=rows,
                targets=targets,
                views=views,
                progress=progress,
                hyper=hyper,
                target=self._target,
            )
            return checked_losses(self._part, method.loss(batch))

        with drawing(self._seed, step.taken, self._device), autocast(self._precision, self._device):
            return heads.map(loss, self.hyper, training=True)

    def _can_be_stacked(self, heads: ModuleHeads, step: Step) -> bool:
        """Whether a stack gives the losses of its members alone; sets `unstackable` if not.

        Raises StageError where a member alone fails too, or has a parameter without a gradient.
        """
        alone = self._on_a_copy(heads, step, stacked=False)
        try:
            together = self._on_a_copy(heads, step, stacked=True)
        except StageError as error:
            cause = error.__cause__
            assert heads.shape.part is not None
            reason = sentence(heads.shape.part.extension, cause) if cause else str(error)
            self.unstackable = f"{self._part} cannot be stacked ({reason}); it trains one by one"
            return False
        for name, values in alone.items():
            if not torch.allclose(values, together[name], rtol=_CLOSE, atol=1e-6, equal_nan=True):
                self.unstackable = (
                    f"{self._part} gives another {name} in a stack than alone; it trains one by one"
                )
                return False
        return True

    def _on_a_copy(self, heads: ModuleHeads, step: Step, *, stacked: bool) -> Terms:
        copy = heads.keep(torch.arange(heads.members, device=self._device))
        copy.stacked = stacked
        found = self._compute(copy, step)
        if not stacked:
            self._check_gradients(copy, found)
        return {name: values.detach() for name, values in found.items()}

    def _check_gradients(self, heads: ModuleHeads, terms: Terms) -> None:
        total = self.total(terms).sum()
        if not total.requires_grad:
            raise StageError(f"{self._part}: its loss depends on no parameter; nothing is trained")
        parameters = list(heads.parameters.values())
        slopes = torch.autograd.grad(total, parameters, allow_unused=True)
        for name, slope in zip(heads.parameters, slopes, strict=True):
            if slope is None:
                raise StageError(
                    f"{self._part}: parameter {name} takes no part in the loss; make it a "
                    f"buffer, or use it"
                )

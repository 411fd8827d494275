"""The losses of the built-in heads in one step: the target's own, and NMTune's regularisers.

Takes a stack of heads and the rows of a step; gives each loss by name, one value for each member,
and the sum that is minimised. A regulariser is computed for the members that give it a weight, and
is NaN for the others. `module_losses.py` has the same interface for the heads of an extension.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from jobs.tuning import nmtune
from jobs.tuning.heads import Shape, StackedHeads
from jobs.tuning.spec import Precision
from jobs.tuning.trained import Configuration

Terms = dict[str, Tensor]
"""Losses by name, [K] each."""


@dataclass(frozen=True)
class Step:
    """The rows that a step trains on."""

    features: Tensor  # [V, M, D] where all members share them, else [K, V, M, D]
    targets: Tensor  # encoded, [K, V * M]
    taken: int  # steps before this one
    steps: int  # of the whole budget

    @property
    def rows(self) -> Tensor:
        """The features as rows, view after view: [R, D] or [K, R, D]."""
        return self.features.flatten(-3, -2)


class Losses(Protocol):
    """The losses of a stack."""

    def terms(self, heads: StackedHeads, step: Step) -> Terms:
        """Each loss by name; NaN for a member that does not have it."""

    def total(self, terms: Terms) -> Tensor:
        """What each member minimises, [K]."""

    def keep(self, members: Tensor) -> None:
        """Continue with some members (indices [K'])."""

    @property
    def iterative(self) -> bool:
        """Whether a loss is found by iterations, whose end no step waits for."""

    def converged(self) -> bool:
        """Whether all steps since the last call converged; if not, later ones iterate no more."""


class Regularised:
    """The target's loss, MSE, COV and SVD, weighed by each member's configuration."""

    def __init__(
        self,
        shape: Shape,
        configurations: Sequence[Configuration],
        device: torch.device,
        precision: Precision,
    ) -> None:
        self._variant = nmtune.RELEASED if shape.kind == "released" else nmtune.PAPER
        self._target = shape.target
        self._device = device
        self._precision: Precision = precision
        self._weights = {
            name: torch.tensor(
                [getattr(c, name) for c in configurations], dtype=torch.float64, device=device
            )
            for name in ("mse", "cov", "svd")
        }
        self._way = nmtune.way_on(device)
        self._unsettled: list[Tensor] = []  # of the steps since `converged` was called
        self._weighed = self._weighing_members()

    @property
    def iterative(self) -> bool:
        """See `Losses.iterative`: SVD by products of matrices."""
        return self._way != "eigenvectors" and self._wanted["svd"]

    def converged(self) -> bool:
        """See `Losses.converged`."""
        found = not torch.stack(self._unsettled).any()
        self._unsettled.clear()
        if not found:
            self._way = "eigenvectors"
        return found

    def _weighing_members(self) -> dict[str, Tensor | None]:
        """The members that give each regulariser a weight, by index; None: all members.

        A regulariser that no member weighs is absent. COV and SVD are computed together (`spread`).
        """
        self._wanted = {name: bool((self._weights[name] != 0).any()) for name in ("cov", "svd")}
        mse = self._weights["mse"] != 0
        spread = (self._weights["cov"] != 0) | (self._weights["svd"] != 0)
        return {
            name: None if members.all() else members.nonzero().flatten()
            for name, members in (("mse", mse), ("spread", spread))
            if members.any()
        }

    def keep(self, members: Tensor) -> None:
        """See `Losses.keep`."""
        self._weights = {name: weights[members] for name, weights in self._weights.items()}
        self._weighed = self._weighing_members()

    def total(self, terms: Terms) -> Tensor:
        """See `Losses.total`."""
        loss = terms[self._target.term]
        for name, weights in self._weights.items():
            if name in terms:
                # A term with weight 0 must not make a member fail: 0 x inf is not 0.
                weighed = weights.to(loss.dtype) * terms[name]
                loss = loss + weighed.masked_fill(weights == 0, 0.0)
        return loss

    def terms(self, heads: StackedHeads, step: Step) -> Terms:
        """See `Losses.terms`: the target's loss and each regulariser that has a weight."""
        views, samples = step.features.shape[-3:-1]
        rows = step.rows
        with autocast(self._precision, self._device):
            columns, logits = heads.forward(rows, training=True)
        z = columns.mT.float()
        terms = {self._target.term: self._target.losses(logits.float(), step.targets).mean(1)}
        if "mse" in self._weighed:
            members = self._weighed["mse"]
            outputs, given = (z, rows) if members is None else (z[members], _rows_of(rows, members))
            if self._variant.per_entry and views > 1:
                outputs, given = outputs[:, samples : 2 * samples], given[..., :samples, :]
            self._add_term(terms, "mse", nmtune.mse(outputs, given, self._variant), members)
        if "spread" in self._weighed:
            members = self._weighed["spread"]
            outputs = z if members is None else z[members]
            found = nmtune.spread(
                outputs,
                self._variant,
                **self._wanted,
                way=self._way,
                unsettled=self._unsettled,
            )
            for name, values in zip(self._wanted, found, strict=True):
                if self._wanted[name]:
                    self._add_term(terms, name, values, members)
        return terms

    def _add_term(self, terms: Terms, name: str, values: Tensor, members: Tensor | None) -> None:
        weighs = self._weights[name] != 0
        if members is not None:
            nothing = values.new_full((len(weighs),), torch.nan)
            values = nothing.index_put((members,), values)
        terms[name] = values.masked_fill(~weighs, torch.nan)


def _rows_of(rows: Tensor, members: Tensor) -> Tensor:
    return rows if rows.dim() == 2 else rows[members]


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context that computes the heads' products in `precision`; weights and losses: float32."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()

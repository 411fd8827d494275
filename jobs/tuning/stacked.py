"""The stacked engine: every configuration of a cell trains at once, as one model of K members.

Takes the training features in all their views, the validation features, K configurations and a
budget; gives the trained heads, what each member's losses and validation scores were after every
epoch, and why members failed, if any did. All members start from the same weights and see the same
batches in the same order; both follow from the tuning seed alone. A member gets what it would get
if it were trained alone, up to rounding.

A batch is `batch_size` samples with all their views (a last batch of one sample is left out).
Cross-entropy reads every row of it, and so do COV and SVD. MSE pairs each row's output with the
row's own features (`paper`), or the second view's output with the first view's features
(`released`; with a single view, with its own). A regulariser that no member weighs is not computed.

A member whose loss stops being finite is frozen where it stood and recorded with the reason; the
others do not change by a bit. The weights kept are those after the last epoch, never the best
epoch's. Nothing here reads or writes files, or knows of a test part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from jobs.tuning import nmtune
from jobs.tuning.heads import Shape, StackedHeads, seeded
from jobs.tuning.optimiser import StackedAdamW, cosine
from jobs.tuning.scores import Scores, score

_ENTRIES = 1 << 24  # activations held at once while evaluating, over all members

TERMS = ("loss", "ce", "mse", "cov", "svd")
"""Training losses by name; `loss` is the weighted sum that is minimised."""


@dataclass(frozen=True)
class Configuration:
    """One point of a method's search space."""

    lr: float
    weight_decay: float = 0.0
    mse: float = 0.0  # loss weights, the space's `scale` already multiplied in
    cov: float = 0.0
    svd: float = 0.0


@dataclass(frozen=True)
class Budget:
    """What every method of a cell may spend."""

    epochs: int
    batch_size: int  # samples a step, each with all its views


@dataclass(frozen=True)
class Labelled:
    """Features with class indices. Training features carry their views on the first axis."""

    features: Tensor  # float32, [V, N, D] or, without views, [N, D]
    labels: Tensor  # int64, [N], in [0, C)


@dataclass(frozen=True)
class Epoch:
    """What is known of all members after an epoch; [K] float64 tensors on the CPU."""

    train: dict[str, Tensor]  # by name in TERMS, means over the epoch; absent: not computed
    validation_loss: Tensor
    validation: Scores


@dataclass(frozen=True)
class Trained:
    """A stack after its last epoch."""

    heads: StackedHeads
    epochs: tuple[Epoch, ...]
    failures: tuple[str | None, ...]  # by member; none: it finished


def train(
    shape: Shape,
    training: Labelled,
    validation: Labelled,
    configurations: Sequence[Configuration],
    budget: Budget,
    *,
    seed: int,
    device: str = "cpu",
) -> Trained:
    """Train one head for each configuration. Raises ValueError on fewer than two samples."""
    stack = Stack(shape, training, validation, configurations, budget, seed=seed, device=device)
    epochs = tuple(stack.run_epoch() for _ in range(budget.epochs))
    return Trained(stack.heads, epochs, tuple(stack.failures))


def select(trained: Trained) -> int | None:
    """The member with the best validation accuracy after the last epoch; none if all failed.

    Ties go to the lower validation loss, then to the first drawn.
    """
    last = trained.epochs[-1]
    running = [k for k, failure in enumerate(trained.failures) if failure is None]
    return min(
        running,
        key=lambda k: (-float(last.validation.accuracy[k]), float(last.validation_loss[k]), k),
        default=None,
    )


class Stack:
    """K heads in training; between epochs all of a member's numbers are on the table."""

    def __init__(
        self,
        shape: Shape,
        training: Labelled,
        validation: Labelled,
        configurations: Sequence[Configuration],
        budget: Budget,
        *,
        seed: int,
        device: str = "cpu",
    ) -> None:
        if len(training.labels) < 2:
            raise ValueError(f"{len(training.labels)} training samples; a batch needs two")
        self._device = torch.device(device)
        self._features = training.features.to(self._device)
        self._labels = training.labels.to(self._device)
        self._validation = validation
        self._budget = budget
        self._seed = seed
        self._variant = nmtune.RELEASED if shape.kind == "released" else nmtune.PAPER
        self._weights = {
            name: self._column([getattr(c, name) for c in configurations])
            for name in ("mse", "cov", "svd")
        }
        self.heads = StackedHeads.fresh(shape, len(configurations), seed, self._device)
        self.failures: list[str | None] = [None] * len(configurations)
        self._alive = torch.ones(len(configurations), dtype=torch.bool, device=self._device)
        self._epochs_done = 0
        self._steps_done = 0
        self._optimiser = StackedAdamW(
            self.heads.parameters.values(),
            self._column([c.lr for c in configurations]),
            self._column([c.weight_decay for c in configurations]),
        )

    def _column(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self._device)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        samples, size = len(self._labels), self._budget.batch_size
        return samples // size + (samples % size > 1)

    def run_epoch(self) -> Epoch:
        """Train every member for one epoch, then validate it."""
        self._epochs_done += 1
        sums: dict[str, Tensor] = {}
        seen = 0
        for samples in self._batches():
            for name, values in self._step(samples).items():
                sums[name] = sums.get(name, 0.0) + len(samples) * values.detach().double()
            seen += len(samples)
        loss, scores = self._validate()
        self._freeze(~loss.isfinite(), "validation loss")
        return Epoch({name: (s / seen).cpu() for name, s in sums.items()}, loss.cpu(), scores)

    def _batches(self) -> Iterator[Tensor]:
        generator = seeded(self._seed, "order", self._epochs_done)
        order = torch.randperm(len(self._labels), generator=generator).to(self._device)
        size = self._budget.batch_size
        for step in range(self.steps_per_epoch):
            yield order[step * size : (step + 1) * size]

    def _step(self, samples: Tensor) -> dict[str, Tensor]:
        """One optimiser step on a batch; its losses by name, [K] each."""
        features = self._features[:, samples]
        terms = self._terms(features, self._labels[samples])
        loss = terms["ce"]
        for name, weights in self._weights.items():
            if name in terms:
                # A term that a member does not weigh must not fail it: 0 x inf is not 0.
                weighed = weights.to(loss.dtype) * terms[name]
                loss = loss + torch.where(weights != 0, weighed, 0.0)
        self._freeze(~loss.detach().isfinite(), "training loss")
        torch.where(self._alive, loss, 0.0).sum().backward()  # type: ignore[no-untyped-call]
        share = cosine(self._steps_done, self.steps_per_epoch * self._budget.epochs)
        self._optimiser.step(share, self._alive)
        self._steps_done += 1
        return {"loss": loss, **terms}

    def _terms(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy and each regulariser that is weighed, on features [V, M, D]."""
        views, samples, _ = features.shape
        rows = features.flatten(0, 1)
        columns, logits = self.heads.forward(rows, training=True)
        z = columns.mT
        targets = labels.repeat(views).expand(self.heads.members, -1)
        terms = {"ce": functional.cross_entropy(logits, targets, reduction="none").mean(1)}
        wanted = {name: bool((weights != 0).any()) for name, weights in self._weights.items()}
        if wanted["mse"]:
            if self._variant.per_entry and views > 1:
                second = z[:, samples : 2 * samples]
                terms["mse"] = nmtune.mse(second, features[0], self._variant)
            else:
                terms["mse"] = nmtune.mse(z, rows, self._variant)
        if wanted["cov"] or wanted["svd"]:
            cov, svd = nmtune.spread(z, self._variant, cov=wanted["cov"], svd=wanted["svd"])
            terms |= {n: v for n, v in (("cov", cov), ("svd", svd)) if wanted[n]}
        return terms

    def _freeze(self, broken: Tensor, what: str) -> None:
        """Take members out of training for good, with the reason."""
        newly = self._alive & broken.to(self._device)
        if not newly.any():
            return
        self._alive = self._alive & ~newly
        reason = f"{what} not finite in epoch {self._epochs_done} after {self._steps_done} steps"
        for member in newly.nonzero().flatten().tolist():
            self.failures[member] = reason

    def _validate(self) -> tuple[Tensor, Scores]:
        loss, predicted = evaluate(self.heads, self._validation, self._device)
        labels = self._validation.labels.to(self._device)
        return loss, score(labels, predicted, self.heads.shape.classes)


@torch.no_grad()
def evaluate(heads: StackedHeads, part: Labelled, device: torch.device) -> tuple[Tensor, Tensor]:
    """(mean cross-entropy [K], float64; predicted classes [K, N]) of features [N, D].

    Rows go through in pieces that bound the memory. Raises ValueError when there is no row.
    """
    if len(part.labels) == 0:
        raise ValueError("there is no row to evaluate")
    widest = max(heads.shape.hidden, heads.shape.dim, heads.shape.classes)
    piece = max(1, _ENTRIES // (widest * heads.members))
    loss = torch.zeros(heads.members, dtype=torch.float64, device=device)
    predicted = []
    for start in range(0, len(part.labels), piece):
        rows = slice(start, start + piece)
        _, logits = heads.forward(part.features[rows].to(device), training=False)
        targets = part.labels[rows].to(device).expand(heads.members, -1)
        losses = functional.cross_entropy(logits, targets, reduction="none")
        loss += losses.sum(1, dtype=torch.float64)
        predicted.append(logits.argmax(1))
    return loss / len(part.labels), torch.cat(predicted, dim=1)

"""Methods of an extension that train the encoder: what their class is given, and when.

The class of a method is a plain `nn.Module`, as for frozen features; its `loss` takes the encoder:

    hyperparameters = {"strength": (0.0, None)}     what it reads of the space; see `declared`
    __init__(self, dim, outputs)                    initial weights: torch's generator, seeded
    forward(self, features)                         [R, D] -> logits [R, C], or (logits, z)
    prepare(self, features, targets, hyper)         optional: once, before the first step
    loss(self, encoder, batch)                      a dict of losses, whose sum is minimised
    finish(self, encoder, hyper)                    optional: once, after the last step

`prepare` gets the features of all training rows by the encoder as it was. What `finish` changes in
the weights is validated, tested and stored.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jobs.contract import StageError
from jobs.encoders.interface import Inputs
from jobs.extensions.load import blaming
from jobs.tuning.finetune.model import AdaptedEncoder
from jobs.tuning.module_heads import (
    AnyBatch,
    Hyper,
    checked_losses,
    drawing,
    hyper_of,
    prepared,
    tensors_of,
)
from jobs.tuning.trained import Configuration


@dataclass(frozen=True, kw_only=True)
class InputBatch(AnyBatch):
    """What the `loss` of a method that trains the encoder is given: the rows of one step."""

    inputs: Inputs  # of R rows: every view of every sample, view after view


@dataclass(frozen=True)
class TrainedEncoder:
    """The encoder as a method sees it: called with a batch's `inputs`, it gives features [R, D]."""

    weights: Mapping[str, nn.Parameter]  # those that are trained and take part, by name
    start: Mapping[str, Tensor]  # the same before training
    features: Callable[[Inputs], Tensor]

    def __call__(self, inputs: Inputs) -> Tensor:
        """Features of R rows, float32 [R, D], with gradients."""
        return self.features(inputs)


class OwnMethod:
    """A method of an extension with one configuration, and the encoder that it trains."""

    def __init__(
        self,
        adapted: AdaptedEncoder,
        configuration: Configuration,
        features: Callable[[Inputs], Tensor],
        some: Inputs,
        seed: int,
    ) -> None:
        """`some`: a few inputs, which show what takes part in the features."""
        assert adapted.own is not None
        assert adapted.shape.part is not None
        self._module, self._shape, self._part = adapted.own, adapted.shape, adapted.shape.part
        self._head, self._seed = adapted.head, seed
        self._device = adapted.encoder.device
        hyper = hyper_of(adapted.shape, [configuration])
        self._hyper: Hyper = {name: values[0].to(self._device) for name, values in hyper.items()}
        trained = adapted.trained()
        slopes = torch.autograd.grad(
            features(some).sum(), list(trained.values()), allow_unused=True
        )
        weights = {
            name: value
            for (name, value), slope in zip(trained.items(), slopes, strict=True)
            if slope is not None
        }
        start = adapted.start()
        self._encoder = TrainedEncoder(weights, {name: start[name] for name in weights}, features)

    @property
    def prepares(self) -> bool:
        """Whether the class has a `prepare`."""
        return hasattr(self._module, "prepare")

    def train(self, mode: bool) -> None:
        """Set the head's mode, in which dropout and BatchNorm differ."""
        self._module.train(mode)

    @torch.no_grad()
    def prepare(self, features: Tensor, targets: Tensor) -> None:
        """Call the class's `prepare` with features [R, D] of the encoder before training."""
        made = copy.deepcopy(self._module).train()
        found = prepared(self._shape, made, features, targets, self._hyper)
        for name, value in tensors_of(self._module).items():
            value.copy_(found[name])

    def losses(
        self, inputs: Inputs, targets: Tensor, views: int, taken: int, steps: int
    ) -> dict[str, Tensor]:
        """The losses of a step by name. Raises StageError for an error in the class's code."""
        batch = InputBatch(
            inputs=inputs,
            targets=targets,
            views=views,
            progress=taken / steps,
            hyper=self._hyper,
            target=self._shape.target,
        )
        with blaming(self._part.extension), drawing(self._seed, taken, self._device):
            found = checked_losses(self._part, self._module.loss(self._encoder, batch))  # type: ignore[operator]
        if not any(value.requires_grad for value in found.values()):
            raise StageError(f"{self._part}: its loss depends on no parameter; nothing is trained")
        return found

    def check_gradients(self) -> None:
        """Raise StageError for a parameter of the head that the loss does not reach."""
        for name, value in self._head.items():
            if value.grad is None:
                raise StageError(
                    f"{self._part}: parameter {name} takes no part in the loss; make it a buffer, "
                    f"or use it"
                )

    @torch.no_grad()
    def finish(self) -> None:
        """Call the class's `finish`, if it has one."""
        if hasattr(self._module, "finish"):
            with blaming(self._part.extension):
                self._module.finish(self._encoder, self._hyper)  # type: ignore[operator]

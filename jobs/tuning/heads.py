"""The heads on frozen features: K members of one kind, stacked along the first axis.

Takes features [R, D] that all members share, or [K, R, D], each member's own. Gives the head's
output z and the logits. Inside, rows are the last axis ([K, D, R]): so a layer on shared features
is one matrix product, BatchNorm is one call over K x H channels, and cross-entropy has its classes
on axis 1.

    linear    z = f;                                                  classifier on f
    paper     z = W2 relu(W1 f + b1) + b2, hidden width 4D;           classifier on z (section 4)
    released  z = s * (W2 relu(BatchNorm(W1 f)) + b2) + f,
              s of D entries that start at 1;                         classifier on z (their code)
              without the residual: z = W2 relu(BatchNorm(W1 f)) + b2, as their flags are by default

The target defines the meaning of the outputs (`jobs.tuning.target`). Statistics of the training
labels (a number's mean and deviation) are buffers of the head.

The layer before BatchNorm has no bias. BatchNorm subtracts the mean, so the gradient of a bias
would be rounding noise, which AdamW turns into steps of full size. The authors' code has a bias;
this drift is its only effect.

Initial weights depend only on the seed, on each parameter's name and shape, and on `Start`. So
members start with the same weights, and so do methods that share a parameter. A single member is
stored as named tensors: float32, and float64 for a number's mean and deviation.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from jobs.extensions.spec import Part
from jobs.tuning.methods import ClassifierInit, HeadKind, Method
from jobs.tuning.target import Target

WIDENING = 4  # hidden width of the two-layer heads, in multiples of D
NORM_BUFFERS = ("norm.mean", "norm.variance")


@dataclass(frozen=True)
class Shape:
    """What a stack of heads computes."""

    kind: HeadKind
    dim: int  # D, the features' dimensions
    target: Target  # what is predicted
    residual: bool = True  # released: whether the features are added to the output
    part: Part | None = None  # extension: the class of one member

    @property
    def outputs(self) -> int:
        """C, the outputs of the last layer."""
        return self.target.outputs

    @property
    def hidden(self) -> int:
        """Width of the hidden layer (0 for the linear probe)."""
        return WIDENING * self.dim if self.kind in ("paper", "released") else 0


@dataclass(frozen=True)
class Start:
    """How the trained parameters of a head begin."""

    classifier: ClassifierInit = "uniform"
    residual_scale: float = 1.0

    @staticmethod
    def of(method: Method) -> Start:
        """The start that a method asks for."""
        return Start(method.classifier_init, method.residual_scale)


TORCH_START = Start()
"""As `nn.Linear` begins, which is the default."""


def seeded(seed: int, *names: str | int) -> torch.Generator:
    """A generator that depends only on the seed and on the `names` of what is drawn."""
    digest = hashlib.blake2b(json.dumps([seed, *names]).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _initial(shape: Shape, seed: int, start: Start) -> dict[str, Tensor]:
    """One member's trained parameters, without the stack's axis: torch's own Linear defaults.

    A classifier that begins as `kaiming_uniform` has the same draws, sqrt(6) times as large, and
    no bias at first.
    """
    layers = {"classifier": (shape.outputs, shape.dim)}
    if shape.hidden:
        layers["first"] = (shape.hidden, shape.dim)
        layers["second"] = (shape.dim, shape.hidden)
    parameters: dict[str, Tensor] = {}
    for layer, (wide, deep) in layers.items():
        bound = 1 / math.sqrt(deep)
        for name, size in ((f"{layer}.weight", (wide, deep)), (f"{layer}.bias", (wide,))):
            drawn = torch.rand(size, generator=seeded(seed, "weights", name, *size))
            parameters[name] = (2 * drawn - 1) * bound
    if start.classifier == "kaiming_uniform":
        parameters["classifier.weight"] *= math.sqrt(6)
        parameters["classifier.bias"] = torch.zeros(shape.outputs)
    if shape.kind == "released":
        del parameters["first.bias"]
        parameters["norm.weight"] = torch.ones(shape.hidden)
        parameters["norm.bias"] = torch.zeros(shape.hidden)
        if shape.residual:
            parameters["residual.scale"] = torch.full((shape.dim,), start.residual_scale)
    return parameters


class StackedHeads:
    """K heads of one shape.

    `parameters` (trained) and `buffers` (BatchNorm's running statistics; a number's mean and
    deviation) are [K, ...] tensors.
    """

    def __init__(
        self, shape: Shape, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> None:
        self.shape = shape
        self.parameters = dict(parameters)
        self.buffers = dict(buffers)
        self.members = self.parameters["classifier.weight"].shape[0]

    @property
    def width(self) -> int:
        """The most outputs of a layer of one member."""
        return max(self.shape.hidden, self.shape.dim, self.shape.outputs)

    @staticmethod
    def fresh(
        shape: Shape,
        members: int,
        seed: int,
        device: torch.device | str = "cpu",
        statistics: Mapping[str, float] | None = None,
        start: Start = TORCH_START,
    ) -> StackedHeads:
        """`members` untrained heads with the same initial weights.

        `statistics`: those of the training targets, see `Target.statistics`.
        """
        parameters = {
            name: value.repeat(members, *[1] * value.dim()).to(device).requires_grad_()
            for name, value in _initial(shape, seed, start).items()
        }
        buffers = {}
        if shape.kind == "released":
            buffers = {
                "norm.mean": torch.zeros(members, shape.hidden, device=device),
                "norm.variance": torch.ones(members, shape.hidden, device=device),
            }
        for name, value in (shape.target.blank if statistics is None else statistics).items():
            buffers[name] = torch.full((members, 1), value, dtype=torch.float64, device=device)
        return StackedHeads(shape, parameters, buffers)

    @staticmethod
    def concatenated(stacks: Sequence[StackedHeads]) -> StackedHeads:
        """The members of several stacks of one shape as one stack."""
        if len(stacks) == 1:
            return stacks[0]
        first = stacks[0]
        with torch.no_grad():
            parameters = {n: torch.cat([s.parameters[n] for s in stacks]) for n in first.parameters}
            buffers = {n: torch.cat([s.buffers[n] for s in stacks]) for n in first.buffers}
        for value in parameters.values():
            value.requires_grad_()
        return StackedHeads(first.shape, parameters, buffers)

    def keep(self, members: Tensor) -> StackedHeads:
        """Some members (indices [K']) as a stack of their own."""
        parameters = {n: v.detach()[members].requires_grad_() for n, v in self.parameters.items()}
        return StackedHeads(
            self.shape, parameters, {n: v[members] for n, v in self.buffers.items()}
        )

    @staticmethod
    def single(shape: Shape, state: Mapping[str, Tensor]) -> StackedHeads:
        """A stack of one, from the tensors of `member`. Raises ValueError for other shapes."""
        expected = StackedHeads.fresh(shape, 1, 0, torch.device("cpu")).member(0)
        wanted = {name: tuple(value.shape) for name, value in expected.items()}
        found = {name: tuple(value.shape) for name, value in state.items()}
        if wanted != found:
            raise ValueError(f"tensors {found} are not those of a {shape.kind} head, {wanted}")
        stacked = {name: value[None] for name, value in state.items()}
        names = {*stacked} & {*NORM_BUFFERS, *shape.target.blank}
        return StackedHeads(
            shape,
            {name: value for name, value in stacked.items() if name not in names},
            {name: stacked[name] for name in names},
        )

    def member(self, index: int) -> dict[str, Tensor]:
        """One member's tensors, on the CPU, without the stack's axis."""
        both = {**self.parameters, **self.buffers}
        return {name: value[index].detach().cpu().clone() for name, value in both.items()}

    def forward(self, rows: Tensor, *, training: bool) -> tuple[Tensor, Tensor]:
        """(z [K, D, R], logits [K, C, R]) of features [R, D] or [K, R, D].

        In training, BatchNorm uses the batch's own statistics over all R rows and updates the
        running ones (momentum 0.1). Otherwise it uses the running ones.
        """
        if self.shape.kind == "linear":
            z = rows.mT.expand(self.members, -1, -1)
            return z, self._first_layer("classifier", rows)
        hidden = self._first_layer("first", rows)
        if self.shape.kind == "released":
            hidden = self._batch_norm(hidden, training)
        z = self._layer("second", hidden.relu())
        if self.shape.kind == "released" and self.shape.residual:
            z = self.parameters["residual.scale"][:, :, None] * z + rows.mT
        return z, self._layer("classifier", z)

    def _first_layer(self, name: str, rows: Tensor) -> Tensor:
        """A linear layer on the features: one matrix product where all members share them."""
        weight = self.parameters[f"{name}.weight"]
        bias = self.parameters.get(f"{name}.bias")
        if rows.dim() == 3:
            own = rows.mT
            return weight @ own if bias is None else torch.baddbmm(bias[:, :, None], weight, own)
        flat = weight.flatten(0, 1)
        out = flat @ rows.mT if bias is None else torch.addmm(bias.reshape(-1, 1), flat, rows.mT)
        return out.view(self.members, -1, len(rows))

    def _layer(self, name: str, columns: Tensor) -> Tensor:
        """A linear layer on each member's own input: [K, in, R] to [K, out, R]."""
        bias = self.parameters[f"{name}.bias"][:, :, None]
        return torch.baddbmm(bias, self.parameters[f"{name}.weight"], columns)

    def _batch_norm(self, hidden: Tensor, training: bool) -> Tensor:
        """BatchNorm1d of each member and channel of [K, H, R] over the rows."""
        normed = functional.batch_norm(
            hidden.reshape(1, -1, hidden.shape[-1]),
            self.buffers["norm.mean"].view(-1),
            self.buffers["norm.variance"].view(-1),
            self.parameters["norm.weight"].reshape(-1),
            self.parameters["norm.bias"].reshape(-1),
            training=training,
        )
        return normed.view_as(hidden)

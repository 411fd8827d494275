"""The heads of an extension's method: one member's torch module, stacked by `torch.func`.

The class of a method is a plain `nn.Module` for one member:

    hyperparameters = {"strength": (0.0, 1.0)}      what it reads of the space; see `declared`
    __init__(self, dim, outputs)                    initial weights: torch's generator, seeded
    forward(self, features)                         [R, D] -> logits [R, C], or (logits, z)
    prepare(self, features, targets, hyper)         optional: once, before the first step
    loss(self, batch)                               a dict of losses, whose sum is minimised

Without `loss`, `prepare` solves the head and nothing is trained by steps. All members begin with
the same weights. Random draws inside `forward` and `loss` (dropout, say) depend on the seed and the
step alone and are the same for all members, so a member of a stack draws what it draws alone.
BatchNorm works as it does in a module alone: each member has running statistics of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from jobs.contract import StageError
from jobs.extensions.load import blaming, load
from jobs.extensions.spec import Part
from jobs.tuning.heads import TORCH_START, Shape, StackedHeads, Start, seeded
from jobs.tuning.rows import Features
from jobs.tuning.target import Target
from jobs.tuning.trained import Configuration

Hyper = Mapping[str, Tensor]
"""A member's hyper-parameters by name: scalars, float32."""

_MODULE = "method"  # where `_Call` keeps the member
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class AnyBatch:
    """What the `loss` of every method is given of the rows of one step, for one member."""

    targets: Tensor  # [R]: classes, int64; of numbers, standard deviations from the mean
    views: int  # of each sample, so R / views samples
    progress: float  # the share of all steps that is done, in [0, 1)
    hyper: Hyper
    target: Target = field(repr=False)

    def task_loss(self, logits: Tensor) -> Tensor:
        """The task's own loss of logits [R, C], a mean: cross-entropy, or squared error.

        Raises ValueError for logits of another shape.
        """
        rows, outputs = len(self.targets), self.target.outputs
        if not isinstance(logits, Tensor) or logits.shape != (rows, outputs):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"task_loss is given logits of shape {found}, and the task needs "
                f"({rows}, {outputs}); give it logits [rows, outputs] alone"
            )
        return self.target.losses(logits, self.targets, "mean")


@dataclass(frozen=True, kw_only=True)
class Batch(AnyBatch):
    """What the `loss` of a method on frozen features is given."""

    features: Tensor  # [R, D]: every view of every sample, view after view


def checked_losses(part: Part | None, found: Any) -> dict[str, Tensor]:
    """What a `loss` returned, float32. Raises StageError unless it is scalars by name."""
    if not isinstance(found, dict) or not found:
        raise StageError(
            f"{part}: loss returns {type(found).__name__}, not losses by name; return a dict of "
            f"scalars, such as {{'ce': ...}}"
        )
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.dim():
            raise StageError(f"{part}: loss gives {name!r} no scalar tensor; take its mean")
    return {name: value.float() for name, value in found.items()}


class _Call(nn.Module):
    """A module that calls one method of a member; `functional_call` replaces its tensors."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, call: Callable[[Any], Result]) -> Result:
        return call(self.method)


class ModuleHeads(StackedHeads):
    """K heads of an extension's class."""

    def __init__(
        self, shape: Shape, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> None:
        assert shape.part is not None
        self.shape = shape
        self.parameters = dict(parameters)
        self.buffers = dict(buffers)
        self.members = len(next(iter({**self.parameters, **self.buffers}.values())))
        self.stacked = False  # members are computed one by one; see `ModuleLosses`
        self._device = next(iter({**self.parameters, **self.buffers}.values())).device
        self._call = _Call(member(shape, 0).to(self._device))

    def _like(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> ModuleHeads:
        made = ModuleHeads(self.shape, parameters, buffers)
        made.stacked = self.stacked
        return made

    def keep(self, members: Tensor) -> ModuleHeads:
        """See `StackedHeads.keep`."""
        kept = super().keep(members)
        return self._like(kept.parameters, kept.buffers)

    @property
    def width(self) -> int:
        """See `StackedHeads.width`."""
        return max(super().width, *(size(value[0])[1] for value in self.parameters.values()), 1)

    def forward(self, rows: Tensor, *, training: bool) -> tuple[Tensor, Tensor]:
        """(z [K, D', R], logits [K, C, R]) of features [R, D]; without a z of its own, logits."""

        def outputs(method: Any) -> tuple[Tensor, Tensor]:
            return pair(self.shape, method(rows), len(rows))

        z, logits = self.map(outputs, training=training)
        return z.mT, logits.mT

    def map(
        self, call: Callable[..., Result], *columns: Mapping[str, Tensor], training: bool
    ) -> Result:
        """`call(method, *own)` for each member, the results stacked; `columns`: [K] tensors.

        Raises StageError, with file and line, for an error in the extension's code.
        """
        assert self.shape.part is not None
        self._call.train(training)
        state = {**self.parameters, **self._module_buffers()}

        def one(own: Mapping[str, Tensor], *theirs: Mapping[str, Tensor]) -> Any:
            named = {f"{_MODULE}.{name}": value for name, value in own.items()}
            return functional_call(self._call, named, (lambda method: call(method, *theirs),))

        with blaming(self.shape.part.extension):
            if self.stacked:
                together: Result = torch.vmap(one, randomness="same")(state, *columns)
                return together
            generator = torch.get_rng_state()
            found = []
            for k in range(self.members):
                torch.set_rng_state(generator)  # every member draws the same
                found.append(
                    one(*({n: v[k] for n, v in each.items()} for each in (state, *columns)))
                )
            alone: Result = _stack(found)
            return alone

    def member_module(self, index: int) -> nn.Module:
        """One member as a module of its own, with copies of its tensors."""
        made: nn.Module = member(self.shape, 0).to(self._device)
        own = {n: v[index].detach().clone() for n, v in {**self.parameters, **self.buffers}.items()}
        for name in self.shape.target.blank:
            own.pop(name)
        made.load_state_dict(own, strict=False)
        return made

    def _module_buffers(self) -> dict[str, Tensor]:
        """The buffers of the class itself, without those of the target."""
        return {n: v for n, v in self.buffers.items() if n not in self.shape.target.blank}


def pair(shape: Shape, output: Any, rows: int) -> tuple[Tensor, Tensor]:
    """(z, logits) of what `forward` returned. Raises StageError for logits of another shape."""
    logits, z = output if isinstance(output, tuple) else (output, output)
    if not isinstance(logits, Tensor) or logits.shape != (rows, shape.outputs):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise StageError(
            f"{shape.part}: forward returns logits of shape {found}, and the task needs "
            f"({rows}, {shape.outputs}); return logits [rows, outputs], or (logits, z)"
        )
    return z, logits


def _stack(found: Sequence[Any]) -> Any:
    first = found[0]
    if isinstance(first, dict):
        return {name: torch.stack([one[name] for one in found]) for name in first}
    return tuple(map(torch.stack, zip(*found, strict=True)))


def member(shape: Shape, seed: int) -> Any:
    """A new module for one member, its weights drawn from the seed."""
    assert shape.part is not None
    build = load(shape.part)
    with torch.random.fork_rng(devices=[]), blaming(shape.part.extension):
        torch.manual_seed(seeded(seed, "weights").initial_seed())
        made = build(shape.dim, shape.outputs)
        if not isinstance(made, nn.Module):
            raise StageError(f"{shape.part} is no torch.nn.Module; let its class inherit from it")
    return made


def size(value: Tensor) -> tuple[int, int]:
    """(entries, outputs of a layer) of one parameter."""
    return value.numel(), value.shape[0] if value.dim() > 1 else 0


def fresh(
    shape: Shape,
    members: int,
    seed: int,
    device: torch.device | str = "cpu",
    statistics: Mapping[str, float] | None = None,
    start: Start = TORCH_START,
) -> StackedHeads:
    """`members` untrained heads of any kind, see `StackedHeads.fresh`."""
    if shape.part is None:
        return StackedHeads.fresh(shape, members, seed, device, statistics, start)
    made = member(shape, seed)

    def column(value: Tensor) -> Tensor:
        return value.detach().repeat(members, *[1] * value.dim()).to(device)

    trained = {n: p for n, p in made.named_parameters() if p.requires_grad}
    buffers = {n: column(value) for n, value in made.state_dict().items() if n not in trained}
    for name, value in (shape.target.blank if statistics is None else statistics).items():
        buffers[name] = torch.full((members, 1), value, dtype=torch.float64, device=device)
    if not trained and not buffers:
        raise StageError(
            f"{shape.part} has neither parameters nor buffers, so nothing can be learned or kept; "
            f"register them in __init__"
        )
    return ModuleHeads(shape, {n: column(p).requires_grad_() for n, p in trained.items()}, buffers)


def single(shape: Shape, state: Mapping[str, Tensor]) -> StackedHeads:
    """A stack of one, from the tensors of `member`. Raises ValueError for other shapes."""
    if shape.part is None:
        return StackedHeads.single(shape, state)
    made = fresh(shape, 1, 0)
    expected = {name: tuple(value.shape) for name, value in made.member(0).items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if expected != found:
        raise ValueError(f"tensors {found} are not those of {shape.part}, {expected}")
    return ModuleHeads(
        shape,
        {name: state[name][None] for name in made.parameters},
        {name: state[name][None] for name in made.buffers},
    )


def hyper_of(shape: Shape, configurations: Sequence[Configuration]) -> dict[str, Tensor]:
    """The hyper-parameters that the class declares, [K] each."""
    assert shape.part is not None
    found = {}
    for name, limits in getattr(load(shape.part), "hyperparameters", {}).items():
        values = [configuration.value(name) for configuration in configurations]
        default = limits[2] if len(limits) > 2 else None
        found[name] = torch.tensor(
            [default if value is None else value for value in values], dtype=torch.float32
        )
    return found


@torch.no_grad()
def prepare(
    heads: StackedHeads, features: Features, targets: Tensor, hyper: Mapping[str, Tensor]
) -> None:
    """Call `prepare` of each member's module, if the class has one, with its hyper-parameters.

    Features are [V, N, D], and targets [V * N]; the module sees them as rows [V * N, D]. What a
    member changes in its tensors becomes its initial weights. Raises StageError for the patches of
    masks, which are read from their file as they are needed.
    """
    if not isinstance(heads, ModuleHeads) or not hasattr(heads._call.method, "prepare"):
        return
    if not isinstance(features, Tensor):
        raise StageError(
            f"{heads.shape.part} has a `prepare`, which needs all rows in memory, and patches are "
            f"not; leave this method out of experiments with tasks of masks"
        )
    rows = features.flatten(0, 1)
    both = {**heads.parameters, **heads.buffers}
    for index in range(heads.members):
        made = heads.member_module(index)
        own = prepared(heads.shape, made, rows, targets, {n: v[index] for n, v in hyper.items()})
        for name, value in own.items():
            both[name][index] = value


def tensors_of(made: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers by name."""
    return {**dict(made.named_parameters()), **dict(made.named_buffers())}


def prepared(
    shape: Shape, made: Any, rows: Tensor, targets: Tensor, hyper: Hyper
) -> dict[str, Tensor]:
    """A module's tensors after its `prepare`. Raises StageError if one has another shape then."""
    assert shape.part is not None
    before, attributes = {n: tuple(v.shape) for n, v in tensors_of(made).items()}, {*vars(made)}
    with blaming(shape.part.extension), drawing(0, "prepare", rows.device):
        made.prepare(rows, targets, hyper)
    if stray := sorted({*vars(made)} - attributes):
        raise StageError(
            f"{shape.part}: prepare sets {stray[0]}, which is neither parameter nor buffer; "
            f"register it in __init__"
        )
    found = {name: value.detach() for name, value in tensors_of(made).items()}
    for name, value in found.items():
        if tuple(value.shape) != before.get(name):
            raise StageError(
                f"{shape.part}: prepare gives {name} the shape {tuple(value.shape)}, and __init__ "
                f"gave it {before.get(name, 'none')}; keep the shape"
            )
    return found


@contextmanager
def drawing(seed: int, name: str | int, device: torch.device) -> Iterator[None]:
    """A context where torch's generators are seeded by a seed and a name, and restored after."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seeded(seed, "draws", name).initial_seed())
        yield


def is_solved(part: Part | None) -> bool:
    """Whether an extension's class has no loss: `prepare` solves it."""
    return part is not None and not hasattr(load(part), "loss")

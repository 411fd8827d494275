"""An encoder that is trained with a head: all its weights (`ft`) or adapters (`lora`).

Takes a finished encoder and a method; gives features and logits with gradients, the trained
parameters, and the tensors of the adapted encoder. The head is linear, or a class of an extension
(`ft`; see `own.py`). The encoder stays in eval mode: BatchNorm keeps the statistics of
pre-training, and dropout is off. So `ft` and `lora` differ from a linear probe only in what they
learn (with `encoder_lr: 0` they do not differ), and `lora` changes only its adapters and the head.
`encoder_mode: train` trains as the authors' code does: BatchNorm uses each batch's statistics and
updates those of the encoder, also under `lora`, and dropout is on.

LoRA (peft; rank r, alpha = r, so an adapter's output is added unscaled) adapts the MLP layers:
every linear layer or 1 x 1 convolution inside a module named `mlp` (in GPT-2, layers that
transformers calls Conv1D). In a model of BERT's kind, whose blocks have no such module, these are
the block's `intermediate.dense` and `output.dense`, but not the attention's. In an image encoder
without any (a ResNet) it adapts the convolutions instead, except grouped ones. In an open_clip
model it adapts only the image tower.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jobs.contract import StageError
from jobs.encoders.encoder import Encoder, EncoderCard
from jobs.encoders.interface import Inputs
from jobs.encoders.own import MODULE
from jobs.extensions.load import blaming
from jobs.extensions.spec import Part
from jobs.features.spec import Precision
from jobs.tuning.heads import Shape, StackedHeads, Start, seeded
from jobs.tuning.methods import Method
from jobs.tuning.module_heads import member, pair, tensors_of
from jobs.tuning.target import Target

_CPU = torch.device("cpu")
_BERT_MLP = re.compile(r"(?<!attention)\.(intermediate|output)\.dense$")


class AdaptedEncoder:
    """A copy of an encoder with a head, prepared for training by a method.

    `part`: the class of an extension that is the head; none: a linear one.
    """

    def __init__(
        self,
        encoder: Encoder,
        method: Method,
        target: Target,
        seed: int,
        part: Part | None = None,
    ) -> None:
        self.method = method
        self.shape = Shape(method.kind, encoder.dim, target, part=part)
        self.encoder, self._untrained = encoder.copied(), encoder.model
        model = self.encoder.model
        if method.adapt == "lora":
            _inject(self.encoder.card, model, method.rank, seed)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(method.adapt == "ft" or _is_adapter(name))
        # The head has the same initial weights as the classifier of a frozen method.
        self.own: nn.Module | None = None
        if part is not None:
            made: nn.Module = member(self.shape, seed)
            self.own = made.eval().to(encoder.device)
            named = self.own.named_parameters()
            self.head = {name: value for name, value in named if value.requires_grad}
            return
        start = Start.of(method)
        fresh = StackedHeads.fresh(self.shape, 1, seed, _CPU, start=start).member(0)
        self.head = {
            name: nn.Parameter(value.to(encoder.device))
            for name, value in fresh.items()
            if name not in target.blank
        }

    def features(self, inputs: Inputs, precision: Precision = "float32") -> Tensor:
        """Features of N rows (see `Encoder.features`): float32 [N, D]."""
        return self.encoder.forward(inputs, precision)

    def logits(self, features: Tensor) -> Tensor:
        """The head's outputs [N, C] for features [N, D]."""
        if self.own is not None:
            assert self.shape.part is not None
            with blaming(self.shape.part.extension):
                return pair(self.shape, self.own(features), len(features))[1]
        weight, bias = self.head["classifier.weight"], self.head["classifier.bias"]
        return torch.addmm(bias, features, weight.mT)

    def trained(self) -> dict[str, nn.Parameter]:
        """The encoder's parameters that are trained, by name."""
        return {n: p for n, p in self.encoder.model.named_parameters() if p.requires_grad}

    def start(self) -> dict[str, Tensor]:
        """The encoder's parameters before training, by name; not those of adapters."""
        return {name: value.detach() for name, value in self._untrained.named_parameters()}

    def state(self) -> dict[str, Tensor]:
        """The tensors that training changes in the encoder.

        All of them (`ft`); the adapters and, in train mode, BatchNorm's statistics (`lora`).
        """
        moved: set[str] = set()
        if self.method.encoder_mode == "train":
            moved = {name for name, _ in self.encoder.model.named_buffers()}
        return {
            name: value.detach().cpu().contiguous().clone()
            for name, value in sorted(self.encoder.model.state_dict().items())
            if self.method.adapt == "ft" or _is_adapter(name) or name in moved
        }

    def head_state(self) -> dict[str, Tensor]:
        """The head's tensors, as `StackedHeads.member` gives them."""
        return {n: value.detach().cpu().clone() for n, value in self._head_tensors().items()}

    def _head_tensors(self) -> dict[str, Tensor]:
        return dict(self.head) if self.own is None else tensors_of(self.own)

    def load(self, state: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> None:
        """Load tensors of `state` and `head_state`. Raises StageError when they do not fit."""
        expected = {name: tuple(value.shape) for name, value in self.state().items()}
        found = {name: tuple(value.shape) for name, value in state.items()}
        if expected != found:
            odd = sorted({n for n in {*expected, *found} if expected.get(n) != found.get(n)})
            raise StageError(
                f"the {self.method.adapt} weights do not fit the encoder "
                f"({len(odd)} tensors, the first {odd[0]}); run the ID cell again"
            )
        self.encoder.model.load_state_dict(dict(state), strict=False)
        with torch.no_grad():
            for name, value in self._head_tensors().items():
                value.copy_(head[name])


def adapted_layers(card: EncoderCard, model: nn.Module) -> list[str]:
    """Names of the layers that LoRA adapts. Raises StageError when there is none."""
    towers = {"open_clip": "visual.", "extension": f"{MODULE}."}
    tower = towers.get(card.family, "")
    layers = [(n, m) for n, m in model.named_modules() if n.startswith(tower)]
    inside = [n for n, m in layers if "mlp" in n and _is_linear(m)]
    inside = inside or [n for n, m in layers if _BERT_MLP.search(n) and _is_linear(m)]
    if inside:
        return inside
    convolutions = [n for n, m in layers if isinstance(m, nn.Conv2d) and m.groups == 1]
    if not convolutions:
        raise StageError(
            f"{card.family} model {card.model!r} has neither MLP layers nor plain convolutions "
            f"for lora to adapt; use ft"
        )
    return convolutions


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear) or _is_transposed(module)


def _is_transposed(module: nn.Module) -> bool:
    """Whether this is GPT-2's linear layer, whose weight is [in, out]."""
    return type(module).__name__ == "Conv1D" and not isinstance(module, nn.Conv1d)


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


def _inject(card: EncoderCard, model: nn.Module, rank: int, seed: int) -> None:
    """Add adapters to the model: the first factor is drawn from the seed, the second is zero."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise StageError(
            f"lora needs the peft library, which cannot be imported ({error}); install "
            f"nml-orch[lora]"
        ) from error
    layers = adapted_layers(card, model)
    transposed = all(_is_transposed(model.get_submodule(name)) for name in layers)
    config: Any = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=layers, fan_in_fan_out=transposed
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded(seed, "lora").initial_seed())
        inject_adapter_in_model(config, model)
    model.eval()

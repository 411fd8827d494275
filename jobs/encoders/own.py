"""Encoders of an extension: a function that builds a torch module, which this makes a model of.

The function takes the input and its options, and returns a module:

    image   (size, channels, ...)                normalised images [N, C, S, S] -> features [N, D]
    text    (vocabulary, padding, max_length)    ids and mask [N, L] -> hidden states [N, L, D]

A module of images may have `map`, which gives [N, D, P, P] for tasks of masks. `OwnModel` is what
is trained and stored: the module, and in pre-training a linear classifier on its features. What
runs is the text that was planned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from jobs.contract import StageError
from jobs.extensions.load import blaming, load, sentence
from jobs.extensions.spec import Part
from jobs.images.spec import ImageInput
from jobs.text.spec import OwnTextInput

MODULE = "encoder"
"""The extension's module within its model: the beginning of its tensors' names."""


class OwnModel(nn.Module):
    """An extension's module and, if it has `classes`, a linear classifier on its features."""

    def __init__(self, part: Part, module: nn.Module, image: ImageInput, classes: int) -> None:
        super().__init__()
        self._part = part
        self.encoder = module
        with torch.no_grad():
            blank = torch.zeros(1, *image.shape)
            width = self.eval().features(blank).shape[1]
        self.classifier = nn.Linear(width, classes) if classes else None

    def forward(self, images: Tensor) -> Tensor:
        """Class scores [N, classes] of normalised images; features where there is no classifier."""
        found: Tensor = self.features(images)
        return found if self.classifier is None else self.classifier(found)

    def features(self, images: Tensor) -> Tensor:
        """Features [N, D] of normalised images [N, C, S, S]."""
        return _called(self._part, self.encoder, (images,), "features [N, D]", 2)

    def map(self, images: Tensor) -> Tensor:
        """The map [N, D, P, P] of normalised images. Raises ValueError if the module has none."""
        own = getattr(self.encoder, "map", None)
        if own is None:
            raise ValueError("its module has no method map")
        return _called(self._part, own, (images,), "a map [N, D, P, P]", 4)


class OwnTextModel(nn.Module):
    """An extension's module of texts, called as a model of transformers is."""

    def __init__(self, part: Part, module: nn.Module, text: OwnTextInput) -> None:
        super().__init__()
        self._part = part
        self.encoder = module
        self.config = SimpleNamespace(vocab_size=text.vocabulary, pad_token_id=text.padding)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """`last_hidden_state` [N, L, D] of ids and mask [N, L]."""
        inputs = (input_ids, attention_mask)
        found = _called(self._part, self.encoder, inputs, "hidden states [N, L, D]", 3)
        return SimpleNamespace(last_hidden_state=found)


def _called(
    part: Part, call: Callable[..., Tensor], inputs: tuple[Tensor, ...], what: str, axes: int
) -> Tensor:
    """What the extension's code gives. Raises StageError, with the line, where it fails."""
    if torch.compiler.is_compiling():
        return call(*inputs)
    try:
        found = call(*inputs)
    except (StageError, MemoryError, torch.OutOfMemoryError):
        raise  # the caller tries again with fewer rows
    except Exception as error:
        raise StageError(sentence(part.extension, error)) from error
    if not isinstance(found, Tensor) or found.ndim != axes or len(found) != len(inputs[0]):
        given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise StageError(f"{part} gives {given} for {len(inputs[0])} rows; give {what}, a tensor")
    return found


def build(part: Part, options: Mapping[str, Any], image: ImageInput, classes: int) -> OwnModel:
    """The model, its weights drawn from torch's global generator. Raises StageError."""
    return OwnModel(part, _module(part, image, options), image, classes)


def build_text(part: Part, options: Mapping[str, Any], text: OwnTextInput) -> OwnTextModel:
    """As `build`, for texts."""
    return OwnTextModel(part, _module(part, text, options), text)


def _module(part: Part, given: ImageInput | OwnTextInput, options: Mapping[str, Any]) -> nn.Module:
    with blaming(part.extension):
        made = load(part)(given, **options)
    if not isinstance(made, nn.Module):
        raise StageError(f"{part} returns {type(made).__name__}; return a torch.nn.Module")
    return made

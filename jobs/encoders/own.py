"""Encoders of an extension: a function that builds a torch module, which this makes a model of.

The function takes the input (`image.size`, `image.channels`, ...) and its options, and returns a
module that gives features [N, D] of normalised images [N, C, S, S]. The module may have `map`,
which gives [N, D, P, P] for tasks of masks. `OwnModel` is what is trained and stored: the module,
and in pre-training a linear classifier on its features. What runs is the text that was planned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jobs.contract import StageError
from jobs.extensions.declared import IMAGE, Declared
from jobs.extensions.load import blaming, load, sentence
from jobs.extensions.spec import Part
from jobs.images.spec import ImageInput

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
        return self._checked(self.encoder, images, "features [N, D]", 2)

    def map(self, images: Tensor) -> Tensor:
        """The map [N, D, P, P] of normalised images. Raises ValueError if the module has none."""
        own = getattr(self.encoder, "map", None)
        if own is None:
            raise ValueError("its module has no method `map`")
        return self._checked(own, images, "a map [N, D, P, P]", 4)

    def _checked(
        self, call: Callable[[Tensor], Tensor], images: Tensor, what: str, axes: int
    ) -> Tensor:
        """What the extension's code gives. Raises StageError, with the line, where it fails."""
        if torch.compiler.is_compiling():
            return call(images)
        try:
            found = call(images)
        except (StageError, MemoryError, torch.OutOfMemoryError):
            raise  # the caller tries again with fewer images
        except Exception as error:
            raise StageError(sentence(self._part.extension, error)) from error
        if not isinstance(found, Tensor) or found.ndim != axes or len(found) != len(images):
            given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise StageError(
                f"{self._part} gives {given} for {len(images)} images; give {what}, a tensor"
            )
        return found


def build(part: Part, options: Mapping[str, Any], image: ImageInput, classes: int) -> OwnModel:
    """The model, its weights drawn from torch's global generator. Raises StageError."""
    with blaming(part.extension):
        made = load(part)(image, **options)
    if not isinstance(made, nn.Module):
        raise StageError(f"{part} returns {type(made).__name__}; return a torch.nn.Module")
    return OwnModel(part, made, image, classes)


# -- the check -------------------------------------------------------------------------------------

_IMAGE = ImageInput(size=32)
_CLOSE = 1e-4  # relative, of an image's features to those beside other images


def check(part: Part, declared: Declared) -> str:
    """One sentence about a function whose encoder works. Raises StageError for one that does not.

    Builds it with its defaults for images of 32 x 32 pixels.
    """
    if lacking := [name for name in declared.required if name != IMAGE]:
        raise StageError(f"{part}: give {lacking[0]} a default, with which it can be tried")
    model, again = _drawn(part, 0), _drawn(part, 0)
    for (name, value), other in zip(
        model.state_dict().items(), again.state_dict().values(), strict=True
    ):
        if not torch.equal(value, other):
            raise StageError(
                f"{part} gives {name} other values when it is built again from the same seed; "
                f"draw from torch's generator alone"
            )
    images = torch.randn(4, *_IMAGE.shape, generator=torch.Generator().manual_seed(0))
    _check_gradients(part, model, images)  # in training mode: buffers may change
    found = _features(model, images)
    if not found.isfinite().all():
        raise StageError(f"{part} gives features that are not finite")
    if not torch.equal(found, _features(model, images)):
        raise StageError(f"{part} gives other features of the same images in eval mode")
    if not _is_close(found[:1], _features(model, images[:1])):
        raise StageError(
            f"{part} gives an image other features when it is encoded alone; let them depend on "
            f"the image only"
        )
    reopened = _drawn(part, 1)
    reopened.load_state_dict(model.state_dict())
    if not torch.equal(found, _features(reopened, images)):
        raise StageError(
            f"{part} gives other features when its weights are loaded again; keep all state in "
            f"parameters and buffers"
        )
    weights = sum(value.numel() for value in model.parameters())
    words = f"gives {found.shape[1]} features of {_IMAGE.size} x {_IMAGE.size} pixels"
    if hasattr(model.encoder, "map"):
        with torch.no_grad():
            height, width = model.map(images).shape[2:]
        if height != width:
            raise StageError(f"{part}: map gives {height} x {width} patches; give a square map")
        words += f" and a map of {height} x {width} patches"
    return f"{words}; {weights:,} parameters"


def _drawn(part: Part, seed: int) -> OwnModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(part, {}, _IMAGE, 0).eval()


def _features(model: OwnModel, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval().features(images)


def _is_close(found: Tensor, other: Tensor) -> bool:
    return torch.allclose(found, other, rtol=_CLOSE, atol=_CLOSE * float(found.abs().max()))


def _check_gradients(part: Part, model: OwnModel, images: Tensor) -> None:
    """Raise StageError for a parameter that pre-training by several workers cannot average."""
    with torch.random.fork_rng(devices=[]):
        features = model.train().features(images)
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if not named:
        return
    if not features.requires_grad:
        raise StageError(f"{part} gives features that depend on none of its parameters")
    slopes = torch.autograd.grad(features.square().sum(), list(named.values()), allow_unused=True)
    for name, slope in zip(named, slopes, strict=True):
        if slope is None:
            raise StageError(
                f"{part}: parameter {name.removeprefix(f'{MODULE}.')} takes no part in the "
                f"features; take it out, or make it a buffer"
            )

"""Checks an extension's encoder on made-up images or texts: do input and weights alone decide?

Takes the function and its declaration; builds the encoder with its defaults, several times, and
compares what it gives. Gives what was found in one sentence, and raises StageError for a fault.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jobs.contract import StageError
from jobs.encoders.own import MODULE, OwnModel, OwnTextModel, build, build_text
from jobs.extensions.declared import INPUTS, TEXT, Declared
from jobs.extensions.spec import Part
from jobs.images.spec import ImageInput
from jobs.text.spec import OwnTextInput

_IMAGE = ImageInput(size=32)
_TEXT = OwnTextInput(max_length=16, pooling="mean", tokenizer_sha256="", vocabulary=50, padding=0)
_CLOSE = 1e-4  # relative, of a row's features to those beside other rows


def check(part: Part, declared: Declared) -> str:
    """One sentence about a function whose encoder works. Raises StageError for one that does not.

    Builds it with its defaults, for images of 32 x 32 pixels or texts of up to 16 tokens.
    """
    if lacking := [name for name in declared.required if name not in INPUTS]:
        raise StageError(f"{part}: give {lacking[0]} a default, with which it can be tried")
    of_text = declared.arguments[0] == TEXT
    model, again = _drawn(part, 0, of_text), _drawn(part, 0, of_text)
    both = zip(model.state_dict().items(), again.state_dict().values(), strict=True)
    for (name, value), other in both:
        if not torch.equal(value, other):
            raise StageError(
                f"{part} gives {name} other values when it is built again from the same seed; "
                f"draw from torch's generator alone"
            )
    rows = _rows(of_text)
    _check_gradients(part, model, rows)  # in training mode: buffers may change
    found = _features(model, rows)
    if not found.isfinite().all():
        raise StageError(f"{part} gives features that are not finite; return finite numbers")
    if not torch.equal(found, _features(model, rows)):
        raise StageError(
            f"{part} gives other features of the same rows in eval mode; draw no random numbers "
            f"there"
        )
    if not _is_close(found[:1], _features(model, rows[:1])):
        raise StageError(
            f"{part} gives a row other features when it is encoded alone; let them depend on that "
            f"row only{', without its padding' if of_text else ''}"
        )
    reopened = _drawn(part, 1, of_text)
    reopened.load_state_dict(model.state_dict())
    if not torch.equal(found, _features(reopened, rows)):
        raise StageError(
            f"{part} gives other features when its weights are loaded again; keep all state in "
            f"parameters and buffers"
        )
    weights = sum(value.numel() for value in model.parameters())
    what = "a text" if of_text else f"{_IMAGE.size} x {_IMAGE.size} pixels"
    return f"gives {found.shape[1]} features of {what}{_map(part, model)}; {weights:,} parameters"


def _map(part: Part, model: nn.Module) -> str:
    """Words about the map of an encoder that has one."""
    if not isinstance(model, OwnModel) or not hasattr(model.encoder, "map"):
        return ""
    with torch.no_grad():
        height, width = model.map(_rows(False)).shape[2:]
    if height != width:
        raise StageError(f"{part}: map gives {height} x {width} patches; give a square map")
    return f" and a map of {height} x {width} patches"


def _drawn(part: Part, seed: int, of_text: bool) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = build_text(part, {}, _TEXT) if of_text else build(part, {}, _IMAGE, 0)
        return made.eval()


def _rows(of_text: bool) -> Tensor:
    """Images, or ids of texts of several lengths, the shorter ones padded."""
    generator = torch.Generator().manual_seed(0)
    if not of_text:
        return torch.randn(4, *_IMAGE.shape, generator=generator)
    ids = torch.randint(1, _TEXT.vocabulary, (4, _TEXT.max_length), generator=generator)
    for row in range(len(ids)):
        ids[row, 4 * (row + 1) :] = _TEXT.padding
    return ids


def _encoded(model: nn.Module, rows: Tensor) -> Tensor:
    """Features [N, D] of images, or the means of the hidden states of texts without padding."""
    if isinstance(model, OwnModel):
        return model.features(rows)
    assert isinstance(model, OwnTextModel)
    mask = (rows != _TEXT.padding).long()
    longest = int(mask.sum(1).max())  # a text alone is not padded
    hidden: Tensor = model(rows[:, :longest], mask[:, :longest]).last_hidden_state
    weight = mask[:, :longest, None]
    return (hidden * weight).sum(1) / weight.sum(1)


def _features(model: nn.Module, rows: Tensor) -> Tensor:
    with torch.no_grad():
        return _encoded(model.eval(), rows)


def _is_close(found: Tensor, other: Tensor) -> bool:
    return torch.allclose(found, other, rtol=_CLOSE, atol=_CLOSE * float(found.abs().max()))


def _check_gradients(part: Part, model: nn.Module, rows: Tensor) -> None:
    """Raise StageError for a parameter that pre-training by several workers cannot average."""
    with torch.random.fork_rng(devices=[]):
        features = _encoded(model.train(), rows)
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if not named:
        return
    if not features.requires_grad:
        raise StageError(
            f"{part} gives features that depend on none of its parameters; compute them without "
            f"no_grad and detach, or make the parameters buffers"
        )
    slopes = torch.autograd.grad(features.square().sum(), list(named.values()), allow_unused=True)
    for name, slope in zip(named, slopes, strict=True):
        if slope is None:
            raise StageError(
                f"{part}: parameter {name.removeprefix(f'{MODULE}.')} takes no part in the "
                f"features; take it out, or make it a buffer"
            )

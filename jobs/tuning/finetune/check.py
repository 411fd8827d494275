"""Checks an extension's method that trains the encoder, on made-up images of three classes.

Takes the class and its declaration; trains a tiny encoder with it, once to the end and once with an
interruption. Gives what was found in one sentence, and raises StageError for a fault. Needs no
data, and takes a second.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from jobs.contract import StageError
from jobs.encoders.card import EncoderCard
from jobs.encoders.image import ImageEncoder
from jobs.extensions.declared import Declared
from jobs.extensions.spec import Part
from jobs.images.rows import ImageRows
from jobs.images.spec import Augment, ImageInput, Views
from jobs.tuning.budget import Budget
from jobs.tuning.finetune.inputs import Inputs
from jobs.tuning.finetune.model import AdaptedEncoder
from jobs.tuning.finetune.train import FineTuning, ViewSettings
from jobs.tuning.made_up import made_up
from jobs.tuning.methods import Method
from jobs.tuning.rows import TaskRows
from jobs.tuning.search_space import Space
from jobs.tuning.target import ClassTarget

_DIM, _CLASSES, _SEED = 8, 3, 0
_BUDGET = Budget(epochs=3, batch_size=16)
_IMAGE = ImageInput(size=8, mean=(0.5,), std=(0.5,))
_VIEWS = ViewSettings(Views(count=2, augment=Augment(flip=True)), "made-up")


class _Tiny(nn.Module):
    """An encoder of one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, _DIM, 4, stride=4)

    def features(self, images: Tensor) -> Tensor:
        found: Tensor = self.convolution(images).relu().mean((2, 3))
        return found


def check(part: Part, declared: Declared) -> str:
    """One sentence about a method that works. Raises StageError for one that does not."""
    whole, broken = _started(part, declared), _started(part, declared)
    broken.run_epoch()
    going = _started(part, declared)
    going.restore(broken.save())
    for tuning in (whole, going):
        while len(tuning.history) < _BUDGET.epochs:
            tuning.run_epoch()
            if tuning.failure is not None:
                raise StageError(f"{part}: {tuning.failure}")
    if whole.save() != going.save():
        raise StageError(
            f"{part} goes on otherwise after an interruption than without one; keep all state in "
            f"parameters and buffers"
        )
    score = whole.history[-1].validation["accuracy"]
    return (
        f"trains the encoder, and goes on after an interruption as without one; {score:.0f} % on "
        f"made-up classes"
    )


def _started(part: Part, declared: Declared) -> FineTuning:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = _Tiny()
    card = EncoderCard("extension", "made-up", {}, _IMAGE, (), _DIM, None, None, "")
    encoder = ImageEncoder(card, model, torch.device("cpu"))
    method = Method(head=str(part), adapt="ft", space=Space(lr=0.01))
    return FineTuning(
        AdaptedEncoder(encoder, method, ClassTarget(_CLASSES), _SEED, part),
        _inputs(60, 1),
        _inputs(30, 2),
        made_up(declared, 0.5),
        _BUDGET,
        _VIEWS,
        seed=_SEED,
    )


def _inputs(samples: int, seed: int) -> Inputs:
    """Images whose class is their brightest channel."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % _CLASSES
    pixels = torch.randint(0, 160, (samples, *_IMAGE.shape), generator=generator)
    pixels[torch.arange(samples), labels] += 60
    keys = pa.array([f"sample-{number:03d}" for number in range(samples)])
    rows = TaskRows(keys, labels, np.arange(samples), other_classes=0)
    return Inputs(rows, ImageRows(pixels.to(torch.uint8)))

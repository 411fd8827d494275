"""Checks an extension's method on made-up features: does a stack give what each member gets alone?

Takes the class and its declaration; trains a few configurations from the declared ranges together
and alone, on blobs of three classes. Gives what was found in one sentence, and raises StageError
for a fault. Needs no data, and takes a second.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from jobs.contract import StageError
from jobs.extensions.declared import Declared
from jobs.extensions.spec import Part
from jobs.tuning.budget import Budget
from jobs.tuning.frozen.fit import solve
from jobs.tuning.frozen.train import train
from jobs.tuning.heads import Shape
from jobs.tuning.made_up import made_up
from jobs.tuning.rows import Labelled
from jobs.tuning.target import ClassTarget
from jobs.tuning.trained import Trained

TOLERANCE = 1e-4
"""The largest relative difference between a member's losses in a stack and alone."""

_DIM, _CLASSES, _MEMBERS, _SEED = 16, 3, 4, 0
_BUDGET = Budget(epochs=3, batch_size=32)


def check(part: Part, declared: Declared) -> str:
    """One sentence about a method that works. Raises StageError for one that does not."""
    shape = Shape("extension", _DIM, ClassTarget(_CLASSES), part=part)
    training, validation = _blobs(120, 2, 1), _blobs(60, 0, 2)
    shares = [(member + 1) / (_MEMBERS + 1) for member in range(_MEMBERS)]
    tried = [made_up(declared, share) for share in shares]
    if not declared.trained:
        found = solve(shape, training, validation, tried, "accuracy", _SEED)
        return f"is solved by `prepare`; {_score(found)}"
    together = train(shape, training, validation, tried, _BUDGET, seed=_SEED)
    alone = [train(shape, training, validation, [one], _BUDGET, seed=_SEED) for one in tried]
    _compare(part, together, alone)
    how = together.unstackable or f"trains as one stack of {_MEMBERS}, as each alone"
    return f"{how}; {_score(together)}"


def _compare(part: Part, together: Trained, alone: Sequence[Trained]) -> None:
    for member, single in enumerate(alone):
        for number, (ours, own) in enumerate(zip(together.epochs, single.epochs, strict=True), 1):
            pairs = {"validation loss": (ours.validation_loss[member], own.validation_loss[0])}
            pairs |= {n: (ours.train[n][member], values[0]) for n, values in own.train.items()}
            for name, (stacked, lone) in pairs.items():
                if not torch.isclose(stacked, lone, rtol=TOLERANCE, atol=1e-6, equal_nan=True):
                    raise StageError(
                        f"{part}: {name} of epoch {number} is {float(stacked):.6g} in a stack and "
                        f"{float(lone):.6g} alone; keep all state in parameters and buffers, and "
                        f"leave out a bias before BatchNorm (its gradient is rounding noise)"
                    )
    finished = [(one.epochs[-1].key(0)[:2], k) for k, one in enumerate(alone) if one.chosen == 0]
    best = min(finished)[1] if finished else None
    if together.chosen != best:
        raise StageError(f"{part}: a stack selects configuration {together.chosen}, not {best}")


def _score(found: Trained) -> str:
    if found.chosen is None:
        raise StageError(f"every configuration failed (first: {found.failures[0]})")
    score = found.epochs[-1].validation.value("accuracy", found.chosen)
    return f"{score:.0f} % on made-up classes"


def _blobs(samples: int, views: int, seed: int) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % _CLASSES
    centres = torch.randn(_CLASSES, _DIM, generator=torch.Generator().manual_seed(7))
    shape = (views, samples, _DIM) if views else (samples, _DIM)
    return Labelled(centres[labels] + torch.randn(shape, generator=generator), labels)

"""What features were made with, compared when a step resumes.

The identity holds the encoder's weights and input, the views and the shift with their seeds, the
arithmetic, the device and the library versions. It leaves out the batch size, the workers and the
machine, which change features by rounding alone. The step's fingerprint records what was requested;
the identity records what was used.
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jobs.encoders.card import EncoderCard
from jobs.features.spec import FeaturesStep
from jobs.storage.folder import Folder


def made_with(step: FeaturesStep, encoder: Folder) -> str:
    """The `identity` of a step's features by the encoder in a folder."""
    return identity(step, EncoderCard.read(encoder), device_of(step))


def device_of(step: FeaturesStep) -> str:
    """Where the step's encoder runs, as torch names it."""
    return "cuda" if step.gpus_per_worker > 0 else "cpu"


def identity(step: FeaturesStep, card: EncoderCard, device: str) -> str:
    """All that a unit's features depend on except its rows, as canonical JSON."""
    made_with: dict[str, Any] = {
        "weights_sha256": card.weights_sha256,
        "input": card.input_json,
        "views": step.views.semantic(),
        "shift": step.shift.semantic() if step.shift else None,
        "dtype": step.dtype,
        "precision": step.precision,
        "device": device,
        "versions": {name: found for name in card.libraries if (found := _version(name))},
    }
    if step.grid is not None:
        made_with["grid"] = step.grid.semantic()
    return json.dumps(made_with, sort_keys=True)


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None

"""What features were made with, and in what batches: recorded with them, and compared on resuming.

Features are the encoder's weights, its input's transform, views and shift by their seeds, the
arithmetic, and the libraries that did it all; never the batch size, the workers or the machine,
which change them by rounding alone. The step's fingerprint holds what was asked for; this holds
what was there.

A batch size of `auto` follows from the model and the device's memory, not from timing, so that a
step's units, wherever and whenever they are extracted, are batched alike and come out the same.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from jobs.encoders.encoder import Encoder, EncoderCard
from jobs.features.spec import BatchSize, FeaturesStep, Precision

LIBRARIES = ("torch", "timm", "open_clip_torch", "pillow", "numpy")

CPU_BYTES = 32 << 20  # of the widest layer's activations: larger batches only leave the cache
GPU_SHARE = 0.02  # of the device's memory, for the same
LEAST, MOST = 8, 1024


def identity(step: FeaturesStep, card: EncoderCard, device: str) -> str:
    """Everything a unit's features depend on but its rows, as canonical JSON."""
    said: dict[str, Any] = {
        "weights_sha256": card.weights_sha256,
        "input": card.input_json,
        "views": step.views.semantic(),
        "shift": step.shift.semantic() if step.shift else None,
        "dtype": step.dtype,
        "precision": step.precision,
        "device": device,
        "versions": {name: found for name in LIBRARIES if (found := _version(name))},
    }
    return json.dumps(said, sort_keys=True)


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def rows_at_once(asked: BatchSize, encoder: Encoder, precision: Precision) -> int:
    """The batch size asked for; for `auto` the power of two that suits model and device."""
    if asked != "auto":
        return asked
    room = float(CPU_BYTES)
    if encoder.device.type == "cuda":
        room = GPU_SHARE * torch.cuda.get_device_properties(encoder.device).total_memory
    fits = max(1, int(room // _widest(encoder, precision)))
    return max(LEAST, min(MOST, 1 << (fits.bit_length() - 1)))


@lru_cache(maxsize=2)
def _widest(encoder: Encoder, precision: Precision) -> int:
    """Bytes that the widest layer takes and gives for one row."""
    most = 1

    def look(module: torch.nn.Module, given: Any, taken: Any) -> None:
        nonlocal most
        tensors = [t for t in (*given, taken) if torch.is_tensor(t)]
        most = max(most, sum(t.numel() * t.element_size() for t in tensors))

    leaves = [m for m in encoder.model.modules() if not any(True for _ in m.children())]
    hooks = [leaf.register_forward_hook(look) for leaf in leaves]
    try:
        encoder.features(torch.zeros(1, *encoder.card.input.shape), precision)
    finally:
        for hook in hooks:
            hook.remove()
    return most

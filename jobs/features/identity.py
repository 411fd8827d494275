"""What features were made with, compared when a step resumes; and the automatic batch size.

The identity holds the encoder's weights and input, the views and the shift with their seeds, the
arithmetic, the device and the library versions. It leaves out the batch size, the workers and the
machine, which change features by rounding alone. The step's fingerprint records what was requested;
the identity records what was used.

A batch size of `auto` depends on the model and the device's memory, not on timing. So all units of
a step have the same batch size and the same bytes, whenever they are extracted.
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

# Of the widest layer's activations. A larger batch leaves the CPU's cache and gains nothing.
CPU_BYTES = 32 << 20
GPU_SHARE = 0.02  # of the device's memory, for the same
LEAST, MOST = 8, 1024


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
        "versions": {name: found for name in LIBRARIES if (found := _version(name))},
    }
    return json.dumps(made_with, sort_keys=True)


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def rows_at_once(requested: BatchSize, encoder: Encoder, precision: Precision) -> int:
    """The requested batch size; for `auto`, a power of two that fits model and device."""
    if requested != "auto":
        return requested
    budget = float(CPU_BYTES)
    if encoder.device.type == "cuda":
        budget = GPU_SHARE * torch.cuda.get_device_properties(encoder.device).total_memory
    rows = max(1, int(budget // _bytes_per_row(encoder, precision)))
    return max(LEAST, min(MOST, 1 << (rows.bit_length() - 1)))


@lru_cache(maxsize=2)
def _bytes_per_row(encoder: Encoder, precision: Precision) -> int:
    """Bytes of the widest layer's inputs and output for one row."""
    most = 1

    def measure(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        nonlocal most
        tensors = [t for t in (*inputs, output) if torch.is_tensor(t)]
        most = max(most, sum(t.numel() * t.element_size() for t in tensors))

    leaves = [m for m in encoder.model.modules() if not any(True for _ in m.children())]
    hooks = [leaf.register_forward_hook(measure) for leaf in leaves]
    try:
        encoder.features(torch.zeros(1, *encoder.card.input.shape), precision)
    finally:
        for hook in hooks:
            hook.remove()
    return most

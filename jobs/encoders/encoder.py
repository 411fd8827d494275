"""A finished encoder: the files in its folder, written by pre-training and read by later stages.

The folder holds `model.safetensors` (all weights of the model), `encoder.json` (an `EncoderCard`)
and, for a text encoder, its tokenizer's files. `load` gives an `Encoder`: frozen, in eval mode,
with its own input preparation. Never unpickles, never downloads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor, nn

from jobs.contract import StageError
from jobs.encoders.card import CARD as CARD
from jobs.encoders.card import WEIGHTS as WEIGHTS
from jobs.encoders.card import Architecture as Architecture
from jobs.encoders.card import EncoderCard as EncoderCard
from jobs.encoders.card import Family as Family
from jobs.encoders.grid import GridEncoder
from jobs.encoders.image import ImageEncoder
from jobs.encoders.interface import Encoder as Encoder
from jobs.encoders.interface import Precision as Precision
from jobs.encoders.text import TextEncoder
from jobs.extensions.spec import Extension
from jobs.images.spec import Grid, ImageInput
from jobs.storage.folder import AlteredError, Folder


def weights_bytes(model: nn.Module) -> bytes:
    """A model's weights and buffers as a safetensors file; equal weights give equal bytes."""
    return safetensors.torch.save(
        # Copies, because safetensors refuses tensors that share memory (tied weights).
        {name: value.detach().cpu().contiguous().clone() for name, value in _sorted_state(model)}
    )


def digests_of(files: Mapping[str, bytes]) -> dict[str, str]:
    """The sha256 of each file, by name, for a card."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}


def save(
    folder: Folder, card: EncoderCard, weights: bytes, files: Mapping[str, bytes] | None = None
) -> None:
    """Write a finished encoder into a folder, the card last; `files`: those that it names."""
    folder.write_bytes(WEIGHTS, weights)
    for name, data in (files or {}).items():
        folder.write_bytes(name, data)
    folder.write_json(CARD, card.as_json())


def load(
    folder: Folder, device: torch.device | None = None, source: Extension | None = None
) -> Encoder:
    """Open a finished encoder's folder; `source`: the planned file of an extension's encoder.

    Raises StageError when a file is not the one that the card names, or the weights do not fit the
    architecture that the installed library builds.
    """
    card = EncoderCard.read(folder)
    data = _read_expected(folder, WEIGHTS, card.weights_sha256)
    files = {name: _read_expected(folder, name, sha256) for name, sha256 in card.files.items()}
    with torch.random.fork_rng(devices=[]):  # building draws initial weights
        model = card.architecture(source).build()
    try:
        model.load_state_dict(safetensors.torch.load(data))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise StageError(
            f"the weights in {folder.uri} do not fit {card.family} model {card.model!r} as the "
            f"installed {card.family} builds it ({reason}); install the version that trained it"
        ) from error
    return opened(card, model, device or torch.device("cpu"), files)


def opened(
    card: EncoderCard, model: nn.Module, device: torch.device, files: Mapping[str, bytes]
) -> Encoder:
    """The encoder of a card, a model and the files that the card names."""
    if isinstance(card.input, ImageInput):
        return ImageEncoder(card, model, device)
    return TextEncoder(card, model, device, files)


def gridded(encoder: Encoder, grid: Grid, classes: int) -> Encoder:
    """An encoder of the patches of the same encoder's images, with masks of so many classes.

    Raises StageError when the encoder reads no images or gives no map.
    """
    if not isinstance(encoder, ImageEncoder):
        raise StageError(
            f"{encoder.card.model} reads no images, so it has no patches; give tasks of masks "
            f"another encoder"
        )
    return GridEncoder(encoder, grid, classes)


def _read_expected(folder: Folder, name: str, sha256: str) -> bytes:
    try:
        return folder.read_expected(name, sha256)
    except AlteredError:
        raise StageError(
            f"{folder.uri}/{name} is not the file that {CARD} names (other sha256); make "
            f"this encoder again"
        ) from None


def _sorted_state(model: nn.Module) -> list[tuple[str, Tensor]]:
    return sorted(model.state_dict().items())

"""A file of weights, and how its tensors find their place in a model.

Takes a safetensors file or a state dict saved by torch, and a model; gives the model's own state
dict, filled from the file. Nothing is unpickled but tensors and plain containers. What does not fit
is refused by name and shape, never left out silently.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Collection, Mapping
from textwrap import shorten
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from jobs.contract import StageError
from jobs.storage.folder import Folder

Tensors = Mapping[str, Tensor]

_WRAPPINGS = ("state_dict", "model", "model_state_dict", "params")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_COUNTER = "num_batches_tracked"  # BatchNorm's own, which old files lack; never used in eval mode


def read(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file, by its absolute path or URI, in its order.

    Raises StageError for a file that holds anything else.
    """
    path = os.fspath(file)
    folder, name = Folder.holding(path)
    try:
        if folder.is_local and name.endswith(".safetensors"):
            return dict(safetensors.torch.load_file(path))
        data = path if folder.is_local else folder.read_bytes(name)
        if isinstance(data, bytes) and name.endswith(".safetensors"):
            return dict(safetensors.torch.load(data))
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        found: Any = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # whose words tell how to run what is in there
        raise _no_weights(path, "it holds other objects, which are not loaded") from None
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise _no_weights(path, shorten(str(error), 160, placeholder=" ...")) from None
    except OSError as error:
        raise StageError(f"{path} cannot be read ({error}); correct `file`") from None
    for key in _WRAPPINGS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found:
        raise StageError(f"{path} holds no state dict; save the model's state_dict()")
    stray = [str(key) for key, value in found.items() if not isinstance(value, Tensor)]
    if stray:
        raise StageError(f"{path}: {stray[0]} is no tensor; save the model's state_dict() alone")
    return dict(found)


def _no_weights(path: str, reason: str) -> StageError:
    return StageError(
        f"{path} is neither safetensors nor a state dict of tensors alone ({reason}); save the "
        f"model's state_dict() as safetensors"
    )


def by_name(
    tensors: Tensors, wanted: Tensors, spare: Collection[str]
) -> tuple[dict[str, Tensor], int]:
    """`wanted` filled from tensors of the same names; how many of the file's were left out.

    A prefix that wrapping puts before every name is taken off. Those left out begin with one of
    `spare` (the classifier, say). Raises StageError for what is missing, too much or misshapen.
    """
    tensors = _unwrapped(tensors, wanted)
    missing = [n for n in wanted if n not in tensors and not n.endswith(_COUNTER)]
    if missing:
        raise StageError(
            f"the file lacks {len(missing)} of the model's {len(wanted)} tensors (the first: "
            f"{missing[0]}); name its architecture in `model`, or try match: order"
        )
    extra = [n for n in tensors if n not in wanted and not n.startswith(tuple(spare))]
    if extra:
        raise StageError(
            f"the file has {len(extra)} tensors that the model does not (the first: {extra[0]}); "
            f"name its architecture in `model`, or their prefix in `leave_out`"
        )
    filled = {n: _fitted(tensors.get(n, value), value, n, n) for n, value in wanted.items()}
    return filled, sum(n not in wanted for n in tensors)


def by_order(tensors: Tensors, wanted: Tensors, dim: int) -> tuple[dict[str, Tensor], int]:
    """`wanted` filled tensor after tensor; how many of the file's last were left out.

    Shapes must agree all along; batches counted by BatchNorm are passed over on both sides. What
    may be left over is the classifier at the end: a weight of `dim` columns and perhaps a bias.
    Raises StageError at the first place that does not fit.
    """
    places = [name for name, value in wanted.items() if not _counts(value)]
    found = [(name, value) for name, value in tensors.items() if not _counts(value)]
    if len(found) < len(places):
        raise StageError(
            f"the file has {len(found)} tensors and the model {len(places)}; name its "
            f"architecture in `model`"
        )
    filled = dict(wanted)
    for place, (name, value) in zip(places, found, strict=False):
        filled[place] = _fitted(value, wanted[place], name, place)
    rest = [value for _, value in found[len(places) :]]
    if rest and not _is_classifier(rest, dim):
        name = found[len(places)][0]
        raise StageError(
            f"the file has {len(rest)} tensors after the model's last one (the first: {name}), "
            f"which are no classifier; name its architecture in `model`"
        )
    return filled, len(rest)


def _counts(value: Tensor) -> bool:
    """Whether it is a whole number by itself: a count, under whatever name."""
    return value.ndim == 0 and not value.is_floating_point()


def _is_classifier(rest: list[Tensor], dim: int) -> bool:
    weight, *bias = rest
    flat = weight.flatten(1) if weight.ndim > 1 else weight
    fits = flat.ndim == 2 and flat.shape[1] == dim
    return fits and len(bias) <= 1 and all(b.shape == flat.shape[:1] for b in bias)


def _fitted(value: Tensor, like: Tensor, name: str, place: str) -> Tensor:
    if value.shape != like.shape:
        where = name if name == place else f"{name}, for {place}"
        raise StageError(
            f"{where}: the file has shape {tuple(value.shape)}, the model {tuple(like.shape)}; "
            f"name the file's architecture in `model` and `model_options`"
        )
    return value.to(like.dtype)


def _unwrapped(tensors: Tensors, wanted: Tensors) -> Tensors:
    """Names without a prefix that all of them have and the model does not."""
    for prefix in _PREFIXES:
        if all(n.startswith(prefix) for n in tensors) and not any(
            n.startswith(prefix) for n in wanted
        ):
            tensors = {n.removeprefix(prefix): value for n, value in tensors.items()}
    return tensors

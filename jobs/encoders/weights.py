"""Read a file of weights and match its tensors to a model.

Takes a safetensors file or a state dict saved by torch, and a model; gives the model's state dict,
filled from the file. Unpickles nothing but tensors and plain containers. A tensor that does not fit
raises an error with its name and shape; none is left out silently.
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

_WRAPPER_KEYS = ("state_dict", "model", "model_state_dict", "params")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_BATCH_COUNTER = "num_batches_tracked"  # of BatchNorm; missing in old files, unused in eval mode


def read(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file (absolute path or URI), in the file's order.

    Raises StageError for a file that holds anything else.
    """
    path = os.fspath(file)
    folder, name = Folder.holding(path)
    try:
        folder.require_file(name)
        if folder.is_local and name.endswith(".safetensors"):
            return dict(safetensors.torch.load_file(path))
        data = path if folder.is_local else folder.read_bytes(name)
        if isinstance(data, bytes) and name.endswith(".safetensors"):
            return dict(safetensors.torch.load(data))
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        found: Any = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's message explains how to run the code
        raise _not_weights_error(path, "it holds other objects, which are never loaded") from None
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise _not_weights_error(path, shorten(str(error), 160, placeholder=" ...")) from None
    except OSError as error:
        raise StageError(f"{path} cannot be read ({error}); correct `file`") from None
    for key in _WRAPPER_KEYS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found:
        raise StageError(f"{path} holds no state dict; save the model's state_dict()")
    stray = [str(key) for key, value in found.items() if not isinstance(value, Tensor)]
    if stray:
        raise StageError(
            f"{path}: {stray[0]} is no tensor; save nothing but the model's state_dict()"
        )
    return dict(found)


def _not_weights_error(path: str, reason: str) -> StageError:
    return StageError(
        f"{path} is neither safetensors nor a state dict of tensors alone ({reason}); save the "
        f"model's state_dict() as safetensors"
    )


def by_name(
    tensors: Tensors, wanted: Tensors, leave_out: Collection[str], remedy: str = ""
) -> tuple[dict[str, Tensor], int]:
    """`wanted` filled by name, and the number of the file's tensors that were left out.

    Strips a prefix that a wrapper has put before every name. Leaves out tensors whose names begin
    with one of `leave_out` (such as the classifier). Raises StageError for a tensor that is
    missing, unknown or of another shape; `remedy`: what else to try for one that is missing.
    """
    tensors = _strip_prefixes(tensors, wanted)
    missing = [n for n in wanted if n not in tensors and not n.endswith(_BATCH_COUNTER)]
    if missing:
        raise StageError(
            f"the file lacks {len(missing)} of the model's {len(wanted)} tensors (the first: "
            f"{missing[0]}); name its architecture in `model`{remedy}"
        )
    extra = [n for n in tensors if n not in wanted and not n.startswith(tuple(leave_out))]
    if extra:
        raise StageError(
            f"the file has {len(extra)} tensors that the model does not (the first: {extra[0]}); "
            f"name its architecture in `model`, or their prefix in `leave_out`"
        )
    filled = {n: _check_and_cast(tensors.get(n, value), value, n, n) for n, value in wanted.items()}
    return filled, sum(n not in wanted for n in tensors)


def by_order(tensors: Tensors, wanted: Tensors, dim: int) -> tuple[dict[str, Tensor], int]:
    """`wanted` filled in order, and the number of the file's last tensors that were left out.

    Shapes must agree. BatchNorm's batch counters are skipped on both sides. Only a classifier may
    be left over at the end: a weight of `dim` columns, with or without a bias. Raises StageError at
    the first tensor that does not fit.
    """
    names = [name for name, value in wanted.items() if not _is_counter(value)]
    found = [(name, value) for name, value in tensors.items() if not _is_counter(value)]
    if len(found) < len(names):
        raise StageError(
            f"the file has {len(found)} tensors and the model {len(names)}; name its "
            f"architecture in `model`"
        )
    filled = dict(wanted)
    for target, (name, value) in zip(names, found, strict=False):
        filled[target] = _check_and_cast(value, wanted[target], name, target)
    rest = [value for _, value in found[len(names) :]]
    if rest and not _is_classifier(rest, dim):
        name = found[len(names)][0]
        raise StageError(
            f"the file has {len(rest)} tensors after the model's last one (the first: {name}), "
            f"which are no classifier; name its architecture in `model`"
        )
    return filled, len(rest)


def _is_counter(value: Tensor) -> bool:
    """Whether the tensor is a single integer: a batch counter, under any name."""
    return value.ndim == 0 and not value.is_floating_point()


def _is_classifier(rest: list[Tensor], dim: int) -> bool:
    weight, *bias = rest
    flat = weight.flatten(1) if weight.ndim > 1 else weight
    fits = flat.ndim == 2 and flat.shape[1] == dim
    return fits and len(bias) <= 1 and all(b.shape == flat.shape[:1] for b in bias)


def _check_and_cast(value: Tensor, like: Tensor, name: str, target: str) -> Tensor:
    if value.shape != like.shape:
        where = name if name == target else f"{name}, for {target}"
        raise StageError(
            f"{where}: the file has shape {tuple(value.shape)}, the model {tuple(like.shape)}; "
            f"name the file's architecture in `model` and `model_options`"
        )
    return value.to(like.dtype)


def _strip_prefixes(tensors: Tensors, wanted: Tensors) -> Tensors:
    """The tensors, their names without a prefix that all of them have and no name of the model."""
    for prefix in _PREFIXES:
        if all(n.startswith(prefix) for n in tensors) and not any(
            n.startswith(prefix) for n in wanted
        ):
            tensors = {n.removeprefix(prefix): value for n, value in tensors.items()}
    return tensors

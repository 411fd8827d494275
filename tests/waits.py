"""Counts what the host waits for on the pretended GPU (`tests.pretend`).

A wait is a value that the host asks of the device, or a copy to it from memory that is not pinned.
They are counted in torch's functions and in what these call inside. Waits inside a CUDA library,
such as for memory, cannot be seen here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests import pretend

_INSIDE = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_consecutive"}
_INSIDE |= {"_linalg_eigh", "_linalg_svd"}  # they check whether they have converged
_MOVES = (Tensor.cpu, Tensor.to, Tensor.copy_)


class _Functions(TorchFunctionMode):
    """Counts copies from and to the device that the host waits for."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is Tensor.tolist and isinstance(args[0], pretend.OnGpu):
            self._found.append("tolist")
        # Torch groups gradients by their true device, which here is the CPU.
        grouped = sys._getframe(1).f_code.co_filename.endswith("clip_grad.py")
        if func in _MOVES and not kwargs.get("non_blocking") and not grouped:
            source = args[1] if func is Tensor.copy_ else args[0]
            if isinstance(source, pretend.OnGpu) is not isinstance(result, pretend.OnGpu):
                self._found.append(func.__name__)
        # `where` copies a number to the device; `masked_fill` does not.
        numbers = any(isinstance(arg, (int, float)) for arg in args)
        if func in (torch.where, Tensor.where) and numbers and isinstance(result, pretend.OnGpu):
            self._found.append("where")
        if func in (torch.tensor, torch.as_tensor) and isinstance(result, pretend.OnGpu):
            self._found.append(func.__name__)
        return result


class _Inside(TorchDispatchMode):
    """Counts operations whose result the host needs."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition("::")[2].partition(".")[0]
        if name in _INSIDE and any(isinstance(arg, pretend.OnGpu) for arg in args):
            self._found.append(name)
        if name.startswith("index") and isinstance(args[1], list):  # by a mask: how many rows?
            self._found += [name for mask in args[1] if getattr(mask, "dtype", None) == torch.bool]
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(found: list[str]) -> Iterator[None]:
    """Add what the block waits for to `found`."""
    with _Functions(found), _Inside(found):
        yield


def counting(found: list[str], inner: Callable[..., Any]) -> Callable[..., Any]:
    """`inner`, and what it waits for is added to `found`."""

    def call(*args: Any) -> Any:
        with counted(found):
            return inner(*args)

    return call


def counting_each(
    found: list[str], inner: Callable[..., Iterator[Any]]
) -> Callable[..., Iterator[Any]]:
    """As `counting`, for what an iterator does between its items."""

    def call(*args: Any) -> Iterator[Any]:
        items = inner(*args)
        while (item := counting(found, next)(items, None)) is not None:
            yield item

    return call

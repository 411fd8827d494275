"""CPU memory that says it is a GPU's, so that code for GPUs runs where there is none.

Inside `gpu()` a tensor made on or moved to "cuda" is an `OnGpu`: it computes on the CPU, names
`cuda:0` as its device, and refuses what a GPU would refuse, an operation on tensors of both
devices and a view as NumPy. What it cannot show: kernels, their rounding, streams, memory. Inside
a backward pass nothing is refused, for there torch hands out tensors of its own making.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map_only

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
MEMORY = 8 << 30  # bytes that the pretended device has

_SAYS = {Tensor.device.__get__: GPU, Tensor.is_cuda.__get__: True, Tensor.is_cpu.__get__: False}
_BACKWARD = (Tensor.backward, torch.autograd.backward, torch.autograd.grad)
_BOTH = (Tensor.copy_, Tensor.data.__set__)
_INDEXED = (Tensor.__getitem__, Tensor.__setitem__)  # a GPU's tensor, by indices of the CPU too


class OnGpu(Tensor):
    """A tensor that says it lies on the GPU."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _call(func, args, kwargs or {})


class _Pretend(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _call(func, args, kwargs or {})


class _Generator(torch.Generator):
    """One of the CPU, whatever device it is asked for."""

    def __new__(cls, device: Any = None) -> _Generator:
        return super().__new__(cls)

    def __init__(self, device: Any = None) -> None:
        super().__init__()


@contextmanager
def gpu() -> Iterator[None]:
    """Pretend for the length of the block."""
    cuda = {
        "Event": lambda: mock.Mock(spec=["record", "synchronize"]),
        "device": lambda device: nullcontext(),
        "manual_seed": lambda seed: None,
        "get_rng_state": lambda device: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device: None,
        "max_memory_allocated": lambda device: MEMORY / 2,
        "get_device_properties": lambda device: types.SimpleNamespace(total_memory=MEMORY),
        "synchronize": lambda device=None: None,
    }
    generator = mock.patch.object(torch, "Generator", _Generator)
    pinned = mock.patch.object(Tensor, "pin_memory", lambda tensor: tensor)  # in any thread
    with mock.patch.multiple(torch.cuda, **cuda), generator, pinned, _Pretend():
        yield


_backward = False


def _call(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    global _backward
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_gpu = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
    on_cpu = [t for t in tensors if not isinstance(t, OnGpu) and t.dim() > 0]
    if on_gpu and func in _SAYS:
        return _SAYS[func]
    with torch._C.DisableTorchFunctionSubclass():
        if func in _BACKWARD:
            before, _backward = _backward, True
            try:
                return func(*args, **kwargs)
            finally:
                _backward = before
        if func is torch._has_compatible_shallow_copy_type:
            return type(args[0]) is type(args[1])
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return _moved(func, *args, **kwargs)
        if on_gpu and func is Tensor.__deepcopy__:
            return _copied(*args)
        if on_gpu and func in (Tensor.numpy, Tensor.__array__):
            raise TypeError("can't convert a cuda:0 tensor to numpy")
        if on_gpu and on_cpu and not _backward and not _may_meet(func, args):
            shapes = [[tuple(t.shape) for t in some] for some in (on_gpu, on_cpu)]
            raise RuntimeError(
                f"{resolve_name(func) or func} of tensors on two devices, with the shapes "
                f"{shapes[0]} on cuda:0 and {shapes[1]} on the cpu"
            )
        asked = kwargs.get("device")
        given = {key: value for key, value in kwargs.items() if key != "pin_memory"}
        if asked is not None:
            given["device"] = CPU
        found = func(*args, **given)
        if isinstance(found, torch.Size) or func in _BOTH:
            return found
        if bool(on_gpu) if asked is None else torch.device(asked).type == "cuda":
            return tree_map_only(Tensor, _on(OnGpu), found)
        return found if asked is None else tree_map_only(Tensor, _on(Tensor), found)


def _may_meet(func: Callable[..., Any], args: Any) -> bool:
    if func in _BOTH:
        return True
    if func not in _INDEXED or not isinstance(args[0], OnGpu):
        return False
    value = args[2] if func is Tensor.__setitem__ else None
    return not isinstance(value, Tensor) or isinstance(value, OnGpu) or value.dim() == 0


def _moved(func: Callable[..., Any], tensor: Tensor, *words: Any, **kwargs: Any) -> Tensor:
    """`tensor.to(...)` with its words in any order, `.cpu()` and `.cuda()`: a copy or itself."""
    target: Any = {Tensor.cpu: CPU, Tensor.cuda: GPU}.get(func, kwargs.get("device"))
    dtype = kwargs.get("dtype")
    for word in words:
        if isinstance(word, Tensor):
            target, dtype = (GPU if isinstance(word, OnGpu) else CPU), word.dtype
        elif isinstance(word, torch.dtype):
            dtype = word
        elif isinstance(word, (str, torch.device)):
            target = word
    kind = type(tensor) if target is None else OnGpu
    if target is not None and torch.device(target).type == "cpu":
        kind = Tensor
    found = tensor
    if dtype is not None or "memory_format" in kwargs or kwargs.get("copy"):
        given = {key: kwargs[key] for key in ("memory_format", "copy") if key in kwargs}
        found = Tensor.to(tensor, dtype or tensor.dtype, **given)
    if isinstance(tensor, OnGpu) is (kind is OnGpu):
        return found if found is tensor else _on(type(tensor))(found)
    return _on(kind)(found.clone() if found is tensor else found)


def _copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    copy = _on(OnGpu)(tensor.detach().clone()).requires_grad_(tensor.requires_grad)
    copy.__dict__.update(tensor.__dict__)  # such as what makes it a parameter
    memo[id(tensor)] = copy
    return copy


def _on(kind: type[Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor if type(tensor) is kind else tensor.as_subclass(kind)

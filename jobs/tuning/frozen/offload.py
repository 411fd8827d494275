"""Moves stacks that wait for their turn to files, so that the stack that trains has the memory.

Takes heads and their optimizer and empties them; restores both bit for bit. It removes all tensors,
small ones too: a small tensor between two freed blocks prevents glibc from merging them. The files
belong to one `Offload` and are deleted when it closes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import torch
from safetensors.torch import load_file, save_file

from jobs.tuning.frozen.stacked_adamw import StackedAdamW
from jobs.tuning.heads import StackedHeads


class Offload:
    """A temporary folder with a file for each stack that waits."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nml-offload-")
        self._names: dict[str, tuple[list[str], list[str]]] = {}  # of parameters and buffers

    def __enter__(self) -> Offload:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def store(self, owner: str, heads: StackedHeads, optimizer: StackedAdamW) -> None:
        """Write the owner's weights, buffers and moments to its file, and free their memory."""
        self._names[owner] = list(heads.parameters), list(heads.buffers)
        tensors = {**heads.parameters, **heads.buffers}
        tensors |= {f"moment.{n}": moment for n, moment in enumerate(optimizer.release())}
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
            self._file(owner),
        )
        heads.parameters.clear()
        heads.buffers.clear()

    def restore(
        self, owner: str, heads: StackedHeads, optimizer: StackedAdamW, device: torch.device
    ) -> None:
        """Fill the heads and the optimizer that `store` emptied."""
        parameters, buffers = self._names.pop(owner)
        found = load_file(self._file(owner), device=str(device))
        self._file(owner).unlink()
        heads.parameters.update({name: found.pop(name).requires_grad_() for name in parameters})
        heads.buffers.update({name: found.pop(name) for name in buffers})
        moments = [found[f"moment.{n}"] for n in range(len(found))]
        optimizer.resume(heads.parameters.values(), moments)

    def _file(self, owner: str) -> Path:
        return Path(self._folder.name) / owner

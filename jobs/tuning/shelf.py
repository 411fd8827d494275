"""Stacks that wait for their turn, kept in files: what memory is for is the one that trains.

Takes heads and their optimiser, and empties them; gives both back as they were, to the bit. The
tensors themselves go, not their memory alone: small ones that stay between large holes keep glibc
from using the holes again. The files are of this process alone and go with it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import torch
from safetensors.torch import load_file, save_file

from jobs.tuning.heads import StackedHeads
from jobs.tuning.optimiser import StackedAdamW


class Shelf:
    """A temporary folder with a file for each stack that waits."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nml-shelf-")
        self._names: dict[str, tuple[list[str], list[str]]] = {}  # of parameters and buffers

    def __enter__(self) -> Shelf:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def put(self, owner: str, heads: StackedHeads, optimiser: StackedAdamW) -> None:
        """Write what training has made of the owner's members, and free its memory."""
        self._names[owner] = list(heads.parameters), list(heads.buffers)
        held = {**heads.parameters, **heads.buffers}
        held |= {f"moment.{n}": moment for n, moment in enumerate(optimiser.give_up())}
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in held.items()}, self._file(owner)
        )
        heads.parameters.clear()
        heads.buffers.clear()

    def take(
        self, owner: str, heads: StackedHeads, optimiser: StackedAdamW, device: torch.device
    ) -> None:
        """Fill the heads and the optimiser that `put` has emptied."""
        parameters, buffers = self._names.pop(owner)
        found = load_file(self._file(owner), device=str(device))
        self._file(owner).unlink()
        heads.parameters.update({name: found.pop(name).requires_grad_() for name in parameters})
        heads.buffers.update({name: found.pop(name) for name in buffers})
        moments = [found[f"moment.{n}"] for n in range(len(found))]
        optimiser.take_up(heads.parameters.values(), moments)

    def _file(self, owner: str) -> Path:
        return Path(self._folder.name) / owner

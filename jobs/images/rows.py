"""The pixels of many rows, kept in memory for a cell that trains the encoder on them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import psutil
import torch

from jobs.contract import StageError

_SHARE = 0.5  # of the free memory: the most that a part's pixels may take


@dataclass(frozen=True)
class ImageRows:
    """Prepared images of N rows."""

    pixels: torch.Tensor  # uint8 [N, *input.shape]

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Some rows (int64 [M]) as a batch, uint8 [M, *input.shape]."""
        return self.pixels[rows]

    def pieces(self, most: int) -> list[torch.Tensor]:
        """All rows in order, in batches of at most `most`: int64 [M]."""
        return list(torch.split(torch.arange(len(self)), most))

    def digests(self) -> list[bytes]:
        """16 bytes for each row, of its pixels."""
        return [
            hashlib.blake2b(one.numpy().tobytes(), digest_size=16).digest() for one in self.pixels
        ]


def allocate(rows: int, one: torch.Tensor, where: str) -> torch.Tensor:
    """Memory for the pixels of `rows` images like `one`, uint8 [rows, ...].

    Raises StageError, which begins with `where`, when they do not fit in memory.
    """
    needed, free = rows * one.numel(), psutil.virtual_memory().available
    if needed > _SHARE * free:
        raise StageError(
            f"{where}: {rows:,} images of {tuple(one.shape)} need "
            f"{needed / 1e9:.1f} GB, and at most {_SHARE:.0%} of the {free / 1e9:.1f} GB of "
            f"free memory may be used; train on a smaller fraction, or on a larger machine"
        )
    return torch.empty(rows, *one.shape, dtype=torch.uint8)

"""Tokens: rows of texts as numbers, in memory and as a batch ready for the model.

`TokenRows` keeps the tokens of many rows, each as long as it is. `Tokens` is a batch: rows padded
at the end to the longest of them. A row has one sequence, or two where an encoder reads the two
texts of a pair by themselves. `batches` puts rows of like length together, so that little of a
batch is padding. Nothing here knows a tokenizer or a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Rows = npt.NDArray[np.int64]
"""Positions of rows, [M]."""


@dataclass(frozen=True)
class Tokens:
    """A batch of N rows of S sequences, padded at the end to L tokens."""

    ids: Tensor  # int64 [S, N, L]
    mask: Tensor  # int64 [S, N, L]: 1 for a row's own tokens, 0 for padding
    types: Tensor | None  # int64 [S, N, L]: 1 in the second text of a pair

    def __len__(self) -> int:
        return self.ids.shape[1]

    def to(self, device: torch.device) -> Tokens:
        """The batch on a device."""
        types = None if self.types is None else self.types.to(device)
        return Tokens(self.ids.to(device), self.mask.to(device), types)

    def sides(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """(ids, mask, types) [N, L] of each sequence of the rows."""
        for side in range(len(self.ids)):
            types = None if self.types is None else self.types[side]
            yield self.ids[side], self.mask[side], types

    @staticmethod
    def joined(batches: Sequence[Tokens]) -> Tokens:
        """Batches of the same rows (their views) one after another."""
        if len(batches) == 1:
            return batches[0]
        types = [batch.types for batch in batches if batch.types is not None]
        return Tokens(
            torch.cat([batch.ids for batch in batches], 1),
            torch.cat([batch.mask for batch in batches], 1),
            torch.cat(types, 1) if types else None,
        )


@dataclass(frozen=True)
class Sequences:
    """The tokens of N sequences, one after another."""

    ids: npt.NDArray[np.int32]  # [T]
    types: npt.NDArray[np.int32] | None  # [T]
    ends: Rows  # [N + 1], from 0: sequence n is [ends[n], ends[n + 1])

    @staticmethod
    def of(ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None) -> Sequences:
        """From a list of token ids for each sequence, and their types."""
        ends = np.concatenate([[0], np.cumsum([len(one) for one in ids], dtype=np.int64)])
        return Sequences(_flat(ids), None if types is None else _flat(types), ends)

    @staticmethod
    def joined(pieces: Sequence[Sequences]) -> Sequences:
        """The sequences of several pieces in order."""
        lengths = np.concatenate([np.diff(piece.ends) for piece in pieces])
        types = [piece.types for piece in pieces if piece.types is not None]
        return Sequences(
            np.concatenate([piece.ids for piece in pieces]),
            np.concatenate(types) if types else None,
            np.concatenate([[0], np.cumsum(lengths)]),
        )

    def ordered(self, rows: Rows) -> Sequences:
        """Some sequences in this order."""
        lengths = np.diff(self.ends)[rows]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        # Of each token: its sequence's start, and how far it is from there.
        within = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths)
        at = np.repeat(self.ends[:-1][rows], lengths) + within
        return Sequences(self.ids[at], None if self.types is None else self.types[at], ends)

    def padded(self, rows: Rows, length: int, pad: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """(ids, mask, types) of some sequences, int64 [M, length]."""
        starts, lengths = self.ends[rows], self.ends[rows + 1] - self.ends[rows]
        own = np.arange(length) < lengths[:, None]
        at = (starts[:, None] + np.arange(length))[own]
        ids = np.full(own.shape, pad, np.int64)
        ids[own] = self.ids[at]
        types: Tensor | None = None
        if self.types is not None:
            kinds = np.zeros(own.shape, np.int64)
            kinds[own] = self.types[at]
            types = torch.from_numpy(kinds)
        return torch.from_numpy(ids), torch.from_numpy(own.astype(np.int64)), types


def _flat(rows: Sequence[Sequence[int]]) -> npt.NDArray[np.int32]:
    return np.fromiter((one for row in rows for one in row), np.int32)


@dataclass(frozen=True)
class TokenRows:
    """The tokens of N rows, kept in memory."""

    sides: tuple[Sequences, ...]  # one; two: the texts of a pair, each by itself
    truncated: npt.NDArray[np.bool_]  # [N]: whether a row has lost its end
    pad: int  # the id that fills a batch, always masked
    budget: int  # tokens of a batch of `pieces`, padding included

    def __len__(self) -> int:
        return len(self.sides[0].ends) - 1

    @cached_property
    def lengths(self) -> Rows:
        """Tokens of each row's longest sequence, [N]."""
        lengths: Rows = np.max([np.diff(side.ends) for side in self.sides], axis=0)
        return lengths

    def take(self, rows: Tensor) -> Tokens:
        """Some rows (int64 [M]) as a batch."""
        wanted = rows.numpy()
        length = int(self.lengths[wanted].max())
        found = [side.padded(wanted, length, self.pad) for side in self.sides]
        ids, mask = (torch.stack([one[n] for one in found]) for n in (0, 1))  # type: ignore[misc]
        types = [one[2] for one in found if one[2] is not None]
        return Tokens(ids, mask, torch.stack(types) if types else None)

    def pieces(self, most: int) -> list[Tensor]:
        """All rows in batches of at most `most` rows and `budget` tokens, by length: int64 [M]."""
        return [torch.from_numpy(rows) for rows in batches(self.lengths, most, self.budget)]

    def digests(self) -> list[bytes]:
        """16 bytes for each row, of its tokens."""
        return [self._digest(row) for row in range(len(self))]

    def _digest(self, row: int) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        for side in self.sides:
            own = slice(side.ends[row], side.ends[row + 1])
            digest.update((own.stop - own.start).astype("<i8").tobytes())
            digest.update(side.ids[own].astype("<i4").tobytes())
            if side.types is not None:
                digest.update(side.types[own].astype("<i4").tobytes())
        return digest.digest()


def batches(lengths: Rows, most: int, budget: int) -> list[Rows]:
    """Rows of these lengths [N] in batches, the longest first.

    A batch has at most `most` rows and, padded to its longest row, `budget` tokens; but at least
    one row.
    """
    order = np.argsort(-lengths, kind="stable")
    found, start = [], 0
    while start < len(order):
        rows = max(1, min(most, budget // max(1, int(lengths[order[start]]))))
        found.append(order[start : start + rows])
        start += rows
    return found

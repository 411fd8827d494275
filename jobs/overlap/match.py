"""Finds which samples of one set have a copy in another, from digests, hashes and thumbnails.

`Finder` holds the images that are looked for; `add` takes the others piece by piece, so a corpus of
any size needs the memory of one piece. Hashes are compared through bands of bits: two hashes that
differ in at most MOST_BITS bits agree in one of MOST_BITS + 1 bands. Pure numpy; reads no file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jobs.images.likeness import MOST_BITS, alike
from jobs.likeness import BITS, Bytes, Hashes

_PAIRS = 1 << 21  # pairs of hashes compared at once: some 50 MB
_BANDS = MOST_BITS + 1

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """What N images are compared by."""

    digests: Hashes  # [N, 2]: a digest's two halves
    hashes: Hashes  # [N]
    thumbnails: Bytes  # [N, THUMBNAIL]

    def __len__(self) -> int:
        return len(self.hashes)


class Finder:
    """The images that are looked for, and the first copy of each one."""

    def __init__(self, wanted: Images) -> None:
        self._wanted = wanted
        self.exact = np.full(len(wanted), -1)
        """The row of each image's first exact copy, [N]; -1: none."""
        self.near = np.full(len(wanted), -1)
        """The row of each image's first rescaled or re-encoded copy, [N]; -1: none."""
        self._by_digest = np.argsort(wanted.digests[:, 0], kind="stable")
        self._bands = [_Band(wanted.hashes, band) for band in range(_BANDS)]
        self._rows = 0  # of the pieces so far

    def add(self, piece: Images) -> None:
        """Look for copies in a further piece. Its rows count on from the last piece's."""
        for mine, other in self._equal(piece):
            _keep_first(self.exact, mine, other + self._rows)
        for mine, other in self._near(piece):
            _keep_first(self.near, mine, other + self._rows)
        self._rows += len(piece)

    def _equal(self, piece: Images) -> Iterator[tuple[Ints, Ints]]:
        """(row here, row of the piece) of equal digests."""
        ordered = self._wanted.digests[self._by_digest, 0]
        start = np.searchsorted(ordered, piece.digests[:, 0], side="left")
        stop = np.searchsorted(ordered, piece.digests[:, 0], side="right")
        for at, other in _expanded(start, stop):
            mine = self._by_digest[at]
            same = self._wanted.digests[mine, 1] == piece.digests[other, 1]
            yield mine[same], other[same]

    def _near(self, piece: Images) -> Iterator[tuple[Ints, Ints]]:
        """(row here, row of the piece) of near hashes and near-equal thumbnails."""
        for band in self._bands:
            for at, other in _expanded(*band.span(piece.hashes)):
                mine = band.order[at]
                differing = np.bitwise_count(self._wanted.hashes[mine] ^ piece.hashes[other])
                close = differing <= MOST_BITS
                mine, other = mine[close], other[close]
                same = alike(self._wanted.thumbnails[mine], piece.thumbnails[other])
                yield mine[same], other[same]


class _Band:
    """Some bits of the hashes that are looked for, as an index into them."""

    def __init__(self, hashes: Hashes, band: int) -> None:
        self._first = band * BITS // _BANDS
        self._bits = (band + 1) * BITS // _BANDS - self._first
        values = self._values(hashes)
        self.order = np.argsort(values, kind="stable")
        self._starts = np.searchsorted(values[self.order], np.arange((1 << self._bits) + 1))

    def _values(self, hashes: Hashes) -> Ints:
        shifted = hashes >> np.uint64(self._first)
        return (shifted & np.uint64((1 << self._bits) - 1)).astype(np.int64)

    def span(self, hashes: Hashes) -> tuple[Ints, Ints]:
        """Start and stop in `order` of the hashes that agree with each of these in the band."""
        values = self._values(hashes)
        return self._starts[values], self._starts[values + 1]


def _expanded(start: Ints, stop: Ints) -> Iterator[tuple[Ints, Ints]]:
    """The pairs (i in [start, stop), row) of all rows, about _PAIRS at a time."""
    ends = np.cumsum(stop - start)
    first = 0
    while first < len(start):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + _PAIRS, side="right")))
        counts = (stop - start)[first:last]
        rows = np.repeat(np.arange(first, last), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        if len(rows):
            yield start[rows] + within, rows
        first = last


def _keep_first(found: Ints, mine: Ints, other: Ints) -> None:
    """Enter the lowest `other` of each row that has none yet."""
    new = found[mine] < 0
    rows = np.unique(mine[new])
    lowest = np.full(len(found), np.iinfo(np.int64).max)
    np.minimum.at(lowest, mine[new], other[new])
    found[rows] = lowest[rows]

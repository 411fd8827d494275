"""The order of a part's rows in an epoch: a pure function of seed, epoch and keys.

Own code, although torch's `randperm` over all rows is 7 times as fast (`benchmarks/own_code.py`):
its batches would be spread over the whole corpus, so shards on a disk or in a bucket could not be
read in sequence, and its order would depend on the number of rows instead of on their keys.

Takes the index's list of shard files, a seed and the global batch; gives row numbers. A *segment*
is a row group: up to `SEGMENT` consecutive rows of one file. An epoch puts the segments in a seeded
order, cuts that sequence of rows into equal *lanes*, and shuffles each lane in windows of `WINDOW`
rows. Where N is no multiple of B, the sequence begins at a seeded position and wraps around, so no
row is left out of every epoch. A global batch takes an equal share of each lane, so it mixes rows
of the whole corpus. A worker reads only the lanes of its share of the batch, from front to back.
Nothing here depends on workers, noise or memory. Ordering a window needs only the window's keys, so
the order is the same in memory and streamed. Lanes and windows are part of a result's identity.

Under repeated augmentation (Hoffer et al. 2020) each row of a lane comes `repeats` times in a row.
An epoch keeps its length, so one pass over all rows takes `repeats` epochs: a *turn*. (timm's
sampler draws a new subset of the rows for each epoch instead.)
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.contract import StageError
from jobs.corpus.shards import ROW_GROUP, File
from jobs.images.augment import Hashes, mix
from jobs.keyed_hash import hash64

Rows = npt.NDArray[np.int64]
Span = tuple[int, int]  # start, stop

SEGMENT = ROW_GROUP  # rows
WINDOW = 1_024  # rows of a lane that are shuffled together
LANES = 16  # at most


class Order:
    """The order of a part's N rows under one seed, in global batches of B."""

    def __init__(
        self,
        corpus: str,
        files: Sequence[File],
        *,
        seed: int,
        batch_size: int,
        repeats: int = 1,
        window: int = WINDOW,
    ) -> None:
        """Raises StageError when the part does not fill one batch."""
        self.rows = sum(file.rows for file in files)
        if self.rows < batch_size:
            raise StageError(
                f"corpus {corpus}: {self.rows} training rows do not fill a batch of "
                f"{batch_size}; lower `pretrain.recipe.schedule.batch_size`"
            )
        self.batch_size, self.steps = batch_size, self.rows // batch_size
        self.lanes = _lanes(self.steps, batch_size)
        self.per_step = batch_size // self.lanes
        """Rows that a global batch takes of each lane, counting copies."""
        self.repeats = repeats
        self._corpus, self._seed, self._window, self._files = corpus, seed, window, tuple(files)
        self._first, self._count = segments(files)
        names = [f"{file.file}:{at}" for file in files for at in range(0, file.rows, SEGMENT)]
        self._segment = self._hash(names, "segments")
        self._start = self._hash(["start"], "start")

    # -- hashes ------------------------------------------------------------------------------

    def key_hashes(self, keys: pa.Array | pa.ChunkedArray) -> Hashes:
        """Hashes that order `keys`, [N]; mix in a turn to shuffle."""
        return self._hash(keys, "order")

    def augmentation_hashes(self, keys: pa.Array | pa.ChunkedArray) -> Hashes:
        """Hashes that the augmentation of `keys` draws from, [N]; mix in a turn before use."""
        return self._hash(keys, "augment")

    def copy_hashes(self, hashes: Hashes, copies: Rows) -> Hashes:
        """Hashes of augmentation for copies of rows; `hashes` are the rows' own in a turn."""
        if self.repeats == 1:
            return hashes
        every = np.stack([mix(hashes, copy) for copy in range(self.repeats)])
        drawn: Hashes = every[copies, np.arange(len(hashes))]
        return drawn

    def _hash(self, keys: pa.Array | pa.ChunkedArray | Sequence[str], stream: str) -> Hashes:
        return hash64(keys, seed=self._seed, scope=self._corpus, stream=f"pretrain/{stream}")

    # -- a turn: all rows once -------------------------------------------------------------------

    def turn(self, epoch: int) -> int:
        """The turn that an epoch belongs to; without repeats, the epoch itself."""
        return epoch // self.repeats

    def sequence(self, turn: int) -> tuple[Rows, Rows]:
        """A turn's segments in order: the first row of each [n], and their bounds [n + 1].

        If the sequence starts inside a segment, that segment's head is the last one.
        """
        taken = np.argsort(mix(self._segment, turn), kind="stable")
        first, count = self._first[taken], self._count[taken]
        if self.rows % self.batch_size:
            start = int(mix(self._start, turn)[0] % np.uint64(self.rows))
            ends = np.cumsum(count)
            at = int(np.searchsorted(ends, start, side="right"))
            head = start - int(ends[at] - count[at])
            first = np.concatenate([[first[at] + head], first[at + 1 :], first[: at + 1]])
            count = np.concatenate([[count[at] - head], count[at + 1 :], count[:at], [head]])
        return first, np.concatenate([[0], np.cumsum(count)])

    def windows(self, lane: int) -> list[Span]:
        """A lane's windows, as positions in the lane.

        Windows of different lanes end at different steps, which spreads out the reading.
        """
        length = self.steps * self.per_step
        ahead = lane * self._window // self.lanes
        cuts = [0, *range(self._window - ahead, length, self._window), length]
        return list(itertools.pairwise(cuts))

    def spans(self, turn: int, lane: int, window: Span) -> list[Span]:
        """The rows of a window, not yet shuffled, as ranges of the part's rows."""
        first, begins = self.sequence(turn)
        start, stop = (lane * self.steps * self.per_step + position for position in window)
        spans = []
        at = int(np.searchsorted(begins, start, side="right")) - 1
        while at < len(first) and begins[at] < stop:
            low, high = max(start, begins[at]), min(stop, begins[at + 1])
            spans.append((int(first[at] + low - begins[at]), int(first[at] + high - begins[at])))
            at += 1
        return spans

    # -- an epoch --------------------------------------------------------------------------------

    def positions(self, epoch: int, first: int, last: int, mine: Span) -> tuple[Rows, Rows]:
        """What the steps [first, last) take of a lane: positions in it, and the copy of each row.

        `mine` is the range of the step's `per_step` rows that this worker takes.
        """
        steps = np.arange(first, last) + epoch % self.repeats * self.steps
        taken = (steps[:, None] * self.per_step + np.arange(*mine)).reshape(-1)
        return taken // self.repeats, taken % self.repeats

    def epoch_rows(self, epoch: int, hashes: Hashes) -> tuple[Rows, Rows]:
        """All rows of an epoch in order, and the copy that each is, both [steps * B].

        `hashes` are `key_hashes` of all N keys.
        """
        turn, lanes = self.turn(epoch), []
        for lane in range(self.lanes):
            for window in self.windows(lane):
                rows = np.concatenate([np.arange(*s) for s in self.spans(turn, lane, window)])
                lanes.append(rows[shuffle(hashes[rows], turn)])
        positions, copies = self.positions(epoch, 0, self.steps, (0, self.per_step))
        by_lane = np.concatenate(lanes).reshape(self.lanes, -1)[:, positions]
        shape = self.lanes, self.steps, self.per_step
        rows, copies = by_lane, np.broadcast_to(copies, by_lane.shape)
        ordered = [each.reshape(shape).transpose(1, 0, 2).reshape(-1) for each in (rows, copies)]
        return ordered[0], ordered[1]

    def segment_ends(self, epoch: int) -> npt.NDArray[np.bool_]:
        """Whether the first lane reaches the end of a segment at each step, [steps]."""
        _, begins = self.sequence(self.turn(epoch))
        steps = (begins[1:] * self.repeats - 1) // self.per_step
        steps -= epoch % self.repeats * self.steps
        ends = np.zeros(self.steps, np.bool_)
        ends[steps[(steps >= 0) & (steps < self.steps)]] = True
        ends[-1] = True
        return ends

    # -- sample and hash -------------------------------------------------------------------------

    def sample(self, rows: Rows, most: int) -> Rows:
        """At most `most` of some sorted rows, sorted: those of segments drawn by the seed."""
        if len(rows) <= most:
            return rows
        segment = np.searchsorted(self._first, rows, side="right") - 1
        by_segment = np.argsort(self._segment[segment], kind="stable")
        return np.sort(rows[by_segment[:most]])

    def sha256(self) -> str:
        """A hash of all that decides order, augmentation and batches.

        It covers the seed, the files' content, the batch and the constants of this module. Equal
        hashes prove that two runs used their rows in the same way.
        """
        identity = [self._corpus, self._seed, self.batch_size, SEGMENT, self._window, self.lanes]
        identity += [(file.file, file.rows, file.sha256) for file in self._files]
        identity += [self.repeats] if self.repeats > 1 else []
        identity += ["started anywhere"] if self.rows % self.batch_size else []
        return hashlib.sha256(repr(identity).encode()).hexdigest()


def shuffle(hashes: Hashes, turn: int) -> Rows:
    """The positions of a window's rows, in a turn's order."""
    return np.argsort(mix(hashes, turn), kind="stable")


def segments(files: Sequence[File]) -> tuple[Rows, Rows]:
    """First row and number of rows of each segment, in the order of the files."""
    first, count, before = [], [], 0
    for file in files:
        for start in range(0, file.rows, SEGMENT):
            first.append(before + start)
            count.append(min(SEGMENT, file.rows - start))
        before += file.rows
    return np.array(first, np.int64), np.array(count, np.int64)


def _lanes(steps: int, batch_size: int) -> int:
    """As many lanes, up to LANES, as divide the batch and are at least a segment long."""
    lanes = math.gcd(batch_size, LANES)
    while lanes > 1 and steps * batch_size < lanes * SEGMENT:
        lanes //= 2
    return lanes

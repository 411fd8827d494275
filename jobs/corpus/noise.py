"""Noise: which samples are noisy at a level, and what their label or caption becomes.

Takes keys and clean values of a corpus's training rows, in any order; gives a plan that holds for
every level at once. Levels are nested: what is changed at 5 % is changed, to the same value, at
10 %. Counts are exact. A sample's fate depends on the set of samples, the seed and its own key,
never on row order, shards or workers. Pure numpy and Arrow; nothing here reads or writes files.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.contract import StageError
from jobs.corpus.keyed import hash64
from jobs.corpus.shards import rank

Texts: TypeAlias = "pa.Array | pa.ChunkedArray"
Rows = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int32]


def changed_count(level: float, samples: int) -> int:
    """How many of `samples` a level in percent changes: the nearest integer, halves up.

    The level counts as the decimal number that was written: 2.3 % of 1,000 is exactly 23.
    """
    return int(Fraction(str(level)) * samples / 100 + Fraction(1, 2))


def swapped_count(level: float, samples: int) -> int:
    """How many of `samples` a level in percent swaps: the nearest even number, halfway up."""
    return 2 * int(Fraction(str(level)) * samples / 200 + Fraction(1, 2))


@dataclass(frozen=True)
class Flips:
    """Symmetric label noise over N samples, for every level."""

    keys: Texts
    labels: Labels  # clean, [N]
    order: Rows  # sample positions, first to be flipped first, [N]
    replacement: Labels  # what each sample's label becomes if it is flipped, [N]

    def count(self, level: float) -> int:
        """How many samples `level` percent flips."""
        return changed_count(level, len(self.labels))

    def changed(self, level: float) -> pa.Table:
        """The flipped samples, sorted by key: key (string), clean and noisy label (int32)."""
        rows = self.order[: self.count(level)]
        return _by_key(self.keys, rows, self.labels[rows], self.replacement[rows], pa.int32())


def plan_symmetric(keys: Texts, labels: Labels, classes: int, seed: int, corpus: str) -> Flips:
    """Symmetric noise: a chosen sample's label becomes one of the *other* classes, uniformly.

    The samples are chosen in the order of one hash of their keys (ties by key), the replacement
    by a second (paper 1 section 2.1, without its draw of the clean class itself). Raises
    StageError for fewer than two classes or a label outside 0..classes-1.
    """
    if classes < 2:
        raise StageError(
            f"corpus {corpus}: symmetric noise needs two classes or more, not {classes}; "
            f"use another kind of noise"
        )
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        raise StageError(
            f"corpus {corpus}: {len(outside)} labels lie outside 0..{classes - 1} "
            f"(the first: {labels[outside[0]]}); correct the source or its list of classes"
        )
    who = hash64(keys, seed=seed, scope=corpus, stream="symmetric/who")
    what = hash64(keys, seed=seed, scope=corpus, stream="symmetric/what")
    # 32 bits times C - 1, divided by 2^32: uniform over 0..C-2 within 2^-32, in exact integers.
    drawn = ((what >> np.uint64(32)) * np.uint64(classes - 1) >> np.uint64(32)).astype(np.int32)
    others = drawn + (drawn >= labels).astype(np.int32)
    return Flips(keys, labels, rank(who, keys), others.astype(np.int32))


@dataclass(frozen=True)
class Swaps:
    """Caption exchanges over N samples, for every level."""

    keys: Texts
    captions: pa.Array  # clean, [N]
    pairs: npt.NDArray[np.int64]  # sample positions that exchange texts, first pairs first, [P, 2]
    corpus: str

    def count(self, level: float) -> int:
        """How many samples `level` percent swaps; StageError when so many cannot be."""
        samples = len(self.captions)
        wanted = swapped_count(level, samples)
        if wanted > 2 * len(self.pairs):
            reachable = 200 * len(self.pairs) / samples
            raise StageError(
                f"corpus {self.corpus}: caption_swap at level {level:g} needs {wanted} of "
                f"{samples} samples to change, but one caption is so frequent that only "
                f"{2 * len(self.pairs)} can; give a level of at most {reachable:.2f}"
            )
        return wanted

    def changed(self, level: float) -> pa.Table:
        """The swapped samples, sorted by key: key, clean and noisy caption (strings)."""
        pairs = self.pairs[: self.count(level) // 2]
        rows = np.concatenate([pairs[:, 0], pairs[:, 1]])
        partners = np.concatenate([pairs[:, 1], pairs[:, 0]])
        clean, noisy = self.captions.take(pa.array(rows)), self.captions.take(pa.array(partners))
        return _by_key(self.keys, rows, clean, noisy, pa.string())


def plan_caption_swap(keys: Texts, captions: Texts, seed: int, corpus: str) -> Swaps:
    """Caption swap: true exchanges between pairs of samples whose captions differ.

    In the order of a hash of the keys, each sample is paired with the earliest one still waiting;
    those that wait all have the same caption, so a sample either finds a partner at once or joins
    them. No text is its own partner's, each sample is in one pair at most, and the multiset of
    captions never changes. Raises StageError when a caption is missing.
    """
    if captions.null_count:
        raise StageError(
            f"corpus {corpus}: {captions.null_count} of {len(captions)} training rows have no "
            f"caption to swap; use a kind of noise for labels"
        )
    texts = captions.combine_chunks() if isinstance(captions, pa.ChunkedArray) else captions
    order = rank(hash64(keys, seed=seed, scope=corpus, stream="caption_swap/who"), keys)
    codes = texts.dictionary_encode().indices.to_numpy()[order]
    return Swaps(keys, texts, order[_pair_up(codes)], corpus)


def _pair_up(codes: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Pairs of positions with different codes, [P, 2], in the order they are found."""
    block = 1 << 16  # positions turned into Python numbers at a time, to bound the memory
    found = array("q")
    waiting: deque[int] = deque()
    common = -1
    for start in range(0, len(codes), block):
        for position, code in enumerate(codes[start : start + block].tolist(), start):
            if waiting and code != common:
                found.append(waiting.popleft())
                found.append(position)
            else:
                waiting.append(position)
                common = code
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _by_key(
    keys: Texts, rows: Rows, clean: Labels | pa.Array, noisy: Labels | pa.Array, kind: pa.DataType
) -> pa.Table:
    table = pa.table(
        {
            "key": keys.take(pa.array(rows)),
            "clean": pa.array(clean, type=kind),
            "noisy": pa.array(noisy, type=kind),
        }
    )
    return table.sort_by("key").combine_chunks()

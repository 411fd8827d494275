"""Caption noise: pairs of samples that exchange their texts.

Takes keys and captions of a corpus's training rows, in the order of training, and perhaps the
cluster that each lies in; gives a plan that holds for every level at once. A swap is a true
exchange: an involution without fixed points that keeps the multiset of captions, and never one
between two equal texts. Levels are nested and exact; a pair depends on the set of samples, the
seed and the keys, never on row order, shards or workers. Pure numpy and Arrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.contract import StageError
from jobs.corpus.shards import rank
from jobs.keyed_hash import Hashes, hash64
from jobs.noise.labels import Choice, Mask, Rows

Clusters = npt.NDArray[np.int32]
Pairs = npt.NDArray[np.int64]  # [P, 2]


def swapped_count(level: float, samples: int) -> int:
    """How many of `samples` a level in percent swaps: the nearest even number, halfway up."""
    return 2 * int(Fraction(str(level)) * samples / 200 + Fraction(1, 2))


@dataclass(frozen=True)
class Captioned:
    """A corpus's training rows as caption noise sees them."""

    corpus: str
    keys: pa.Array  # [N]
    captions: pa.Array  # clean, [N]

    @staticmethod
    def of(corpus: str, keys: Sequence[str], captions: Sequence[str]) -> Captioned:
        """The same from plain sequences: a key, unique in the corpus, and a text for each row."""
        return Captioned(corpus, pa.array(keys, pa.string()), pa.array(captions, pa.string()))

    def __post_init__(self) -> None:
        """Raises StageError when a caption is missing."""
        missing = self.captions.null_count
        if missing:
            raise StageError(
                f"corpus {self.corpus}: {missing} of {len(self.captions)} training rows have no "
                f"caption to swap; use a kind of noise for labels"
            )


@dataclass(frozen=True)
class Swaps:
    """Caption exchanges over N samples, for every level."""

    samples: Captioned
    pairs: Pairs  # sample positions that exchange texts, first pairs first
    eligible: int  # samples that the noise may change at all, at least 2 P
    of: Literal["corpus", "subset"] = "corpus"
    counts: Mapping[str, int] = field(default_factory=dict)  # what was left out, by reason

    def count(self, level: float) -> int:
        """How many samples `level` percent swaps; StageError when so many cannot be."""
        of = len(self.samples.captions) if self.of == "corpus" else self.eligible
        wanted = swapped_count(level, of)
        if wanted > 2 * len(self.pairs):
            # Rounded down, so that the level named can be asked for.
            reach = int(20_000 * len(self.pairs) / of) / 100
            raise StageError(
                f"corpus {self.samples.corpus}: level {level:g} swaps the captions of {wanted} of "
                f"{of} rows and only {2 * len(self.pairs)} have a partner with another text; "
                f"give a level of at most {reach:.2f}"
            )
        return wanted

    def _swapped(self, level: float) -> tuple[Rows, Rows]:
        pairs = self.pairs[: self.count(level) // 2]
        rows = np.concatenate([pairs[:, 0], pairs[:, 1]])
        partners = np.concatenate([pairs[:, 1], pairs[:, 0]])
        order = np.argsort(rows)
        return rows[order], partners[order]

    def changed(self, level: float) -> pa.Table:
        """The swapped samples by position: row (int64), key, clean and noisy caption (string)."""
        rows, partners = self._swapped(level)
        captions = self.samples.captions
        return pa.table(
            {
                "row": pa.array(rows),
                "key": self.samples.keys.take(pa.array(rows)),
                "clean": captions.take(pa.array(rows)),
                "noisy": captions.take(pa.array(partners)),
            }
        )


def caption_swap(
    samples: Captioned,
    choice: Choice,
    *,
    allowed: Mask | None = None,
    clusters: Clusters | None = None,
) -> Swaps:
    """Pairs of samples that exchange their captions, for every level (paper 1, section 2.1).

    `allowed` [N] are the samples that may be changed (none given: all); with `clusters` [N],
    partners lie in the same one. In the order of a hash of the keys (ties by key), neighbours are
    paired; those with equal texts are paired anew among themselves, and what is left of a text
    that is too frequent for that takes the partners of pairs without it. So as many samples are
    paired as can be. Equal texts are told by a 64-bit hash: that two different ones share it
    costs no more than their not being swapped with each other.
    """
    kind = "caption_swap" if clusters is None else "caption_swap_near"

    def hashes(values: pa.Array, stream: str) -> Hashes:
        return hash64(values, seed=choice.seed, scope=samples.corpus, stream=f"{kind}/{stream}")

    order = rank(hashes(samples.keys, "who"), samples.keys)
    if allowed is not None:
        order = order[allowed[order]]
    texts = hashes(samples.captions, "text")[order]
    pairs = pair_up(texts, None if clusters is None else clusters[order])
    counts = {"rows_without_partner": len(order) - pairs.size}
    return Swaps(samples, order[pairs], len(order), choice.of, counts)


def pair_up(texts: Hashes, clusters: Clusters | None = None) -> Pairs:
    """As many pairs of positions with different texts and equal clusters as there can be.

    `texts` [n] are numbers, equal where texts are. Each position is in one pair at most. Pairs
    stand in the order of their first position, which does not depend on how frequent a text is.
    """
    if clusters is None:
        clusters = np.zeros(len(texts), np.int32)
    by_cluster = np.argsort(clusters, kind="stable")
    first, second, pool = _neighbours(by_cluster, texts, clusters)
    more_first, more_second, left = _halves(pool, texts, clusters)
    pairs = np.stack(
        [np.concatenate([first, more_first]), np.concatenate([second, more_second])], axis=1
    )
    if len(left) > 1:
        pairs = _break(pairs, left, texts, clusters)
    ordered: Pairs = pairs[np.argsort(pairs[:, 0])]
    return ordered


def _neighbours(by_cluster: Rows, texts: Hashes, clusters: Clusters) -> tuple[Rows, Rows, Rows]:
    """Pairs of neighbours within a cluster whose texts differ, and the positions left over."""
    of = clusters[by_cluster]
    place = _place_in_run(of)
    even = np.flatnonzero(place[:-1] % 2 == 0)
    whole = even[of[even + 1] == of[even]]
    differ = texts[by_cluster[whole]] != texts[by_cluster[whole + 1]]
    taken = np.zeros(len(of), np.bool_)
    taken[whole[differ]] = taken[whole[differ] + 1] = True
    return by_cluster[whole[differ]], by_cluster[whole[differ] + 1], by_cluster[~taken]


def _halves(pool: Rows, texts: Hashes, clusters: Clusters) -> tuple[Rows, Rows, Rows]:
    """Pairs half a cluster apart when it is sorted by text, and the positions left over.

    Two positions so far apart have equal texts only where one text fills more than half of the
    cluster's pool, and then what is left over all has that text.
    """
    pool = pool[np.lexsort((_scattered(pool), texts[pool], clusters[pool]))]
    of = clusters[pool]
    place, size = _place_in_run(of), _run_length(of)
    lower = np.flatnonzero(place < size // 2)
    upper = lower + (size[lower] + 1) // 2
    differ = texts[pool[lower]] != texts[pool[upper]]
    taken = np.zeros(len(pool), np.bool_)
    taken[lower[differ]] = taken[upper[differ]] = True
    return pool[lower[differ]], pool[upper[differ]], pool[~taken]


def _break(pairs: Pairs, left: Rows, texts: Hashes, clusters: Clusters) -> Pairs:
    """Let two left over positions take the two partners of a pair that lacks their text.

    `left` is sorted by cluster, and has one text in each.
    """
    pairs = pairs[np.lexsort((pairs[:, 0], clusters[pairs[:, 0]]))]
    pair_cluster = clusters[pairs[:, 0]]
    names, starts, sizes = np.unique(clusters[left], return_index=True, return_counts=True)
    names, starts, sizes = names[sizes > 1], starts[sizes > 1], sizes[sizes > 1]
    begin = np.searchsorted(pair_cluster, names, side="left")
    end = np.searchsorted(pair_cluster, names, side="right")
    broken, made = [_NONE], []
    for start, size, low, high in zip(starts, sizes, begin, end, strict=True):
        text = texts[left[start]]
        free = low + np.flatnonzero((texts[pairs[low:high]] != text).all(axis=1))
        free = free[np.argsort(_scattered(pairs[free, 0]))[: size // 2]]
        waiting = left[start : start + 2 * len(free)]
        broken.append(free)
        made.append(np.stack([waiting, pairs[free].ravel()], axis=1))
    kept = np.delete(pairs, np.concatenate(broken), axis=0)
    return np.concatenate([kept, *made])


def _scattered(positions: Rows) -> Hashes:
    """The positions as other numbers, each once, whose order has nothing to do with theirs.

    So that no text comes earlier in the order of the pairs for being frequent.
    """
    return positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def _starts(values: Clusters) -> Rows:
    """Where runs of equal values begin."""
    return np.flatnonzero(np.append(True, values[1:] != values[:-1])) if len(values) else _NONE


def _place_in_run(values: Clusters) -> Rows:
    """Each position's distance from the beginning of its run of equal values."""
    starts = _starts(values)
    sizes = np.diff(np.append(starts, len(values)))
    return np.arange(len(values)) - np.repeat(starts, sizes)


def _run_length(values: Clusters) -> Rows:
    """The length of each position's run of equal values."""
    sizes = np.diff(np.append(_starts(values), len(values)))
    return np.repeat(sizes, sizes)


_NONE = np.empty(0, np.int64)

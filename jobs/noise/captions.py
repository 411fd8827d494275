"""Caption noise: pairs of samples exchange their captions.

Takes the keys and captions of a corpus's training rows, in training order, and optionally each
row's cluster; gives a plan for all levels. A swap is a true exchange: an involution without fixed
points, which keeps the multiset of captions and never pairs equal captions. Levels are nested and
exact. A pair depends on the set of samples, the seed and the keys, never on row order, shards or
workers. Pure numpy and Arrow.
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
    """How many of `samples` a level in percent swaps: the nearest even number, ties up."""
    return 2 * int(Fraction(str(level)) * samples / 200 + Fraction(1, 2))


@dataclass(frozen=True)
class Captioned:
    """A corpus's training rows, for caption noise."""

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
    pairs: Pairs  # positions of samples that exchange captions; a level takes the first pairs
    eligible: int  # samples that the noise may change, at least 2 P
    of: Literal["corpus", "subset"] = "corpus"  # what a level is a percentage of
    counts: Mapping[str, int] = field(default_factory=dict)  # samples left out, by reason

    def count(self, level: float) -> int:
        """How many samples `level` percent swaps; StageError when there are too few pairs."""
        of = len(self.samples.captions) if self.of == "corpus" else self.eligible
        wanted = swapped_count(level, of)
        if wanted > 2 * len(self.pairs):
            # Rounded down: the message must name a level that is possible.
            reach = int(20_000 * len(self.pairs) / of) / 100
            raise StageError(
                f"corpus {self.samples.corpus}: level {level:g} swaps the captions of {wanted} of "
                f"{of} rows, but only {2 * len(self.pairs)} have a partner with another caption; "
                f"give a level of at most {reach:.2f}"
            )
        return wanted

    def _rows_and_partners(self, level: float) -> tuple[Rows, Rows]:
        pairs = self.pairs[: self.count(level) // 2]
        rows = np.concatenate([pairs[:, 0], pairs[:, 1]])
        partners = np.concatenate([pairs[:, 1], pairs[:, 0]])
        order = np.argsort(rows)
        return rows[order], partners[order]

    def changed(self, level: float) -> pa.Table:
        """The swapped samples by position: row (int64), key, clean and noisy caption (string)."""
        rows, partners = self._rows_and_partners(level)
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

    `allowed` [N] marks the samples that may be changed (None: all). With `clusters` [N], partners
    are in the same cluster. Neighbours in the order of a hash of the keys (ties by key) are paired.
    Neighbours with equal texts are paired again among themselves. What is left shares one text,
    which is too frequent; it takes the partners of pairs without that text. So as many samples are
    paired as possible. Texts are compared by a 64-bit hash: a collision only keeps two different
    texts from being swapped with each other.
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
    """The most pairs of positions with different texts in one cluster.

    `texts` [n] are hashes of the texts. Each position is in at most one pair. Pairs are ordered by
    their first position, which does not depend on how frequent a text is.
    """
    if clusters is None:
        clusters = np.zeros(len(texts), np.int32)
    by_cluster = np.argsort(clusters, kind="stable")
    first, second, pool = _pair_neighbours(by_cluster, texts, clusters)
    more_first, more_second, left = _pair_halves(pool, texts, clusters)
    pairs = np.stack(
        [np.concatenate([first, more_first]), np.concatenate([second, more_second])], axis=1
    )
    if len(left) > 1:
        pairs = _split_pairs(pairs, left, texts, clusters)
    ordered: Pairs = pairs[np.argsort(pairs[:, 0])]
    return ordered


def _pair_neighbours(
    by_cluster: Rows, texts: Hashes, clusters: Clusters
) -> tuple[Rows, Rows, Rows]:
    """Pairs of neighbours within a cluster whose texts differ, and the positions left over."""
    of = clusters[by_cluster]
    position = _position_in_run(of)
    even = np.flatnonzero(position[:-1] % 2 == 0)
    first = even[of[even + 1] == of[even]]
    differ = texts[by_cluster[first]] != texts[by_cluster[first + 1]]
    paired = np.zeros(len(of), np.bool_)
    paired[first[differ]] = paired[first[differ] + 1] = True
    return by_cluster[first[differ]], by_cluster[first[differ] + 1], by_cluster[~paired]


def _pair_halves(pool: Rows, texts: Hashes, clusters: Clusters) -> tuple[Rows, Rows, Rows]:
    """Pairs half a cluster apart in the order of texts, and the positions left over.

    Two positions so far apart have equal texts only if one text fills more than half of the
    cluster's pool; then all positions left over have that text.
    """
    pool = pool[np.lexsort((_scatter(pool), texts[pool], clusters[pool]))]
    of = clusters[pool]
    position, size = _position_in_run(of), _run_length(of)
    lower = np.flatnonzero(position < size // 2)
    upper = lower + (size[lower] + 1) // 2
    differ = texts[pool[lower]] != texts[pool[upper]]
    paired = np.zeros(len(pool), np.bool_)
    paired[lower[differ]] = paired[upper[differ]] = True
    return pool[lower[differ]], pool[upper[differ]], pool[~paired]


def _split_pairs(pairs: Pairs, left: Rows, texts: Hashes, clusters: Clusters) -> Pairs:
    """Split pairs without a left-over text; pair both partners with left-over positions.

    `left` is sorted by cluster and has one text in each cluster.
    """
    pairs = pairs[np.lexsort((pairs[:, 0], clusters[pairs[:, 0]]))]
    pair_cluster = clusters[pairs[:, 0]]
    names, starts, sizes = np.unique(clusters[left], return_index=True, return_counts=True)
    names, starts, sizes = names[sizes > 1], starts[sizes > 1], sizes[sizes > 1]
    begin = np.searchsorted(pair_cluster, names, side="left")
    end = np.searchsorted(pair_cluster, names, side="right")
    split, made = [_NONE], []
    for start, size, low, high in zip(starts, sizes, begin, end, strict=True):
        text = texts[left[start]]
        free = low + np.flatnonzero((texts[pairs[low:high]] != text).all(axis=1))
        free = free[np.argsort(_scatter(pairs[free, 0]))[: size // 2]]
        waiting = left[start : start + 2 * len(free)]
        split.append(free)
        made.append(np.stack([waiting, pairs[free].ravel()], axis=1))
    kept = np.delete(pairs, np.concatenate(split), axis=0)
    return np.concatenate([kept, *made])


def _scatter(positions: Rows) -> Hashes:
    """Distinct numbers for the positions, in an order unrelated to theirs.

    Otherwise a frequent text would come earlier in the order of the pairs.
    """
    return positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def _run_starts(values: Clusters) -> Rows:
    """The positions where runs of equal values begin."""
    return np.flatnonzero(np.append(True, values[1:] != values[:-1])) if len(values) else _NONE


def _position_in_run(values: Clusters) -> Rows:
    """Each position's distance from the start of its run of equal values."""
    starts = _run_starts(values)
    sizes = np.diff(np.append(starts, len(values)))
    return np.arange(len(values)) - np.repeat(starts, sizes)


def _run_length(values: Clusters) -> Rows:
    """The length of each position's run of equal values."""
    sizes = np.diff(np.append(_run_starts(values), len(values)))
    return np.repeat(sizes, sizes)


_NONE = np.empty(0, np.int64)

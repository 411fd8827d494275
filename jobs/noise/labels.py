"""Label noise: which samples get a wrong label at a level, and which one.

Takes the keys and clean labels of a corpus's training rows, in training order; gives a plan for all
levels. Levels are nested: a sample changed at 5 % is changed to the same class at 10 %. Counts are
exact. The result for a sample depends on the set of samples, the seed and its key, never on row
order, shards or workers. Pure numpy and Arrow; nothing here reads files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.contract import StageError
from jobs.corpus.shards import rank
from jobs.keyed_hash import Hashes, hash64

Rows = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


def changed_count(level: float, samples: int) -> int:
    """How many of `samples` a level in percent changes: the nearest integer, ties up.

    The level is taken as a decimal number, not as a binary float: 2.3 % of 1,000 is exactly 23.
    """
    return int(Fraction(str(level)) * samples / 100 + Fraction(1, 2))


def possible_count(level: float, of: int, able: int, corpus: str, what: str) -> int:
    """How many of `of` samples a level in percent changes, of which `able` can be changed.

    Raises StageError when these are too few, with a level that is possible.
    """
    wanted = changed_count(level, of)
    if wanted > able:
        reach = int(10_000 * able / of) / 100  # rounded down: this level must be possible
        raise StageError(
            f"corpus {corpus}: level {level:g} changes {wanted} of {of} {what}, but only {able} "
            f"can change; give a level of at most {reach:.2f}"
        )
    return wanted


@dataclass(frozen=True)
class Choice:
    """The settings that all random kinds of noise share."""

    seed: int = 0
    classes: tuple[int, ...] = ()  # only these may be changed; empty: all may
    of: Literal["corpus", "subset"] = "corpus"  # what a level is a percentage of


@dataclass(frozen=True)
class Labelled:
    """A corpus's training rows, for label noise."""

    corpus: str
    keys: pa.Array  # [N]
    labels: Labels  # clean, [N]
    classes: int  # C

    @staticmethod
    def of(corpus: str, keys: Sequence[str], labels: Sequence[int], classes: int) -> Labelled:
        """The same from plain sequences: a key, unique in the corpus, and a label for each row."""
        return Labelled(corpus, pa.array(keys, pa.string()), np.array(labels, np.int32), classes)

    def __post_init__(self) -> None:
        """Raises StageError for fewer than two classes or a label outside 0..C-1."""
        if self.classes < 2:
            raise StageError(
                f"corpus {self.corpus}: label noise needs two classes or more, not {self.classes};"
                f" use another kind of noise"
            )
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= self.classes))
        if len(outside):
            raise StageError(
                f"corpus {self.corpus}: {len(outside)} labels lie outside 0..{self.classes - 1} "
                f"(the first: {self.labels[outside[0]]}); correct the source or its list of classes"
            )

    @cached_property
    def has_rows(self) -> Mask:
        """Which classes have a training row, [C]. No noise changes a label to another class."""
        found: Mask = np.bincount(self.labels, minlength=self.classes) > 0
        return found

    def hashes(self, choice: Choice, stream: str) -> Hashes:
        """One 64-bit number for each row, [N], for the random choice that `stream` names."""
        return hash64(self.keys, seed=choice.seed, scope=self.corpus, stream=stream)

    def allowed(self, choice: Choice) -> Mask:
        """Which rows may be changed, by their class, [N]."""
        if not choice.classes:
            return np.ones(len(self.labels), np.bool_)
        named = np.zeros(self.classes, np.bool_)
        named[list(choice.classes)] = True
        allowed: Mask = named[self.labels]
        return allowed


@dataclass(frozen=True)
class Flips:
    """Label noise over N samples, for every level."""

    samples: Labelled
    noisy: Labels  # each sample's label if it is changed, [N]
    order: Rows  # the samples that can be changed; a level takes the first ones, [E]
    eligible: int  # samples that the noise may change, at least E
    of: Literal["corpus", "subset"] = "corpus"  # what a level is a percentage of
    counts: Mapping[str, int] = field(default_factory=dict)  # samples left out, by reason

    def count(self, level: float) -> int:
        """How many samples `level` percent changes; StageError when too few can be changed."""
        of = len(self.noisy) if self.of == "corpus" else self.eligible
        return possible_count(level, of, len(self.order), self.samples.corpus, "rows")

    def rows(self, level: float) -> Rows:
        """The changed samples' positions, rising."""
        return np.sort(self.order[: self.count(level)])

    def changed(self, level: float) -> pa.Table:
        """The changed samples by position: row (int64), key, clean and noisy label (int32)."""
        return changed_table(self.samples, self.noisy, self.rows(level))


def symmetric(samples: Labelled, choice: Choice) -> Flips:
    """A changed label becomes one of the *other* classes, uniformly.

    (Paper 1, section 2.1, which also draws the clean class.)
    """
    return _flip_within_groups(samples, choice, np.zeros(samples.classes, np.int64), "symmetric")


def subset(samples: Labelled, choice: Choice) -> Flips:
    """A label of the chosen classes becomes another of these classes, uniformly (paper 2)."""
    group_of = np.arange(1, samples.classes + 1)
    group_of[list(choice.classes)] = 0
    return _flip_within_groups(samples, choice, group_of, "subset")


def groups(samples: Labelled, choice: Choice, group_of: Rows) -> Flips:
    """A label becomes another class of its group, uniformly.

    `group_of` [C] is each class's group. Samples of a class that is alone in its group cannot be
    changed; they are counted as `rows_alone_in_group`.
    """
    return _flip_within_groups(samples, choice, group_of, "groups")


def pair(samples: Labelled, choice: Choice) -> Flips:
    """A label c becomes (c + 1) mod C. Classes without a training row are passed over."""
    classes = np.flatnonzero(samples.has_rows)
    following = np.roll(classes, -1)[np.searchsorted(classes, samples.labels)].astype(np.int32)
    allowed = samples.allowed(choice) & (following != samples.labels)
    return in_key_order(samples, choice, following, allowed, "pair")


# -- which samples change --------------------------------------------------------------------------


def in_key_order(
    samples: Labelled,
    choice: Choice,
    noisy: Labels,
    allowed: Mask,
    kind: str,
    counts: Mapping[str, int] | None = None,
) -> Flips:
    """A plan that changes the allowed samples in the order of a hash of their keys, ties by key."""
    order = rank(samples.hashes(choice, f"{kind}/who"), samples.keys)
    if not allowed.all():
        order = order[allowed[order]]
    return Flips(samples, noisy, order, len(order), choice.of, counts or {})


# -- what they become ------------------------------------------------------------------------------


def _flip_within_groups(samples: Labelled, choice: Choice, group_of: Rows, kind: str) -> Flips:
    """Each label becomes another class of its own group, uniformly.

    A class without a training row is alone in a group of its own.
    """
    apart = group_of.max(initial=0) + 1 + np.arange(len(group_of))
    group_of = np.where(samples.has_rows, group_of, apart)
    members = np.argsort(group_of, kind="stable")
    _, group, sizes = np.unique(group_of, return_inverse=True, return_counts=True)
    starts = np.cumsum(sizes) - sizes
    position = np.empty(len(group_of), np.int64)  # of a class among its group's members
    position[members] = np.arange(len(group_of)) - starts[group[members]]
    labels, size = samples.labels, sizes[group][samples.labels]
    what = samples.hashes(choice, f"{kind}/what") >> np.uint64(32)
    # 32 bits times the number of other classes, divided by 2^32: uniform within 2^-32, in integers.
    others = np.maximum(size - 1, 0).astype(np.uint64)
    drawn = (what * others >> np.uint64(32)).astype(np.int64)
    drawn += drawn >= position[labels]
    alone = size == 1
    noisy = members[starts[group][labels] + np.where(alone, 0, drawn)].astype(np.int32)
    counts = {"rows_alone_in_group": int(alone.sum())} if kind == "groups" else {}
    return in_key_order(samples, choice, noisy, samples.allowed(choice) & ~alone, kind, counts)


def changed_table(samples: Labelled, noisy: Labels, rows: Rows) -> pa.Table:
    """These rows as an overlay lists them: row (int64), key, clean and noisy label (int32)."""
    positions = pa.array(rows)
    return pa.table(
        {
            "row": positions,
            "key": samples.keys.take(positions),
            "clean": pa.array(samples.labels[rows], pa.int32()),
            "noisy": pa.array(noisy[rows], pa.int32()),
        }
    )

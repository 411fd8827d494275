"""Label noise from measured confusions: a matrix, an annotator model, or real noisy labels.

Takes a corpus's training rows, as `labels.py` does, and confusions: a C x C matrix, class
probabilities for each sample, or the noisy labels themselves. Gives plans with the properties of
those in `labels.py`: exact in count, nested over levels, keyed. Pure numpy and Arrow; nothing here
reads files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.contract import StageError
from jobs.corpus.shards import rank
from jobs.keyed_hash import unit
from jobs.noise.labels import Choice, Flips, Labelled, Labels, Rows, changed_table

Weights = npt.NDArray[np.float64]

ROW_SUM_TOLERANCE = 1e-6
PROBABILITY_TOLERANCE = 1e-2  # of a sample's class probabilities: they may come as float16
RATE_TOLERANCE = 0.05  # percentage points between a given noise's level and its measured rate


@dataclass(frozen=True)
class GivenLabels:
    """Given noisy labels: none are used at level 0, all at their measured rate."""

    samples: Labelled
    noisy: Labels  # [N]
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def eligible(self) -> int:
        """All samples: each may have a wrong label."""
        return len(self.noisy)

    def rows(self, level: float) -> Rows:
        """The mislabelled samples' positions, rising; StageError unless the level is their rate."""
        if level == 0:
            return np.empty(0, np.int64)
        wrong = np.flatnonzero(self.noisy != self.samples.labels)
        rate = 100 * len(wrong) / max(len(self.noisy), 1)
        if abs(level - rate) > RATE_TOLERANCE + 1e-9:
            raise StageError(
                f"corpus {self.samples.corpus}: the given labels differ from the clean ones in "
                f"{rate:.3f} % of the training rows, not in {level:g} %; {_level_remedy(rate)}"
            )
        return wrong

    def changed(self, level: float) -> pa.Table:
        """The mislabelled samples by position: row (int64), key, clean and noisy label (int32)."""
        return changed_table(self.samples, self.noisy, self.rows(level))


def _level_remedy(rate: float) -> str:
    """What to do where given labels have another rate than the level: a level that is allowed."""
    if rate == 0:
        return "correct noise.column, or give noise.levels=[0]"
    if rate >= 100 - RATE_TOLERANCE:
        return "correct noise.file or noise.column"
    return f"give noise.levels=[0, {f'{rate:.1f}' if rate >= 0.1 else f'{rate:.2g}'}]"


def transition(samples: Labelled, choice: Choice, matrix: Weights) -> Flips:
    """Labels change by a row-stochastic matrix T [C, C]; row c: class c's labels in full noise.

    A level's samples are distributed over the classes in proportion to n_c (1 - T_cc) by the
    Sainte-Lague method. Unlike largest remainders, its shares never shrink as the total grows, so
    levels are nested. A level may exceed the matrix's own rate while every class can provide its
    share. Raises StageError when the matrix is not C x C, not finite, negative, or when a row does
    not sum to 1.
    """
    _check_matrix(samples, matrix)
    flips = matrix.copy()
    _refuse_empty_classes(samples, flips)
    np.fill_diagonal(flips, 0)
    share = flips.sum(axis=1)
    allowed = samples.allowed(choice) & (share[samples.labels] > 0)
    noisy = samples.labels.copy()
    draws = unit(samples.hashes(choice, "transition/what"))
    for label in np.unique(samples.labels[allowed]):
        here = np.flatnonzero(samples.labels == label)
        noisy[here] = _draw_classes(
            np.broadcast_to(flips[label], (1, samples.classes)), draws[here]
        )
    everyone = rank(samples.hashes(choice, "transition/who"), samples.keys)
    order = _order_by_share(everyone[allowed[everyone]], samples.labels, share)
    return Flips(
        samples,
        noisy,
        order,
        int(allowed.sum()),
        choice.of,
        {"rows_never_flipped": int((share[samples.labels] == 0).sum())},
    )


def instance(samples: Labelled, choice: Choice, blocks: Iterable[tuple[Rows, Weights]]) -> Flips:
    """An annotator's class probabilities decide which samples are changed, and to which class.

    `blocks` give positions [n] and class probabilities [n, C] for some rows at a time; together,
    for every row once. The order is an exponential race: sample i arrives at -log(u_i) / w_i with
    w_i = 1 - p_i(clean), so it is first with a probability proportional to w_i. The new label is
    drawn from p_i without the clean class. Samples with w_i = 0 cannot be changed (counted as
    `rows_certain`). A class without a training row counts as probability 0. Raises StageError for
    rows without probabilities, and for probabilities that are negative, not finite or do not sum
    to 1.
    """
    draws = unit(samples.hashes(choice, "instance/what"))
    # Shifted above 0: the logarithm must be finite.
    uniform = unit(samples.hashes(choice, "instance/who")) + 2.0**-54
    arrival = np.full(len(draws), np.nan)
    noisy = samples.labels.copy()
    for rows, given in blocks:
        probabilities = _check_probabilities(samples, rows, given)
        probabilities[np.arange(len(rows)), samples.labels[rows]] = 0
        probabilities[:, ~samples.has_rows] = 0
        doubt = probabilities.sum(axis=1)
        unsure = doubt > 0
        noisy[rows[unsure]] = _draw_classes(probabilities[unsure], draws[rows[unsure]])
        with np.errstate(divide="ignore"):
            arrival[rows] = -np.log(uniform[rows]) / doubt
    missing = int(np.isnan(arrival).sum())
    if missing:
        raise StageError(
            f"corpus {samples.corpus}: {missing} of {len(arrival)} training rows have no class "
            f"probabilities; give noise.file a row for every key"
        )
    allowed = samples.allowed(choice) & np.isfinite(arrival)
    # Ties are in the order of `rank`: by hash, then by key.
    by_hash = rank(samples.hashes(choice, "instance/who"), samples.keys)
    order = by_hash[np.argsort(arrival[by_hash], kind="stable")]
    certain = int(np.isinf(arrival).sum())
    return Flips(
        samples,
        noisy,
        order[allowed[order]],
        int(allowed.sum()),
        choice.of,
        {"rows_certain": certain},
    )


def given(samples: Labelled, noisy: Labels) -> GivenLabels:
    """Real noisy labels [N], in the samples' order; StageError when one is not a class."""
    outside = np.flatnonzero((noisy < 0) | (noisy >= samples.classes))
    if len(outside):
        raise StageError(
            f"corpus {samples.corpus}: the given label {noisy[outside[0]]} of key "
            f"{samples.keys[int(outside[0])].as_py()!r} lies outside 0..{samples.classes - 1}; "
            f"correct noise.file"
        )
    empty = np.flatnonzero(~samples.has_rows[noisy])
    if len(empty):
        raise StageError(
            f"corpus {samples.corpus}: noise.file gives key {samples.keys[int(empty[0])].as_py()!r}"
            f" the class {noisy[empty[0]]}, which has no training row ({len(empty)} such keys); "
            f"correct noise.file"
        )
    return GivenLabels(samples, noisy)


def _order_by_share(order: Rows, labels: Labels, share: Weights) -> Rows:
    """Rows in an order in which every prefix has the classes in proportion to n_c * share_c.

    The k-th row of class c (k = 0, 1, ..., in the given order) comes at (k + 1/2) / (n_c share_c).
    The order ends where the first class runs out of rows.
    """
    if len(order) == 0:
        return order
    classes = labels[order]
    counts = np.bincount(classes, minlength=len(share))
    by_class = np.argsort(classes, kind="stable")
    starts = np.cumsum(counts) - counts
    number = np.empty(len(order), np.int64)  # k of each row
    number[by_class] = np.arange(len(order)) - np.repeat(starts, counts)
    arrival = (number + 0.5) / (counts * share)[classes]
    end = 1 / share[counts > 0].max()
    kept = np.flatnonzero(arrival <= end)
    # Ties by class, then in the given order.
    return order[kept[np.lexsort((number[kept], classes[kept], arrival[kept]))]]


def _draw_classes(weights: Weights, u: Weights) -> Labels:
    """A class for each u in [0, 1), by the weights [n, C] (or [1, C], the same for all)."""
    ends = np.cumsum(weights, axis=1)
    if len(ends) == 1:
        drawn = np.searchsorted(ends[0], u * ends[0, -1], side="right")
    else:
        drawn = (ends <= (u * ends[:, -1])[:, None]).sum(axis=1)
    # u times the total may round up to the total: then take the last class with a weight.
    last = weights.shape[1] - 1 - np.argmax(weights[:, ::-1] > 0, axis=1)
    chosen: Labels = np.minimum(drawn, last).astype(np.int32)
    return chosen


def _check_matrix(samples: Labelled, matrix: Weights) -> None:
    where, size = f"corpus {samples.corpus}: the transition matrix", samples.classes
    if matrix.shape != (size, size):
        shape = " x ".join(map(str, matrix.shape))
        raise StageError(f"{where} is {shape}; give one of {size} x {size}, a row for each class")
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1) | (matrix < 0).any(axis=1))
    if len(bad):
        raise StageError(f"{where} holds a negative or missing number in row {bad[0]}; correct it")
    sums = matrix.sum(axis=1)
    off = np.flatnonzero(np.abs(sums - 1) > ROW_SUM_TOLERANCE)
    if len(off):
        raise StageError(
            f"{where}'s row {off[0]} sums to {sums[off[0]]:.6g}; make every row sum to 1"
        )


def _refuse_empty_classes(samples: Labelled, flips: Weights) -> None:
    """Raise StageError when labels of a class would become one without a training row."""
    into = (flips[samples.has_rows] > 0).any(axis=0) & ~samples.has_rows
    if into.any():
        raise StageError(
            f"corpus {samples.corpus}: the transition matrix changes labels to class "
            f"{np.flatnonzero(into)[0]}, which has no training row; set its column to 0, and make "
            f"every row sum to 1"
        )


def _check_probabilities(samples: Labelled, rows: Rows, given: Weights) -> Weights:
    """The probabilities [n, C] as float64, each row divided by its sum; StageError if invalid."""
    if given.shape != (len(rows), samples.classes):
        raise StageError(
            f"corpus {samples.corpus}: noise.file gives {given.shape[1]} probabilities a key; "
            f"give one for each of the {samples.classes} classes"
        )
    values = given.astype(np.float64)
    sums = values.sum(axis=1)
    sound = np.isfinite(values).all(axis=1) & (values >= 0).all(axis=1)
    bad = np.flatnonzero(~sound | (np.abs(sums - 1) > PROBABILITY_TOLERANCE))
    if len(bad):
        key = samples.keys[int(rows[bad[0]])].as_py()
        raise StageError(
            f"corpus {samples.corpus}: the class probabilities of key {key!r} are not numbers of "
            f"at least 0 that sum to 1; correct noise.file"
        )
    scaled: Weights = values / sums[:, None]
    return scaled

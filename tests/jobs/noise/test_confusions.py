"""Noise from a matrix, an annotator or given labels: exact, nested, and true to the measurement."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jobs.contract import StageError
from jobs.noise import confusions
from jobs.noise.labels import Choice, Labelled, changed_count

Floats = npt.NDArray[np.float64]


def samples(labels: list[int], classes: int, order: list[int] | None = None) -> Labelled:
    keys = [f"k{i}" for i in range(len(labels))]
    order = order or list(range(len(labels)))
    chosen = np.array([labels[i] for i in order], np.int32)
    return Labelled("c", pa.array([keys[i] for i in order]), chosen, classes)


def as_dict(table: pa.Table) -> dict[str, tuple[int, int]]:
    return {row["key"]: (row["clean"], row["noisy"]) for row in table.to_pylist()}


@st.composite
def with_matrix(draw: st.DrawFn) -> tuple[list[int], Floats]:
    classes = draw(st.integers(2, 6))
    labels = draw(st.lists(st.integers(0, classes - 1), max_size=80)) + list(range(classes))
    weights = draw(
        arrays.arrays(np.float64, (classes, classes), elements=st.sampled_from([0, 1, 2, 5]))
    )
    weights[weights.sum(axis=1) == 0] = 1
    return labels, weights / weights.sum(axis=1, keepdims=True)


@st.composite
def with_probabilities(draw: st.DrawFn) -> tuple[list[int], Floats]:
    classes = draw(st.integers(2, 6))
    labels = draw(st.lists(st.integers(0, classes - 1), max_size=60)) + list(range(classes))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    values = random.dirichlet(np.full(classes, 0.3), len(labels))
    for row in draw(st.sets(st.integers(0, len(labels) - 1), max_size=5)):
        values[row] = np.eye(classes)[labels[row]]
    return labels, values


def blocks(values: Floats, size: int) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]:
    for start in range(0, len(values), size):
        yield np.arange(start, min(start + size, len(values))), values[start : start + size]


@given(with_matrix(), st.floats(0, 1))
def test_the_matrix_distributes_a_level_over_the_classes(
    data: tuple[list[int], Floats], share: float
) -> None:
    labels, matrix = data
    plan = confusions.transition(samples(labels, len(matrix)), Choice(), matrix)
    level = share * 99.9 * len(plan.order) / len(labels)
    table = plan.changed(level)
    assert len(table) == changed_count(level, len(labels))
    for clean, noisy in as_dict(table).values():
        assert clean != noisy
        assert matrix[clean, noisy] > 0
    # Sainte-Lague: no exchange of a flip between two classes comes nearer to the shares.
    weights = np.bincount(labels, minlength=len(matrix)) * (1 - np.diag(matrix))
    counts = np.bincount(table["clean"].to_numpy(), minlength=len(matrix))
    has, may = counts > 0, weights > 1e-12
    if has.any():
        assert ((counts[has] - 0.5) / weights[has]).max() <= (
            (counts[may] + 0.5) / weights[may]
        ).min() * (1 + 1e-9)


@given(with_matrix(), st.randoms(use_true_random=False))
def test_row_order_does_not_affect_the_matrix_noise_and_levels_nest(
    data: tuple[list[int], Floats], random: object
) -> None:
    labels, matrix = data
    order = list(range(len(labels)))
    random.shuffle(order)  # type: ignore[attr-defined]
    one = confusions.transition(samples(labels, len(matrix)), Choice(), matrix)
    other = confusions.transition(samples(labels, len(matrix), order), Choice(), matrix)
    top = 99.9 * len(one.order) / len(labels)
    low, high = as_dict(one.changed(top / 3)), as_dict(one.changed(top))
    assert low.items() <= high.items()
    assert high == as_dict(other.changed(top))


def test_at_full_noise_the_rates_are_the_matrix() -> None:
    matrix = np.array([[0.8, 0.15, 0.05], [0.0, 0.5, 0.5], [0.3, 0.0, 0.7]])
    labels = [i % 3 for i in range(30_000)]
    plan = confusions.transition(samples(labels, 3), Choice(), matrix)
    noisy = plan.samples.labels.copy()
    rows = plan.rows(100 * (0.2 + 0.5 + 0.3) / 3)
    noisy[rows] = plan.noisy[rows]
    found = np.zeros((3, 3))
    np.add.at(found, (plan.samples.labels, noisy), 1 / 10_000)
    assert np.abs(found - matrix).max() < 0.012
    assert np.abs(np.diag(found) - np.diag(matrix)).max() < 2e-4  # exact but for rounding


def test_a_class_that_never_flips_is_counted_and_not_changed() -> None:
    plan = confusions.transition(
        samples([0, 1, 1, 0], 2), Choice(), np.array([[1.0, 0.0], [0.5, 0.5]])
    )
    assert plan.counts == {"rows_never_flipped": 2}
    assert plan.changed(50)["clean"].to_pylist() == [1, 1]
    with pytest.raises(StageError, match=r"only 2 can change; give a level of at most 50\.00"):
        plan.changed(75)


def test_levels_end_where_a_class_has_no_rows_left() -> None:
    matrix = np.array([[0.5, 0.5], [0.1, 0.9]])
    plan = confusions.transition(samples([0] * 100 + [1] * 100, 2), Choice(), matrix)
    # Class 0 keeps five times the flips of class 1 until its hundredth, at 20 of class 1.
    assert np.bincount(plan.samples.labels[plan.order]).tolist() == [100, 20]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(3), "is 3 x 3; give one of 2 x 2"),
        (np.ones(2), "is 2; give one of 2 x 2"),
        (np.array([[1.1, -0.1], [0, 1]]), "negative or missing number in row 0"),
        (np.array([[1, 0], [np.nan, 1]]), "negative or missing number in row 1"),
        (np.array([[1, 0], [0.5, 0.4]]), "row 1 sums to 0.9; make every row sum to 1"),
    ],
)
def test_an_invalid_matrix_is_refused(matrix: Floats, message: str) -> None:
    with pytest.raises(StageError, match=message):
        confusions.transition(samples([0, 1], 2), Choice(), matrix)


@settings(max_examples=60)
@given(with_probabilities(), st.floats(0, 1), st.integers(1, 70))
def test_the_annotator_changes_the_exact_number_and_never_to_an_impossible_class(
    data: tuple[list[int], Floats], share: float, size: int
) -> None:
    labels, values = data
    plan = confusions.instance(samples(labels, values.shape[1]), Choice(), blocks(values, size))
    unsure = [i for i, label in enumerate(labels) if values[i, label] < 1]
    assert plan.eligible == len(unsure)
    assert plan.counts == {"rows_certain": len(labels) - len(unsure)}
    level = share * 99.9 * len(unsure) / len(labels)
    low, high = plan.changed(level / 2), plan.changed(level)
    assert len(high) == changed_count(level, len(labels))
    assert as_dict(low).items() <= as_dict(high).items()
    for row, noisy in zip(high["row"].to_pylist(), high["noisy"].to_pylist(), strict=True):
        assert noisy != labels[row]
        assert values[row, noisy] > 0


@settings(max_examples=30)
@given(with_probabilities(), st.randoms(use_true_random=False), st.integers(1, 70))
def test_row_order_and_blocks_do_not_affect_the_annotator(
    data: tuple[list[int], Floats], random: object, size: int
) -> None:
    labels, values = data
    order = list(range(len(labels)))
    random.shuffle(order)  # type: ignore[attr-defined]
    classes = values.shape[1]
    one = confusions.instance(samples(labels, classes), Choice(), blocks(values, 1000))
    other = confusions.instance(
        samples(labels, classes, order), Choice(), blocks(values[order], size)
    )
    level = 99.9 * one.eligible / len(labels)
    assert as_dict(one.changed(level)) == as_dict(other.changed(level))


def test_hard_samples_come_first_in_proportion_to_their_doubt() -> None:
    labels = [0] * 40_000 + [1]
    values = np.concatenate([np.tile([[0.9, 0.1], [0.6, 0.4]], (20_000, 1)), [[0.0, 1.0]]])
    plan = confusions.instance(samples(labels, 2), Choice(), blocks(values, 9999))
    rows = plan.rows(1)
    assert np.mean(rows % 2) == pytest.approx(0.8, abs=0.06)  # 0.4 / (0.1 + 0.4), of 400


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((2, 3), 1 / 3), "gives 3 probabilities a key; give one for each of the 2"),
        (np.array([[0.5, 0.5], [0.5, 0.1]]), "key 'k1' are not numbers"),
        (np.array([[1.5, -0.5], [0.5, 0.5]]), "key 'k0' are not numbers"),
        (np.full((1, 2), 0.5), "1 of 2 training rows have no class probabilities"),
    ],
)
def test_invalid_probabilities_are_refused(values: Floats, message: str) -> None:
    with pytest.raises(StageError, match=message):
        confusions.instance(samples([0, 1], 2), Choice(), blocks(values, 10))


def test_a_class_without_a_row_is_never_drawn() -> None:
    labels = [0, 1, 3] * 40  # of the classes 0 to 3
    values = np.tile([0.1, 0.2, 0.6, 0.1], (len(labels), 1))
    plan = confusions.instance(samples(labels, 4), Choice(), blocks(values, 50))
    assert set(plan.changed(99)["noisy"].to_pylist()) == {0, 1, 3}
    with pytest.raises(StageError, match="to class 2, which has no training row"):
        confusions.transition(samples(labels, 4), Choice(), values[:4])
    matrix = np.where(np.eye(4, dtype=bool)[2], 0, values[:4]) / 0.4
    flips = confusions.transition(samples(labels, 4), Choice(), matrix)
    assert 2 not in flips.noisy
    with pytest.raises(StageError, match="key 'k1' the class 2, which has no training row"):
        confusions.given(samples(labels, 4), np.array([0, 2, 3, *labels[3:]]))


def test_given_labels_are_used_unchanged_at_their_measured_rate() -> None:
    plan = confusions.given(samples([0, 1, 2] * 4, 3), np.array([0, 1, 0] + [0, 1, 2] * 3))
    assert len(plan.changed(0)) == 0
    assert as_dict(plan.changed(8.3)) == {"k2": (2, 0)}
    with pytest.raises(StageError, match=r"in 8\.333 % of .* give noise\.levels=\[0, 8\.3\]"):
        plan.changed(8.4)
    with pytest.raises(StageError, match=r"given label 3 of key 'k1' lies outside 0\.\.2"):
        confusions.given(samples([0, 1], 3), np.array([0, 3]))

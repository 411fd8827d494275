"""Promises of the intervals: right where known, absent where nothing was repeated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.averages import Score, average
from analysis.statistics import (
    Correlation,
    Interval,
    crossed_interval,
    directed_p,
    holm,
    mean_interval,
    paired_difference,
    pearson,
    power,
    seeds_needed,
    spread_range,
    standard_deviation,
    student_p,
    student_quantile,
)


@pytest.mark.parametrize(
    ("probability", "df", "quantile"),
    [
        (0.95, 1, 12.706205),
        (0.95, 2, 4.302653),
        (0.95, 3, 3.182446),
        (0.95, 4, 2.776445),
        (0.95, 7, 2.364624),
        (0.95, 10, 2.228139),
        (0.95, 30, 2.042272),
        (0.99, 5, 4.032143),
        (0.99, 1, 63.656741),
    ],
)
def test_student_quantiles_are_the_tables(probability: float, df: int, quantile: float) -> None:
    assert student_quantile(probability, df) == pytest.approx(quantile, rel=1e-6)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.6, 0.95, 0.999])
def test_student_quantiles_have_their_closed_forms(probability: float) -> None:
    one, two = (
        math.tan(math.pi * probability / 2),
        probability * math.sqrt(2 / (1 - probability**2)),
    )
    assert student_quantile(probability, 1) == pytest.approx(one, rel=1e-12)
    assert student_quantile(probability, 2) == pytest.approx(two, rel=1e-12)


@pytest.mark.parametrize(("probability", "df"), [(1.0, 3), (-0.1, 3), (0.95, 0)])
def test_a_quantile_that_does_not_exist_is_refused(probability: float, df: int) -> None:
    with pytest.raises(ValueError, match="no t quantile"):
        student_quantile(probability, df)


@pytest.mark.parametrize(
    ("values", "null", "p"),
    [
        ([1.0, 2.0, 3.0, 4.0], 0.0, 0.030466291662170977),
        ([1.0, 3.0], 0.0, 1 - 2 / math.pi * math.atan(2)),  # one degree of freedom
        ([1.0, 2.0, 3.0], 0.5, 1 - 1.5 / math.sqrt(1.5**2 + 2 / 3)),  # two
        ([1.0, 2.0, 3.0], 2.0, 1.0),
        ([2.0, 2.0, 2.0], 2.0, 1.0),
        ([2.0, 2.0, 2.0], 1.0, 1.0),  # equal values are no evidence of a spread
        ([2.0], 0.0, 1.0),
    ],
)
def test_p_values_of_the_t_test_are_known(values: list[float], null: float, p: float) -> None:
    assert student_p(values, null) == pytest.approx(p, rel=1e-12)


def test_the_interval_is_students_t() -> None:
    found = mean_interval([1.0, 2.0, 3.0, 4.0])
    half = 3.182446 * np.std([1, 2, 3, 4], ddof=1) / 2
    assert found.mean == 2.5
    assert (found.low, found.high) == (pytest.approx(2.5 - half), pytest.approx(2.5 + half))


def test_one_value_has_a_mean_and_no_interval() -> None:
    found = mean_interval([7.0])
    assert (found.mean, found.low, found.high, found.n) == (7.0, None, None, 1)
    assert not found.excludes_zero
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    draws = random.standard_normal((2000, 4)) + 5
    held = [mean_interval(list(row)) for row in draws]
    share = np.mean([one.low is not None and one.low <= 5 <= (one.high or 0) for one in held])
    assert 0.93 < share < 0.97


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8), st.floats(-50, 50))
def test_pairing_removes_what_both_sides_share(shared: list[float], apart: float) -> None:
    clean = {(seed, "a"): value for seed, value in enumerate(shared)}
    noisy = {place: value + apart for place, value in clean.items()}
    found = paired_difference(noisy, clean)
    assert found.interval.mean == pytest.approx(apart, abs=1e-9)
    low = found.interval.low  # none: the differences are equal, but for rounding at most
    assert low is None or low == pytest.approx(apart, abs=1e-9)
    assert found.interval.n == len(shared)
    assert found.unpaired == 0


def test_only_tasks_paired_in_every_seed_count() -> None:
    first = {(0, "a"): 3.0, (0, "b"): 100.0, (1, "a"): 5.0, (2, "a"): 9.0}
    second = {(0, "a"): 1.0, (0, "b"): 1.0, (1, "a"): 1.0, (1, "b"): 1.0}
    found = paired_difference(first, second)
    assert (found.tasks, found.seeds) == (("a",), (0, 1))
    assert found.interval.mean == 3.0  # of 2 and 4; b is not paired in seed 1, seed 2 is alone
    assert found.unpaired == 4
    with pytest.raises(ValueError, match="both sides"):
        paired_difference({(0, "a"): 1.0}, {(0, "b"): 1.0})


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(
    ("of_seed", "of_sample"), [(3.0, 0.0), (1.0, 5.0), (0.3, 10.0), (0.0, 10.0)]
)
def test_the_interval_over_seeds_and_samples_covers_as_often_as_it_says(
    seeds: int, of_seed: float, of_sample: float
) -> None:
    """From seeds that differ far more than the choice of samples explains, to none that differ."""
    random = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        scores = of_seed * random.standard_normal((seeds, 1))
        scores = scores + of_sample * random.standard_normal((1, 120))
        found = crossed_interval({"": 1 + scores + 8 * random.standard_normal((seeds, 120))})
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 1 <= found.high
    assert 930 <= held <= 970


def test_the_interval_over_seeds_and_samples_adds_up_test_sets() -> None:
    random = np.random.default_rng(1)
    first, second = random.standard_normal((4, 200)), random.standard_normal((4, 90))
    found = crossed_interval({"a": first, "b": second + 2})
    assert found.mean == pytest.approx(first.mean() + second.mean() + 2)
    assert found.n == 4
    held = 0
    for _ in range(1000):
        sets = {}
        shift = random.standard_normal((4, 1))
        for name, size in (("a", 80), ("b", 40)):
            own = random.standard_normal((4, size)) + 3 * random.standard_normal((1, size))
            sets[name] = own + shift / 2
        one = crossed_interval(sets)
        held += one.low is not None and one.high is not None and one.low <= 0 <= one.high
    assert 930 <= held <= 970


def test_few_seeds_or_equal_values_have_no_interval_and_no_p() -> None:
    random = np.random.default_rng(0)
    assert crossed_interval({"": random.random((2, 50))}).low is None
    assert crossed_interval({"": np.ones((5, 50))}) == Interval(1.0, None, None, 5)
    assert crossed_interval({"": random.random((5, 1))}).low is None
    assert mean_interval([1.0, 2.0]).low is None
    for equal in ([0.0] * 4, [0.7] * 3, [1 / 3, 1 / 3 + 1e-16, 1 / 3], [5.0, 5.0]):
        assert mean_interval(equal).low is None
        assert student_p(equal) == 1.0
    assert student_p([0.7, 0.7001, 0.7]) < 0.001


def test_the_power_of_the_corrected_test_is_that_of_a_simulation() -> None:
    """An effect of 0.4 points at a spread of 0.3, tested beside fourteen claims of no effect."""
    random = np.random.default_rng(4)
    for seeds, least, most in ((3, 0.01, 0.06), (7, 0.25, 0.36), (13, 0.77, 0.86)):
        assert least <= power(seeds, 0.4, 0.3, 0.05 / 15) <= most
        shown = 0
        for _ in range(400):
            true = random.standard_normal(seeds) * 0.3 + 0.4
            others = random.uniform(size=14).tolist()
            shown += holm([directed_p(true.tolist(), 1), *others])[0] < 0.05
        assert least <= shown / 400 <= most
    assert seeds_needed(0.3, 0.4, claims=15) == 13
    assert seeds_needed(0.3, 0.4) == 7
    assert seeds_needed(0.3, 0.4, claims=15, parts=2) == 15
    assert seeds_needed(0.0, 0.5) == 3
    assert seeds_needed(1.0, 0.0) is None
    assert seeds_needed(1.0, 1e-3) is None


def test_the_range_of_a_spread_holds_the_true_one_as_often_as_it_says() -> None:
    random = np.random.default_rng(4)
    held = 0
    for _ in range(1000):
        low, high = spread_range(standard_deviation(random.standard_normal(4).tolist()), 4)
        held += low <= 1 <= high
    assert 770 <= held <= 830


def test_correlation_is_pearsons_with_fishers_interval() -> None:
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 1.0, 4.0, 3.0, 6.0]
    found = pearson(x, y)
    assert found.r == pytest.approx(np.corrcoef(x, y)[0, 1])
    half = 1.959963984540054 / math.sqrt(2)
    assert found.low == pytest.approx(math.tanh(math.atanh(found.r or 0) - half), rel=1e-12)
    assert found.high == pytest.approx(math.tanh(math.atanh(found.r or 0) + half), rel=1e-12)
    # Two points always correlate perfectly, and three have no interval: four are the least.
    assert pearson([1.0, 2.0], [1.0, 5.0]) == Correlation(None, None, None, 2)
    assert pearson([1.0, 2.0, 3.0], [1.0, 5.0, 2.0]) == Correlation(None, None, None, 3)
    assert pearson([1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0]) == Correlation(1.0, None, None, 4)
    assert pearson([1.0] * 4, [1.0, 2.0, 3.0, 4.0]).r is None
    assert pearson([], []).n == 0
    with pytest.raises(ValueError, match="as many"):
        pearson([1.0], [1.0, 2.0])


def test_a_member_missing_anywhere_is_left_out_everywhere() -> None:
    scores = [
        Score(noise, seed, task, noise + seed + len(task))
        for noise in (0.0, 10.0)
        for seed in (0, 1)
        for task in ("a", "bb")
    ]
    whole, short = average(scores), average(scores[:-1])
    assert (whole.members, whole.left_out) == (("a", "bb"), ())
    assert (short.members, short.left_out) == (("a",), ("bb",))
    assert short.seed_means(0.0) == {0: 1.0, 1: 2.0}
    change = short.change(10.0)
    assert change is not None
    assert change.interval.mean == 10.0


def test_tuning_seeds_are_averaged_and_are_not_replicates() -> None:
    found = average([Score(0.0, 0, "a", value, at) for at, value in enumerate((1.0, 3.0))])
    interval = found.interval(0.0)
    assert interval is not None
    assert (interval.mean, interval.low, interval.n) == (2.0, None, 1)


def test_an_average_counts_a_member_once() -> None:
    with pytest.raises(ValueError, match="counts each member once"):
        average([Score(0.0, 0, "a", 1.0), Score(0.0, 0, "a", 2.0)])

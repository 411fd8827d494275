"""Downstream label noise: nested, exact, symmetric, and dependent on keys only."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.tuning.label_noise import corrupted


def sample(rows: int, classes: int) -> tuple[np.ndarray, pa.Array]:
    return np.arange(rows) % classes, pa.array([f"k{row}" for row in range(rows)])


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 300),
    classes=st.integers(2, 9),
    low=st.floats(0, 50),
    high=st.floats(0, 50),
    seed=st.integers(0, 5),
)
def test_levels_are_exact_nested_and_never_give_the_true_class(
    rows: int, classes: int, low: float, high: float, seed: int
) -> None:
    low, high = sorted((low, high))
    labels, keys = sample(rows, classes)
    of = [
        corrupted(labels, keys, classes=classes, percent=level, seed=seed, scope="x")
        for level in (low, high)
    ]
    for noisy, level in zip(of, (low, high), strict=True):
        assert (noisy != labels).sum() == int(rows * level / 100 + 0.5)
        assert noisy.min() >= 0
        assert noisy.max() < classes
    wrong = of[0] != labels
    assert (of[1][wrong] == of[0][wrong]).all()


def test_order_does_not_matter_and_seed_does() -> None:
    labels, keys = sample(200, 5)
    turned = np.random.default_rng(0).permutation(200)
    here = corrupted(labels, keys, classes=5, percent=30, seed=1, scope="x")
    there = corrupted(labels[turned], keys.take(turned), classes=5, percent=30, seed=1, scope="x")
    assert (here[turned] == there).all()
    other = corrupted(labels, keys, classes=5, percent=30, seed=2, scope="x")
    assert (here != other).any()


def test_wrong_classes_are_uniform_over_the_others() -> None:
    labels = np.zeros(30_000, np.int64)
    keys = pa.array([f"k{row}" for row in range(30_000)])
    noisy = corrupted(labels, keys, classes=4, percent=50, seed=0, scope="x")
    counts = np.bincount(noisy, minlength=4)[1:]
    assert counts.sum() == 15_000
    assert abs(counts - 5_000).max() < 250

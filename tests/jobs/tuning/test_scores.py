"""Scores against scikit-learn's, whose definitions we use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from jobs.tuning.metrics import score


@given(
    rows=st.integers(1, 40),
    classes=st.integers(2, 6),
    members=st.integers(1, 3),
    seed=st.integers(0, 10_000),
)
def test_scores_are_scikit_learns_in_percent(
    rows: int, classes: int, members: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, rows)
    predicted = generator.integers(0, classes, (members, rows))
    scores = score(torch.from_numpy(labels), torch.from_numpy(predicted), classes)
    for k in range(members):
        per_class = [(predicted[k][labels == c] == c).mean() for c in np.unique(labels)]
        f1 = metrics.f1_score(labels, predicted[k], average="macro", zero_division=0)
        assert scores.accuracy[k].item() == pytest.approx(100 * (predicted[k] == labels).mean())
        assert scores.macro_f1[k].item() == pytest.approx(100 * f1)
        found = scores.mean_per_class_accuracy[k].item()
        assert found == pytest.approx(100 * float(np.mean(per_class)))


def test_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match="no row to score"):
        score(torch.zeros(0, dtype=torch.int64), torch.zeros((2, 0), dtype=torch.int64), 3)

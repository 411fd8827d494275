"""Every metric of a task, against scikit-learn and scipy."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as theirs

from jobs.tasks.target import CLASS, KINDS, Metric
from jobs.tuning.metrics import correlate, score

RANDOM = np.random.default_rng(5)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("right", [0.0, 0.6, 1.0])
def test_class_metrics_are_those_of_scikit_learn(classes: int, right: float) -> None:
    labels = RANDOM.integers(0, classes, 300)
    drawn = RANDOM.integers(0, classes, (3, 300))
    predicted = np.where(RANDOM.random((3, 300)) < right, labels, drawn)
    scores = score(torch.from_numpy(labels), torch.from_numpy(predicted), classes)
    for member, found in enumerate(predicted):
        expected = {
            "accuracy": theirs.accuracy_score(labels, found),
            "mean_per_class_accuracy": theirs.balanced_accuracy_score(labels, found),
            "macro_f1": theirs.f1_score(labels, found, average="macro"),
            "f1": theirs.f1_score(labels, found, labels=[classes - 1], average="macro"),
            "matthews": theirs.matthews_corrcoef(labels, found),
        }
        expected["accuracy_f1"] = (expected["accuracy"] + expected["f1"]) / 2
        for metric, value in expected.items():
            assert scores.of(metric)[member].item() == pytest.approx(100 * value, abs=1e-9), metric  # type: ignore[arg-type]
        assert set(expected) == set(CLASS.metrics)
    assert {m for kind in KINDS.values() for m in kind.metrics} == set(get_args(Metric))


def test_one_class_alone_has_no_matthews_coefficient() -> None:
    labels = torch.tensor([0, 1, 1, 0])
    scores = score(labels, torch.zeros(1, 4, dtype=torch.int64), 2)
    assert scores.matthews.tolist() == [0.0]


def test_number_metrics_are_those_of_scipy_ties_included() -> None:
    targets = np.round(RANDOM.random(400) * 5, 1)
    predicted = np.stack([targets + RANDOM.normal(size=400), np.round(RANDOM.random(400), 1)])
    found = correlate(torch.from_numpy(targets), torch.from_numpy(predicted))
    for member, values in enumerate(predicted):
        pearson = stats.pearsonr(targets, values).statistic
        spearman = stats.spearmanr(targets, values).statistic
        assert found.of("pearson")[member].item() == pytest.approx(100 * pearson)
        assert found.of("spearman")[member].item() == pytest.approx(100 * spearman)
        both = found.of("pearson_spearman")[member].item()
        assert both == pytest.approx(50 * (pearson + spearman))


def test_a_constant_prediction_correlates_with_nothing() -> None:
    found = correlate(torch.tensor([1.0, 2.0, 3.0]), torch.full((1, 3), 2.0))
    assert (found.pearson.item(), found.spearman.item()) == (0.0, 0.0)


def test_a_metric_of_the_other_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="is of numbers"):
        score(torch.tensor([0]), torch.tensor([[0]]), 2).of("pearson")
    with pytest.raises(ValueError, match="is of classes"):
        correlate(torch.tensor([0.0, 1.0]), torch.tensor([[0.0, 1.0]])).of("accuracy")

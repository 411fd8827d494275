"""The solved probes against scikit-learn's solvers: both give the optimum."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch.nn import functional

from jobs.tuning.frozen import probes
from jobs.tuning.frozen.probes import solve
from jobs.tuning.heads import Shape
from jobs.tuning.rows import Labelled
from jobs.tuning.target import ClassTarget
from jobs.tuning.trained import Configuration
from tests.jobs.tuning.frozen.test_stack import CLASSES, DIM, blobs

SHAPE = Shape("linear", DIM, ClassTarget(CLASSES))
TRAINING, VALIDATION = blobs(80, 2, 1), blobs(60, 0, 2)
ROWS, LABELS = TRAINING.features.flatten(0, 1), TRAINING.labels.repeat(2)


def tried(*penalties: float) -> list[Configuration]:
    return [Configuration(lr=0, l2=penalty) for penalty in penalties]


@pytest.mark.parametrize("penalty", [1e-3, 0.3])
def test_ridge_is_scikit_learns(penalty: float) -> None:
    found = solve("ridge", SHAPE, TRAINING, VALIDATION, tried(penalty)).state
    theirs = Ridge(alpha=penalty * len(ROWS)).fit(
        ROWS.double().numpy(), functional.one_hot(LABELS, CLASSES).numpy()
    )
    torch.testing.assert_close(
        found["classifier.weight"], torch.tensor(theirs.coef_).float(), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        found["classifier.bias"], torch.tensor(theirs.intercept_).float(), rtol=1e-4, atol=1e-5
    )


def test_ridge_takes_rows_in_pieces_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = solve("ridge", SHAPE, TRAINING, VALIDATION, tried(1e-3)).state
    monkeypatch.setattr(probes, "_ENTRIES", 7 * max(DIM, CLASSES))
    pieces = solve("ridge", SHAPE, TRAINING, VALIDATION, tried(1e-3)).state
    for name, values in whole.items():
        torch.testing.assert_close(pieces[name], values)


def test_lbfgs_is_scikit_learns_logistic_regression() -> None:
    penalty = 0.01
    found = solve("lbfgs", SHAPE, TRAINING, VALIDATION, tried(penalty)).state
    theirs = LogisticRegression(C=1 / (penalty * len(ROWS)), tol=1e-10, max_iter=5000).fit(
        ROWS.double().numpy(), LABELS.numpy()
    )
    torch.testing.assert_close(
        found["classifier.weight"], torch.tensor(theirs.coef_).float(), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["ridge", "lbfgs"])
def test_the_penalty_that_validates_best_is_selected(kind: str) -> None:
    penalties = (1e4, 1e-3, 1e4)
    trained = solve(kind, SHAPE, TRAINING, VALIDATION, tried(*penalties))  # type: ignore[arg-type]
    assert trained.chosen == 1
    assert (trained.failures, trained.trained_for) == ((None,) * 3, (1,) * 3)
    assert trained.epochs[0].validation_loss.shape == (3,)


def test_a_descent_that_does_not_converge_is_a_failure_with_its_reason() -> None:
    labels = torch.tensor([0, 1] * 20)
    separable = Labelled((labels * 2.0 - 1)[None, :, None] * torch.ones(1, 40, DIM) * 1e-3, labels)
    validation = Labelled(separable.features[0], labels)
    shape = Shape("linear", DIM, ClassTarget(2))
    huge = Labelled(torch.full((1, 40, DIM), float("inf")), labels)
    trained = solve("lbfgs", shape, huge, validation, tried(1e-9))
    assert trained.chosen is None
    assert trained.failures[0] is not None
    assert solve("lbfgs", shape, separable, validation, tried(1e-3)).chosen == 0


def test_the_probe_that_is_best_by_the_tasks_own_metric_is_selected() -> None:
    """One of two probes always predicts class 0, which is best by accuracy only."""
    training = Labelled(torch.tensor([0.0] * 8 + [1.0] * 2)[None, :, None], torch.arange(10) // 8)
    features = torch.tensor([0.0] * 6 + [1.0] * 4)[:, None]
    validation = Labelled(features, torch.arange(10) // 9)
    tried = [Configuration(lr=0, l2=1e3), Configuration(lr=0, l2=1e-6)]
    shape = Shape("linear", 1, ClassTarget(2))
    by_accuracy = solve("ridge", shape, training, validation, tried)
    by_class = solve("ridge", shape, training, validation, tried, "mean_per_class_accuracy")
    assert by_accuracy.epochs[-1].validation.accuracy.tolist() == pytest.approx([90, 70])
    assert (by_accuracy.chosen, by_class.chosen) == (0, 1)

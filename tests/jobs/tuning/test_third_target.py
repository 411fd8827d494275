"""A third kind of target needs only its own class: heads, engine and probes stay unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from jobs.tasks.spec import Task
from jobs.tasks.target import TargetKind
from jobs.tuning.budget import Budget
from jobs.tuning.frozen.probes import solve
from jobs.tuning.frozen.stack import evaluate
from jobs.tuning.frozen.train import train
from jobs.tuning.heads import HeadKind, Shape, StackedHeads
from jobs.tuning.metrics import Judged, score
from jobs.tuning.rows import Labelled
from jobs.tuning.schema import Prediction
from jobs.tuning.target import Indices, Labels, Statistics, Target
from jobs.tuning.trained import Configuration

DIM = 6


@dataclass(frozen=True)
class YesOrNo(Target):
    """A binary target: one output, whose sign is the prediction; logistic loss."""

    kind = TargetKind("class", "answers", ("accuracy",), "int32", False, False)
    label_type = np.dtype(np.int64)
    term = "ce"
    dtype = torch.float32
    blank = {"target.share": 0.5}  # noqa: RUF012
    curves = ("accuracy",)
    row = Prediction
    classes = 0
    outputs = 1

    @classmethod
    def of(cls, classes: int) -> YesOrNo:
        return cls()

    def select(self, labels: Labels, index_of: Indices, task: Task) -> tuple[Indices, Labels]:
        return np.arange(len(labels)), labels

    def strata(self, targets: Labels) -> Indices:
        return targets.astype(np.int64)

    def check_training(
        self, targets: Labels, names: Sequence[str], task: Task, percent: float
    ) -> None:
        pass

    def check_part(self, targets: Labels, task: Task) -> None:
        pass

    def statistics(self, targets: Tensor) -> dict[str, float]:
        return {"target.share": float(targets.double().mean())}

    def encoded(self, targets: Tensor, statistics: Statistics) -> Tensor:
        return targets.float()

    def regressed(self, targets: Tensor, statistics: Statistics) -> Tensor:
        return 2 * targets.double()[:, None] - 1

    def losses(
        self, outputs: Tensor, encoded: Tensor, reduction: Literal["none", "mean"] = "none"
    ) -> Tensor:
        return functional.binary_cross_entropy_with_logits(
            outputs[:, 0], encoded, reduction=reduction
        )

    def decode(self, outputs: Tensor, statistics: Statistics) -> Tensor:
        return (outputs[:, 0] > 0).long()

    def judge(self, targets: Tensor, predicted: Tensor) -> Judged:
        return score(targets, predicted, 2)

    def mapping(self, task: Task, classes: Sequence[str], outputs: Sequence[str]) -> None:
        return None


def samples(rows: int, views: int, seed: int) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (rows,), generator=generator)
    shape = (views, rows, DIM) if views else (rows, DIM)
    centre = torch.linspace(-1, 1, DIM)
    noise = 0.5 * torch.randn(shape, generator=generator)
    return Labelled((2 * labels - 1)[:, None] * centre + noise, labels)


TRAINING, VALIDATION = samples(80, 2, 1), samples(60, 0, 2)


@pytest.mark.parametrize("kind", ["linear", "paper", "released"])
def test_the_engine_trains_a_target_that_it_does_not_know(kind: HeadKind) -> None:
    shape = Shape(kind, DIM, YesOrNo())
    tried = [Configuration(1e-4), Configuration(3e-2)]
    trained = train(shape, TRAINING, VALIDATION, tried, Budget(6, 16), seed=0)
    assert trained.chosen == 1
    heads = StackedHeads.single(shape, trained.state)
    share = TRAINING.labels.double().mean()
    assert heads.buffers["target.share"].item() == share != 0.5
    loss, predicted = evaluate(heads, VALIDATION, torch.device("cpu"))
    assert (predicted[0] == VALIDATION.labels).double().mean() > 0.95
    assert loss.item() == pytest.approx(trained.epochs[-1].validation_loss[1].item(), rel=1e-6)
    assert loss.item() < 0.3


def test_ridge_solves_for_a_target_that_it_does_not_know() -> None:
    shape = Shape("linear", DIM, YesOrNo())
    found = solve("ridge", shape, TRAINING, VALIDATION, [Configuration(0.0, l2=0.01)])
    assert found.epochs[-1].validation.of("accuracy").item() > 95

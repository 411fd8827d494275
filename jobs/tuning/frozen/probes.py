"""Linear probes that are solved to the optimum instead of trained by steps.

They have the same input and output (`Trained`) as the stacked engine, with linear heads, so that
selection, testing and files are the same. `l2` is searched on the validation part, with as many
configurations as for any other method. Every view of a training sample is a row.

    ridge   W, b minimise mean_i |W f_i + b - e(y_i)|^2 + l2 |W|^2. e(y) is the class's indicator
            or the standardised number (`Target.regressed`). One eigendecomposition of the D x D
            covariance serves all configurations.
    lbfgs   W, b minimise mean_i CE(W f_i + b, y_i) + l2/2 |W|^2 by L-BFGS, in float64, until no
            entry of the gradient exceeds 1e-5. A configuration that does not converge has failed.

They have no steps and no batch order. Their only epoch is the solved head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from jobs.tasks.target import Metric
from jobs.tuning.budget import OnProgress, ignore_progress
from jobs.tuning.frozen.stack import evaluate
from jobs.tuning.heads import Shape, StackedHeads
from jobs.tuning.rows import Labelled
from jobs.tuning.trained import Configuration, Epoch, Trained

Solution = tuple[Tensor, Tensor, list[str | None]]
"""Weights [K, C, D], biases [K, C], and for each configuration why it failed, or None."""

_CPU = torch.device("cpu")
_CONVERGED = 1e-5  # largest entry of the gradient
_ITERATIONS = 2000
_ENTRIES = 1 << 22  # of a piece's rows or targets: 32 MB in float64


def solve(
    kind: str,
    shape: Shape,
    training: Labelled,
    validation: Labelled,
    configurations: Sequence[Configuration],
    metric: Metric = "accuracy",
    on_progress: OnProgress = ignore_progress,
) -> Trained:
    """The optimal linear head for each configuration's `l2`; the best one by `metric` is selected.

    `kind` is `ridge` or `lbfgs`.

    Raises ValueError for `lbfgs` on numbers: logistic regression predicts classes.
    """
    unfit = shape.target.kind.unfit_heads.get(kind)
    if unfit is not None:
        raise ValueError(f"{unfit} needs classes; use ridge for a {shape.target.kind.name}")
    labels = _labels(training)
    penalties = [configuration.l2 for configuration in configurations]
    fresh = StackedHeads.fresh(shape, len(penalties), 0, _CPU, shape.target.statistics(labels))
    if kind == "lbfgs":
        solved = _lbfgs(_rows(training).double(), labels, shape.outputs, penalties, on_progress)
    else:
        solved = _ridge(_rows(training), labels, fresh, penalties)
    return judged(solved, fresh, training, validation, metric)


def judged(
    solved: Solution, fresh: StackedHeads, training: Labelled, validation: Labelled, metric: Metric
) -> Trained:
    """Solved heads as the result of one epoch; the best one by `metric` is selected.

    `fresh`: untrained heads of the same shape. A solution that is not finite has failed.
    """
    shape = fresh.shape
    weight, bias, failures = solved
    broken = ~(weight.isfinite().all(-1).all(-1) & bias.isfinite().all(-1))
    for index in broken.nonzero().flatten().tolist():
        failures[index] = "the solution is not finite"
    found = {"classifier.weight": weight.float(), "classifier.bias": bias.float()}
    return of_heads(
        StackedHeads(shape, found, fresh.buffers), failures, training, validation, metric
    )


def of_heads(
    heads: StackedHeads,
    failures: Sequence[str | None],
    training: Labelled,
    validation: Labelled,
    metric: Metric,
) -> Trained:
    """Heads that were solved by whatever means, as the result of one epoch."""
    shape = heads.shape
    fitted, _ = evaluate(heads, Labelled(_rows(training), _labels(training)), _CPU)
    loss, predicted = evaluate(heads, validation, _CPU)
    scores = shape.target.judge(validation.labels, predicted)
    epoch = Epoch({"loss": fitted, shape.target.term: fitted}, loss, scores, metric)
    running = [k for k, failure in enumerate(failures) if failure is None]
    chosen = min(running, key=epoch.key, default=None)
    state: Mapping[str, Tensor] = {} if chosen is None else heads.member(chosen)
    many = len(failures)
    return Trained((epoch,), tuple(failures), (None,) * many, (1,) * many, chosen, state)


def _rows(training: Labelled) -> Tensor:
    """Every view of every sample as a row, [R, D]."""
    features = training.features
    assert isinstance(features, Tensor), "features in a file are of masks, which no probe takes"
    return features.flatten(0, 1)


def _labels(training: Labelled) -> Tensor:
    """The rows' labels, [R]."""
    return training.labels.repeat(training.features.shape[0])


def _ridge(
    rows: Tensor, labels: Tensor, heads: StackedHeads, penalties: Sequence[float]
) -> Solution:
    """Solve in float64, piece by piece; besides one piece, only D x D and D x C matrices."""
    dim, outputs, target = rows.shape[1], heads.shape.outputs, heads.shape.target
    statistics = {name: values[0] for name, values in heads.buffers.items()}
    piece = max(1, _ENTRIES // max(dim, outputs))

    def pieces() -> Iterator[tuple[Tensor, Tensor]]:
        for own, theirs in zip(torch.split(rows, piece), torch.split(labels, piece), strict=True):
            yield own.double(), target.regressed(theirs, statistics)

    mean = rows.new_zeros(dim, dtype=torch.float64)
    share = rows.new_zeros(outputs, dtype=torch.float64)
    for features, targets in pieces():
        mean += features.sum(0) / len(rows)
        share += targets.sum(0) / len(rows)
    covariance = rows.new_zeros(dim, dim, dtype=torch.float64)
    right = rows.new_zeros(dim, outputs, dtype=torch.float64)
    for features, targets in pieces():
        centred = features - mean
        covariance.addmm_(centred.mT, centred, alpha=1 / len(rows))
        right.addmm_(centred.mT, targets - share, alpha=1 / len(rows))
    values, vectors = torch.linalg.eigh(covariance)
    right = vectors.mT @ right  # [D, C]
    shrunk = values.clamp_min(0) + torch.tensor(penalties, dtype=torch.float64)[:, None]  # [K, D]
    weight = (vectors @ (right / shrunk[:, :, None])).mT.contiguous()
    return weight, share - weight @ mean, [None] * len(penalties)


def _lbfgs(
    rows: Tensor, labels: Tensor, classes: int, penalties: Sequence[float], on_progress: OnProgress
) -> Solution:
    found = []
    for number, penalty in enumerate(penalties, 1):
        found.append(_descend(rows, labels, classes, penalty))
        on_progress(number / len(penalties))
    failures = [
        f"L-BFGS stopped at a gradient of {slope:.1e} after at most {_ITERATIONS} iterations"
        if not slope <= _CONVERGED
        else None
        for _, _, slope in found
    ]
    return torch.stack([w for w, _, _ in found]), torch.stack([b for _, b, _ in found]), failures


def _descend(
    rows: Tensor, labels: Tensor, classes: int, penalty: float
) -> tuple[Tensor, Tensor, float]:
    """(weight, bias, largest entry of the gradient) of one logistic regression."""
    weight = rows.new_zeros(classes, rows.shape[1]).requires_grad_()
    bias = rows.new_zeros(classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_ITERATIONS,
        tolerance_grad=_CONVERGED,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        logits = torch.addmm(bias, rows, weight.mT)
        loss = functional.cross_entropy(logits, labels) + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    objective()
    slope = max(float(p.grad.abs().max()) for p in (weight, bias) if p.grad is not None)
    return weight.detach(), bias.detach(), slope

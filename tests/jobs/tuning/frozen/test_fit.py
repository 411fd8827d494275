"""Cells that are fitted together get the results of cells alone; a search keeps to its budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from jobs.contract import Outcome, StageError, Work
from jobs.tuning import schema
from jobs.tuning.budget import Budget
from jobs.tuning.draw import draw
from jobs.tuning.frozen import fit, optuna_search
from jobs.tuning.frozen.cell import adapt, adapt_siblings
from jobs.tuning.frozen.features import FeatureCache
from jobs.tuning.frozen.siblings import sibling_key
from jobs.tuning.frozen.train import train
from jobs.tuning.heads import Shape
from jobs.tuning.methods import Method
from jobs.tuning.search_space import Space
from jobs.tuning.spec import TuneStep
from jobs.tuning.target import ClassTarget
from jobs.tuning.trained import Configuration
from tests.jobs.tuning.blobs import NMTUNE, step
from tests.jobs.tuning.conftest import MakeWork, WriteFeatures
from tests.jobs.tuning.frozen.test_frozen_cell import read_cell
from tests.jobs.tuning.frozen.test_stack import CLASSES, DIM, blobs

MLP = Method(head="paper", space=Space.model_validate({"lr": {"loguniform": [1e-3, 1e-2]}}))


def tried(work: Work) -> tuple[Configuration, ...]:
    spec = fit.step_of(work)
    return draw(spec.method.space, spec.settings.configurations, spec.seed)


def siblings(make: MakeWork, features: Any, prefix: str) -> list[Work]:
    changes: list[dict[str, object]] = [
        {},
        {"method": MLP, "method_name": "mlp"},
        {"label_noise": 40.0},
        {"seed": 3},
        {"seed": 3, "method": MLP, "method_name": "mlp", "label_noise": 10.0},
    ]
    return [
        make(f"{prefix}-{number}", step(fraction=50.0, **change), features=features)
        for number, change in enumerate(changes)
    ]


def with_memory(spec: TuneStep, memory: int) -> TuneStep:
    settings = spec.settings.model_copy(update={"memory_mb": memory})
    return spec.model_copy(update={"settings": settings})


@pytest.mark.parametrize("memory", [1, 1024], ids=["apart", "joined"])
def test_siblings_are_the_cells_they_would_be_alone(
    memory: int, write_features: WriteFeatures, make_work: MakeWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = write_features()
    together = siblings(make_work, features, "together")
    alone = siblings(make_work, features, "alone")
    assert len({sibling_key(work) for work in together}) == 1
    stacks: list[int] = []
    original = fit.train_groups
    monkeypatch.setattr(
        fit, "train_groups", lambda *a, **k: stacks.append(len(a[1])) or original(*a, **k)
    )
    monkeypatch.setattr(fit, "bytes_of_member", lambda *_: (1 << 20) // 3)
    works = [
        Work(
            w.address,
            w.fingerprint,
            with_memory(fit.step_of(w), memory),
            w.inputs,
            w.output,
            w.scratch,
        )
        for w in together
    ]
    reported: list[float] = []
    answers = adapt_siblings(works, [tried(w) for w in works], FeatureCache(), reported.append)
    answered = [(work, answer, list(stacks), reported[-1]) for work, answer in answers]
    for number, (_, _, ended, share) in enumerate(answered, 1):
        assert ended == ([5] if memory > 1 else [1] * number), "answered when its stack has ended"
        assert share == pytest.approx(1 if memory > 1 else 1 / (6 - number)), "of those left"
    for (work, answer, _, _), own in zip(answered, alone, strict=True):
        assert isinstance(answer, Outcome)
        adapt(own, tried(own), FeatureCache())
        mine, theirs = read_cell(work.output), read_cell(own.output)
        assert mine.selected == theirs.selected
        assert mine.test_accuracy == theirs.test_accuracy
        assert mine.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-4)
        assert (mine.method, mine.label_noise, mine.tuning_seed) == (
            theirs.method,
            theirs.label_noise,
            theirs.tuning_seed,
        )


def test_a_sibling_that_cannot_be_fitted_leaves_the_others_alone(
    write_features: WriteFeatures, make_work: MakeWork
) -> None:
    features = write_features()
    works = siblings(make_work, features, "cell")[:2]
    broken = [Configuration(lr=1e38)] * 3
    answers = adapt_siblings(works, [broken, tried(works[1])], FeatureCache())
    found = {work.address: answer for work, answer in answers}
    failed, other = (found[work.address] for work in works)
    assert isinstance(failed, StageError)
    assert "all 3 configurations failed" in str(failed)
    assert isinstance(other, Outcome)


@pytest.mark.parametrize(
    "change",
    [
        {"fraction": 10.0},
        {"epochs": 4},
        {"search": "optuna"},
        {"method": Method(head="released", space=NMTUNE.space)},
    ],
    ids=str,
)
def test_cells_of_another_budget_or_shape_are_no_siblings(
    change: dict[str, object], write_features: WriteFeatures, make_work: MakeWork
) -> None:
    features = write_features()
    one, other = (make_work(n, step(**c), features=features) for n, c in (("a", {}), ("b", change)))
    assert sibling_key(one) != sibling_key(other)


def test_label_noise_reaches_the_training_labels_alone(
    write_features: WriteFeatures, make_work: MakeWork
) -> None:
    features = write_features()
    clean, noisy = (
        fit._Prepared(FeatureCache(), make_work(f"n{n}", step(label_noise=n), features=features))
        for n in (0.0, 30.0)
    )
    changed = (clean.labelled().labels != noisy.labelled().labels).sum().item()
    assert changed == round(0.3 * len(clean.training.keys))
    assert (clean.validation.labels == noisy.validation.labels).all()
    work = make_work("cell", step(label_noise=30.0), features=features)
    adapt(work, tried(work), FeatureCache())
    labels = work.output.read_table(schema.PREDICTIONS)["label"]
    assert pc.all(pc.equal(labels, np.arange(70) % 4)).as_py()
    assert read_cell(work.output).label_noise == 30


def test_optuna_spends_the_budget_and_the_best_of_all_batches_is_selected(
    write_features: WriteFeatures, make_work: MakeWork
) -> None:
    pytest.importorskip("optuna")
    features = write_features()
    rows = []
    for number in range(2):
        spec = step(search="optuna", configurations=7)
        work = make_work(f"cell-{number}", spec, features=features)
        adapt(work, None, FeatureCache())
        rows.append(schema.from_table(schema.Tried, work.output.read_table(schema.CONFIGURATIONS)))
    assert rows[0] == rows[1]
    assert len(rows[0]) == 7
    assert len({row.lr for row in rows[0]}) == 7
    (best,) = [row for row in rows[0] if row.selected]
    assert best.validation_accuracy == max(row.validation_accuracy or 0 for row in rows[0])
    assert read_cell(work.output).lr == best.lr


def test_optuna_records_a_regulariser_that_not_every_batch_weighs() -> None:
    shape, budget = Shape("paper", DIM, ClassTarget(CLASSES)), Budget(1, 16)
    training, validation = blobs(70, 2, 1), blobs(50, 0, 2)
    with_cov, without = Configuration(1e-3, cov=0.04), Configuration(1e-3)
    parts = [
        train(shape, training, validation, batch, budget, seed=0)
        for batch in ([without], [with_cov, without], [without])
    ]
    found = fit._concatenate(parts).epochs[-1].train["cov"]
    assert found.isnan().tolist() == [True, False, True, True]


def test_optuna_draws_inside_every_kind_of_domain_and_learns_from_the_scores() -> None:
    pytest.importorskip("optuna")
    space = Space.model_validate(
        {
            "lr": {"loguniform": [1e-3, 1]},
            "weight_decay": {"quniform": [0, 1, 0.25]},
            "mse": {"choice": [1, 2]},
            "cov": {"randint": [1, 3]},
            "svd": {"uniform": [0.5, 0.6]},
            "scale": 2,
        }
    )
    searcher = optuna_search.Optuna(space, 40, 0)
    batches = []
    while batch := searcher.ask():
        batches.append(batch)
        failures = ["broken" if index == 0 else None for index in range(len(batch))]
        searcher.tell([-abs(np.log10(c.lr) + 2) for c in batch], failures)
    assert [len(batch) for batch in batches] == [10] * 4
    every = [c for batch in batches for c in batch]
    assert {c.weight_decay for c in every} <= {0, 0.25, 0.5, 0.75, 1}
    assert {c.mse for c in every} <= {2, 4}
    assert {c.cov for c in every} <= {2, 4}
    assert all(1 <= c.svd <= 1.2 for c in every)
    distance = [np.mean([abs(np.log10(c.lr) + 2) for c in batch]) for batch in batches]
    assert distance[-1] < distance[0]


@pytest.mark.parametrize("head", ["ridge", "lbfgs"])
def test_a_probe_is_a_cell_like_any_other(
    head: str, write_features: WriteFeatures, make_work: MakeWork
) -> None:
    space = {"l2": {"loguniform": [1e-4, 10]}}
    method = Method.model_validate({"head": head, "space": space})
    work = make_work("cell", step(method=method, method_name=head), features=write_features())
    adapt(work, tried(work), FeatureCache())
    cell = read_cell(work.output)
    assert cell.head == head
    assert 1e-4 <= cell.l2 <= 10
    assert cell.lr == 0
    assert cell.test_accuracy > 50
    assert work.output.read_json(schema.HEAD_CARD)["kind"] == "linear"


def test_what_each_configuration_was_trained_for_is_recorded(
    write_features: WriteFeatures, make_work: MakeWork, tmp_path: Path
) -> None:
    spec = step(epochs=4, configurations=4, halving={"first": 1})
    work = make_work("cell", spec, features=write_features())
    outcome = adapt(work, tried(work), FeatureCache())
    rows = schema.from_table(schema.Tried, work.output.read_table(schema.CONFIGURATIONS))
    assert sorted(row.epochs for row in rows) == [1, 1, 2, 4]
    assert [row.dropped is None for row in rows] == [row.epochs == 4 for row in rows]
    assert outcome.counts["configurations_dropped"] == 3
    curves = schema.from_table(schema.Point, work.output.read_table(schema.CURVES))
    assert max(point.step for point in curves) == 4

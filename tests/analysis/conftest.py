"""A synthetic experiment: every score is a known function of its place, plus a seeded jitter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from analysis import schemas
from analysis.readout import Question, Readout

LEVELS = (0.0, 5.0, 10.0, 20.0, 30.0)
METHODS = ("lp", "mlp", "nmtune-paper", "nmtune-released")
ID = ("digits", "digits-parity", "digits-magnitude")
OOD = ("digits-rotated", "digits-blurred", "digits-inverted")
LIFT = {"lp": 0.0, "mlp": 0.8, "nmtune-paper": 1.1, "nmtune-released": 0.5}
Make = Callable[..., Readout]


def accuracy(domain: str, task_at: int, method: str, noise: float) -> float:
    """The true accuracy of a place, in percent."""
    base, slope = (96.0, 0.09) if domain == "id" else (78.0, 0.35)
    if method == "nmtune-paper" and domain == "ood":
        slope *= 1.4
    return base - 2 * task_at + LIFT.get(method, 0.3) - slope * noise


def _cells(question: Question, jitter: float) -> list[dict[str, Any]]:
    random = np.random.default_rng(7)
    rows: list[dict[str, Any]] = []
    for noise in question.levels:
        for seed in question.seeds:
            for domain in ("id", "ood"):
                for at, task in enumerate(question.tasks(domain)):
                    for method in question.methods:
                        for fraction in question.fractions:
                            for tuning_seed in question.tuning_seeds:
                                value = accuracy(domain, at, method, noise)
                                value -= 6 * math.log10(100 / fraction)
                                value += jitter * random.standard_normal()
                                rows.append(
                                    {
                                        "address": f"tune/c/symmetric/r/noise={noise:g}/seed={seed}"
                                        f"/{task}/{method}/fraction={fraction:g}"
                                        f"/seed={tuning_seed}",
                                        "noise_kind": "symmetric",
                                        "noise": noise,
                                        "pretrain_seed": seed,
                                        "task": task,
                                        "domain": domain,
                                        "trained_on": None if domain == "id" else "digits",
                                        "method": method,
                                        "fraction": fraction,
                                        "tuning_seed": tuning_seed,
                                        "test_accuracy": value,
                                        "test_macro_f1": value - 0.6,
                                        "test_metric": value,
                                        "metric": "accuracy",
                                        "validation_accuracy": value + 0.4,
                                        "n_train": 1077,
                                        "n_validation": 268,
                                        "n_test": 452,
                                        "configurations": 8,
                                        "configurations_failed": 0,
                                        "lr": 0.003,
                                        "weight_decay": 1e-4,
                                        "mse": 0.0,
                                        "cov": 0.0,
                                        "svd": 0.0,
                                    }
                                )
    return rows


def _encoder(question: Question, jitter: float) -> dict[str, list[dict[str, Any]]]:
    random = np.random.default_rng(11)
    spectra: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    images = [("id", "digits"), *(("ood", task) for task in question.ood_tasks)]
    for noise in question.levels:
        for seed in question.seeds:
            place = {"noise": noise, "seed": seed}
            address = f"pretrain/c/symmetric/r/noise={noise:g}/seed={seed}"
            flipped = 20 + noise if noise else None
            runs.append(
                {
                    "address": address,
                    **place,
                    "val_accuracy": 98 - 0.1 * noise + 0.3 * jitter * random.standard_normal(),
                    "train_loss_clean": 0.1,
                    "train_loss_flipped": 2.0 if noise else None,
                    "train_accuracy_clean": 99.0 - 0.2 * noise,
                    "train_accuracy_flipped": flipped,
                }
            )
            for epoch in range(1, 21):
                grown = 1 - math.exp(-epoch / 4)
                values = {"train_accuracy_clean": 99 * grown}
                if noise:
                    values["train_accuracy_flipped"] = (20 + noise) * grown**3
                curves += [
                    {
                        "address": address,
                        **place,
                        "metric": f"pretrain/{name}",
                        "step": epoch,
                        "value": value + jitter * random.standard_normal(),
                    }
                    for name, value in values.items()
                ]
            spectra += [
                {
                    "address": f"features/{address}/{name}",
                    "noise": noise,
                    "pretrain_seed": seed,
                    "images": name,
                    "domain": domain,
                    "part": "test",
                    "preprocessing": preprocessing,
                    "sve": 3.2 + 0.02 * noise + 0.01 * at + 0.03 * random.standard_normal(),
                    "lsvr": 1.1 + 0.01 * noise - 0.02 * at + 0.02 * random.standard_normal(),
                    "effective_rank": math.exp(3.2 + 0.02 * noise),
                    "singular_values": [3.0, 2.0, 1.0],
                }
                for at, (domain, name) in enumerate(images)
                for preprocessing in ("raw", "released", "centred")
            ]
    return {"spectra": spectra, "pretraining": runs, "pretraining_curves": curves}


def build(
    *,
    levels: tuple[float, ...] = LEVELS,
    seeds: tuple[int, ...] = (0, 1, 2),
    methods: tuple[str, ...] = METHODS,
    id_tasks: tuple[str, ...] = ID,
    ood_tasks: tuple[str, ...] = OOD,
    fractions: tuple[float, ...] = (10.0, 100.0),
    tuning_seeds: tuple[int, ...] = (0,),
    jitter: float = 0.5,
    drop: Callable[[dict[str, Any]], bool] = lambda row: False,
    title: str = "What does label noise in pre-training do to handwritten digits?",
    problems: tuple[tuple[str, str, str], ...] = (),
    controls: Mapping[str, str] | None = None,
) -> Readout:
    """A readout with the given shape; cells for which `drop` holds are missing."""
    question = Question(
        title=title,
        corpus="digits",
        noise_kind="symmetric",
        objective="supervised",
        recipe="resnet-small",
        encoder="resnet18",
        levels=levels,
        seeds=seeds,
        id_tasks=id_tasks,
        ood_tasks=ood_tasks,
        methods=methods,
        fractions=fractions,
        tuning_seeds=tuning_seeds,
        controls={m: "mlp" for m in methods if m.startswith("nmtune")}
        if controls is None
        else controls,
    )
    tables = {
        "cells": [row for row in _cells(question, jitter) if not drop(row)],
        **_encoder(question, jitter),
        "noise": [
            {
                "level": level,
                "eligible": 1077,
                "changed": round(10.77 * level),
                "realised_percent": 100 * round(10.77 * level) / 1077,
            }
            for level in levels
        ],
        "problems": [
            {"address": address, "status": status, "reason": reason}
            for address, status, reason in problems
        ],
    }
    arrow = {
        "cells": schemas.CELLS_SCHEMA,
        "spectra": schemas.SPECTRA_SCHEMA,
        "pretraining": schemas.PRETRAINING_SCHEMA,
        "pretraining_curves": schemas.CURVES_SCHEMA,
        "noise": schemas.NOISE_SCHEMA,
        "problems": schemas.PROBLEMS_SCHEMA,
    }
    return Readout(
        experiment="demo",
        question=question,
        provenance={
            "versions": {"numpy": "2.4.0", "torch": "2.15.0"},
            "commit": "0123456789abcdef",
            "argv": ["nml-orch", "sweep", "--noise", "0,5,10,20,30"],
            "started": "2030-01-01T00:00:00+00:00",
        },
        **{name: pa.Table.from_pylist(rows, schema=arrow[name]) for name, rows in tables.items()},
    )


@pytest.fixture(scope="session")
def make() -> Make:
    """Builds synthetic readouts; see `build`."""
    return build


@pytest.fixture(scope="session")
def truth() -> Callable[[str, int, str, float], float]:
    """The accuracy that a synthetic cell scatters about."""
    return accuracy

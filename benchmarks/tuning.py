"""Tuning: NMTune's step, a sweep against two simple baselines, and the control plane.

Run it with the project installed: `python benchmarks/tuning.py` (some minutes on two idle cores; on
a busy machine its ratios mean little). The sides of a ratio alternate, and the fastest of several
turns counts; all keep freed memory, as the engine's trials do. Ends with one line of JSON:

- nmtune_step_vs_mlp: an optimizer step of the engine with all three regularisers over one without,
  one member, at (rows, D, H) = (128, 512, 2048) and (128, 2048, 8192); the worse of the two.
  `nmtune_step_vs_mlp_in_a_cell`: at D = 512, 8 members on one thread, as a cell runs by default.
- published_step_vs_mlp: the same ratio of the published form (baseline A), the worse of the two.
- stacked_vs_one_by_one: configurations an hour of the engine over baseline A's: nmtune, 64
  configurations, D = 512, 10,000 samples, batch 128, 30 epochs. A is torch.nn, torch.optim.AdamW by
  default, torch.svd of the batch and a D x D covariance, one configuration after another. Both are
  timed over a part of an epoch and extrapolated, because every step costs the same.
  `halving_vs_one_by_one`: the engine with `halving: {first: 2, eta: 4}` (dropped configurations
  train fewer epochs, so the work is not the same), computed from the epochs that it then trains.
  `bf16_vs_one_by_one`: with `precision: bf16`.
- stacked_vs_tune_trials: the same over baseline B, which runs A's code in one Ray Tune trial for
  each configuration. The overhead of a trial is measured on a few; its epochs cost the same as A's.
- one_by_one_arithmetic_share: the share of A's time that its head's matrix products would take at
  the measured peak rate. Its inverse bounds every engine that does the same products in float32.
- matmul_ceiling_share: the engine's useful flops a second over those of a bare batched product of
  the same shapes.
- stacked_vs_one_by_one_small, stacked_vs_tune_trials_small: the same two at D = 96, where a step
  has little arithmetic and 64 members fit in one stack.
- extract_vs_forward: see `tuning_extract`; by wall time, the median of alternating rounds.
  `extract_vs_forward_cpu`: by processor time, the better figure on a busy machine.
- plan_s: planning 5 levels x 20 tasks x 5 methods x 5 fractions (2,500 cells and their inputs).
- per_cell_ms: wall time of the stage on Ray for each cell, on cells with little to compute.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import tuning_extract  # in the same folder
from torch import Tensor, nn
from torch.nn import functional

from jobs.contract import Hooks, Work
from jobs.storage.folder import Folder
from jobs.tuning.budget import Budget
from jobs.tuning.frozen.allocator import keep_freed_memory
from jobs.tuning.frozen.stack import Group, Stack, bytes_of_member
from jobs.tuning.frozen.train import MEMORY
from jobs.tuning.heads import Shape
from jobs.tuning.rows import Labelled
from jobs.tuning.spec import Halving, Precision, TuneStep
from jobs.tuning.target import ClassTarget
from jobs.tuning.trained import Configuration

ROWS = 128
STEP_SHAPES = (512, 2048)  # D; H = 4 D
SMALL_DIM = 96
SWEEP_DIM, SAMPLES, EPOCHS, CONFIGURATIONS, CLASSES = 512, 10_000, 30, 64, 10
WEIGHT = 0.01
CELLS = 200
TURNS = 5
TRIALS = 4
CELL_MEMBERS = 8


def features(samples: int, dim: int) -> Labelled:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (samples,), generator=generator)
    return Labelled(torch.randn(1, samples, dim, generator=generator), labels)


def fastest(sides: dict[str, Callable[[], float]], turns: int) -> dict[str, float]:
    """The least seconds of each side; the sides alternate."""
    found = {name: [side() for _ in range(1)] for name, side in sides.items()}  # warm-up
    for _ in range(turns):
        for name, side in sides.items():
            found[name].append(side())
    return {name: min(times[1:]) for name, times in found.items()}


# -- the engine ------------------------------------------------------------------------------------


def configurations(count: int, weight: float) -> list[Configuration]:
    rates = np.geomspace(1e-4, 1e-2, count)
    return [Configuration(float(rate), 1e-4, weight, weight, weight) for rate in rates]


def engine_epoch(
    dim: int,
    members: int,
    weight: float,
    steps: int,
    precision: Precision = "float32",
    device: str = "cpu",
) -> Callable[[], float]:
    """Seconds of an epoch of `steps` steps for all members, with a tiny validation part."""
    shape = Shape("paper", dim, ClassTarget(CLASSES))
    given = features(steps * ROWS, dim)
    given = Labelled(given.features.to(device), given.labels.to(device))
    validation = Labelled(given.features[0, :2], given.labels[:2])
    group = Group(given, configurations(members, weight), 0)
    budget = Budget(EPOCHS, ROWS)
    stack = Stack(shape, [group], validation, budget, device=device, precision=precision)

    def run() -> float:
        begun = time.perf_counter()
        stack.run_epoch()  # its losses are read, so it ends when the device has done all
        return time.perf_counter() - begun

    return run


# -- baseline A: one configuration after another ---------------------------------------------------


class Published:
    """A head, its losses and its optimizer, as in the published code."""

    def __init__(self, dim: int, weight: float, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.weight = weight
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.classifier = nn.Linear(dim, CLASSES)
        self.mlp.to(device)
        self.classifier.to(device)
        weights = [*self.mlp.parameters(), *self.classifier.parameters()]
        self.optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=1e-4)

    def step(self, rows: Tensor, labels: Tensor) -> None:
        z = self.mlp(rows)
        loss = functional.cross_entropy(self.classifier(z), labels)
        if self.weight:
            loss = loss + self.weight * self.regularisers(rows, z)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @staticmethod
    def regularisers(rows: Tensor, z: Tensor) -> Tensor:
        distance = functional.normalize(rows) - functional.normalize(z)
        centred = z - z.mean(0)
        covariance = centred.T @ centred / (len(z) - 1)
        off = covariance - torch.diag(torch.diag(covariance))
        _, sigma, _ = torch.svd(z)
        mse, cov = distance.square().sum(1).mean(), off.square().sum() / z.shape[1]
        return mse + cov - sigma[0] / sigma.sum()

    def epoch(self, given: Labelled, batches: int) -> None:
        order = torch.randperm(len(given.labels))
        for samples in order.split(ROWS)[:batches]:
            self.step(given.features[0, samples], given.labels[samples])


def published_epoch(
    dim: int, weight: float, steps: int, device: str = "cpu"
) -> Callable[[], float]:
    model, given = Published(dim, weight, device), features(steps * ROWS, dim)
    given = Labelled(given.features.to(device), given.labels.to(device))

    def run() -> float:
        begun = time.perf_counter()
        model.epoch(given, steps)
        finish(device)
        return time.perf_counter() - begun

    return run


def finish(device: str) -> None:
    """Wait until the device has done all."""
    if device != "cpu":
        torch.cuda.synchronize()


# -- what is measured ------------------------------------------------------------------------------


def step_ratios() -> dict[str, object]:
    ours, published, details = [], [], {}
    for dim in STEP_SHAPES:
        steps, turns = (10, 2 * TURNS) if dim == STEP_SHAPES[0] else (2, TURNS)
        sides = {
            "mlp": engine_epoch(dim, 1, 0.0, steps),
            "nmtune": engine_epoch(dim, 1, WEIGHT, steps),
            "published_mlp": published_epoch(dim, 0.0, steps),
            "published_nmtune": published_epoch(dim, WEIGHT, steps),
        }
        found = fastest(sides, turns)
        ours.append(found["nmtune"] / found["mlp"])
        published.append(found["published_nmtune"] / found["published_mlp"])
        details[dim] = {name: round(1e3 * s / steps, 2) for name, s in found.items()}
    print(f"milliseconds a step, by D: {details}", flush=True)
    return {
        "nmtune_step_vs_mlp": round(max(ours), 3),
        "published_step_vs_mlp": round(max(published), 3),
        "step_ratio_by_dim": dict(zip(STEP_SHAPES, (round(r, 3) for r in ours), strict=True)),
    }


def cell_step_ratio() -> dict[str, object]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sides = {
            "mlp": engine_epoch(SWEEP_DIM, CELL_MEMBERS, 0.0, 4),
            "nmtune": engine_epoch(SWEEP_DIM, CELL_MEMBERS, WEIGHT, 4),
        }
        found = fastest(sides, TURNS)
    finally:
        torch.set_num_threads(threads)
    milliseconds = {n: round(1e3 * s / 4 / CELL_MEMBERS, 2) for n, s in found.items()}
    print(f"milliseconds a step and configuration, one thread: {milliseconds}", flush=True)
    return {"nmtune_step_vs_mlp_in_a_cell": round(found["nmtune"] / found["mlp"], 3)}


def product_rate(members: int, dim: int = SWEEP_DIM, device: str = "cpu") -> float:
    """Flops a second of a bare batched product with the shapes of the head's larger layers."""
    hidden = 4 * dim
    weights = torch.randn(members, hidden, dim, device=device)
    rows = torch.randn(members, dim, ROWS, device=device)
    out = torch.empty(members, hidden, ROWS, device=device)

    def run() -> float:
        begun = time.perf_counter()
        torch.bmm(weights, rows, out=out)
        finish(device)
        return time.perf_counter() - begun

    return 2 * members * hidden * dim * ROWS / fastest({"bmm": run}, 4 * TURNS)["bmm"]


def sweep_ratios() -> dict[str, object]:
    steps = 4
    shape = Shape("paper", SWEEP_DIM, ClassTarget(CLASSES))
    at_once = max(1, MEMORY // bytes_of_member(shape, ROWS))
    turns = -(-CONFIGURATIONS // at_once)
    members = -(-CONFIGURATIONS // turns)
    smaller = [count for count in (1, 2, 4, 8) if count < members]
    found = fastest(
        {
            **{str(n): engine_epoch(SWEEP_DIM, n, WEIGHT, steps) for n in smaller},
            "engine": engine_epoch(SWEEP_DIM, members, WEIGHT, steps),
            "bf16": engine_epoch(SWEEP_DIM, members, WEIGHT, steps, "bf16"),
            "published": published_epoch(SWEEP_DIM, WEIGHT, 5 * steps),
        },
        TURNS,
    )
    epoch_steps = SAMPLES // ROWS + (SAMPLES % ROWS > 1)
    engine = found["engine"] / steps / members  # seconds a step and configuration
    bf16 = found["bf16"] / steps / members
    published = found["published"] / (5 * steps)
    by_size = {n: round(1e3 * found[str(n)] / steps / n, 2) for n in smaller}
    spent = Budget(EPOCHS, ROWS, Halving(first=2, eta=4)).epochs_of(CONFIGURATIONS)
    flops = 5 * 2 * ROWS * SWEEP_DIM * 4 * SWEEP_DIM  # two layers forward, three products back
    rate = product_rate(8)
    trial = trial_overhead()
    tune = published * epoch_steps * EPOCHS + trial
    print(
        f"milliseconds a step and configuration: engine {1e3 * engine:.2f} ({members} members, "
        f"{turns} turns; in turns of fewer: {by_size}), bf16 {1e3 * bf16:.2f}, "
        f"published {1e3 * published:.2f}; products at {rate / 1e9:.0f} Gflop/s; "
        f"a Tune trial costs {trial:.2f} s besides its epochs",
        flush=True,
    )
    return {
        "stacked_vs_one_by_one": round(published / engine, 2),
        "halving_vs_one_by_one": round(published * CONFIGURATIONS * EPOCHS / (engine * spent), 2),
        "bf16_vs_one_by_one": round(published / bf16, 2),
        "stacked_vs_tune_trials": round(tune / (engine * epoch_steps * EPOCHS), 2),
        "one_by_one_arithmetic_share": round(flops / rate / published, 3),
        "matmul_ceiling_share": round(flops / engine / rate, 3),
    }


def small_ratios() -> dict[str, object]:
    """The two ratios of a sweep for a small head, with all configurations in one stack."""
    steps = 4
    sides = {
        "engine": engine_epoch(SMALL_DIM, CONFIGURATIONS, WEIGHT, steps),
        "published": published_epoch(SMALL_DIM, WEIGHT, 5 * steps),
    }
    found = fastest(sides, TURNS)
    engine = found["engine"] / steps / CONFIGURATIONS
    published = found["published"] / (5 * steps)
    whole = (SAMPLES // ROWS + (SAMPLES % ROWS > 1)) * EPOCHS  # steps of a configuration
    trial = trial_overhead(SMALL_DIM)
    return {
        "stacked_vs_one_by_one_small": round(published / engine, 2),
        "stacked_vs_tune_trials_small": round((published * whole + trial) / (engine * whole), 2),
    }


def trial_overhead(dim: int = SWEEP_DIM) -> float:
    """Wall seconds that a trial of baseline B adds to its epochs, from a few one-step trials."""
    from ray import tune

    def trial(config: dict[str, float]) -> None:
        given = features(SAMPLES, dim)
        model = Published(dim, WEIGHT)
        model.epoch(given, 1)
        tune.report({"loss": 0.0})

    space = {"lr": tune.grid_search([1e-4 * (n + 1) for n in range(TRIALS)])}
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run_config = tune.RunConfig(storage_path=folder, verbose=0)
        tune.Tuner(trial, param_space=space, run_config=run_config).fit()
    return (time.perf_counter() - begun) / TRIALS


def plan_seconds(folder: Path) -> float:
    """Seconds to plan the full matrix from an experiment file."""
    from orchestrator.experiment import load
    from orchestrator.plan import build

    tasks = [f"task-{number:02d}" for number in range(20)]
    for name in tasks:
        lines = [
            f"name: {name}",
            f"title: {name}",
            "domain: id",
            "corpus:",
            f"  name: images-{name}",
        ]
        (folder / f"{name}.yaml").write_text("\n".join([*lines, "  reader: {kind: digits}", ""]))
    space = {"lr": {"loguniform": [1e-4, 1e-2]}}
    methods = {f"method-{number}": {"head": "paper", "space": space} for number in range(5)}
    begun = time.perf_counter()
    chosen = load.load(
        noise="0,5,10,20,30",
        overrides=[
            f"tasks={json.dumps(tasks)}",
            f"task_folders={json.dumps([str(folder)])}",
            "tuning.fractions=[10,25,50,75,100]",
            f"tuning.methods={json.dumps(methods)}",
        ],
    )
    planned = build.build(chosen)
    seconds = time.perf_counter() - begun
    assert len(planned.of_kind("tune")) == 5 * 20 * 5 * 5
    return seconds


def cell_milliseconds(folder: Path) -> float:
    """The stage on cells of one epoch, 40 rows and 8 dimensions; Ray is already up."""
    from jobs.tuning.job import run

    place = Folder.of(folder / "features")
    for part, rows in (("train", 40), ("validation", 20), ("test", 20)):
        vectors = np.random.default_rng(rows).normal(size=(rows, 8)).astype(np.float32)
        table = {
            "key": [f"{part}-{row:03d}" for row in range(rows)],
            "view": pa.array([0] * rows, pa.int16()),
            "label": pa.array(np.arange(rows) % 4, pa.int32()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 8),
        }
        place.write_table(f"features-{part}.parquet", pa.table(table))
    place.write_json("classes.json", ["a", "b", "c", "d"])
    corpus = {"name": "tiny", "reader": {"kind": "digits"}}
    works = []
    for number in range(CELLS):
        step = TuneStep.model_validate(
            {
                "task": {"name": "tiny", "title": "Tiny", "domain": "id", "corpus": corpus},
                "method_name": "lp",
                "method": {"head": "linear", "space": {"lr": 0.1}},
                "fraction": 100 - 0.1 * number,  # so that no two cells train as one stack
                "seed": 0,
                "settings": {"configurations": 1, "epochs": 1, "batch_size": 20},
            }
        )
        output, scratch = (Folder.of(folder / kind / str(number)) for kind in ("out", "scratch"))
        works.append(Work(f"c{number}", "0" * 64, step, {"features": place}, output, scratch))
    answers: list[object] = []
    hooks = Hooks(lambda _, answer: answers.append(answer), lambda *_: None, lambda: False)
    begun = time.perf_counter()
    run(works, hooks)
    seconds = time.perf_counter() - begun
    assert len(answers) == CELLS
    assert not any(isinstance(answer, BaseException) for answer in answers)
    return 1e3 * seconds / CELLS


def main() -> None:
    from orchestrator import cluster

    keep_freed_memory()
    result = step_ratios() | cell_step_ratio()
    with cluster.session(cpus=os.cpu_count()), tempfile.TemporaryDirectory() as folder:
        result |= sweep_ratios() | small_ratios()
        result["plan_s"] = round(plan_seconds(Path(folder)), 2)
        result["per_cell_ms"] = round(cell_milliseconds(Path(folder)), 1)
    extracted = tuning_extract.measure()
    result |= {k: v for k, v in extracted.items() if k.startswith("extract_vs_forward")}
    print(json.dumps(result))


if __name__ == "__main__":
    main()

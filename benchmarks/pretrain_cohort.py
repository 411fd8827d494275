"""Five levels side by side against five runs, one after another, in one process.

Both sides train the same steps on the same corpus and alternate; a figure is the median over
repeats of images a processor-second side by side over images a processor-second alone, children
(which decode) included. Start-up counts on both sides.

- five_levels_vs_five_runs_input: JPEGs of 500 x 375, streamed, random crops of 224, and a model
  whose step costs about a fifth of decoding and cropping (`step_share`, as measured here).
- five_levels_vs_five_runs_model: a ResNet-18 of half the width on 32 x 32 images in memory, where
  the step is nearly all.
- `_wall`: the same by wall time, which on a shared machine also measures other processes.

Run by `pretrain.py`, or alone: `python benchmarks/pretrain_cohort.py`.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from spent import Spent

from jobs.contract import Work
from jobs.images.spec import Augment, ImageInput
from jobs.pretrain.distributed import DistributedGroup
from jobs.pretrain.loop import Loop, Pace
from jobs.pretrain.prepare import Run
from jobs.pretrain.run import train_run, train_runs
from jobs.pretrain.spec import Resources
from synthetic_corpus import jpegs, work, write_corpus

LEVELS = 5
REPEATS = 3
PACE = Pace(minutes=60, time_share=0)

# A vision transformer with few tokens: its step costs about a fifth of decoding an image.
TINY = {"patch_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 1}


def raise_errors(_: Work, result: Any) -> None:
    if isinstance(result, Exception):
        raise result


def alone(works: Sequence[Work], group: DistributedGroup | None = None) -> Spent:
    begun = Spent.now()
    for each in works:
        train_run(each, group, pace=PACE)
    return Spent.now().since(begun)


def together(works: Sequence[Work], group: DistributedGroup | None = None) -> Spent:
    begun = Spent.now()
    train_runs([Run(each) for each in works], raise_errors, group, pace=PACE)
    return Spent.now().since(begun)


def compare(
    root: Path,
    name: str,
    model: str,
    fields: dict[str, Any],
    resources: Resources | None = None,
    group: DistributedGroup | None = None,
    repeats: int = REPEATS,
) -> dict[str, float]:
    """Images a processor-second side by side over alone: both train the same images."""
    ratios: dict[str, list[float]] = {"": [], "_wall": []}
    resources = resources or Resources(cpus_per_worker=1)
    for turn in range(repeats):
        sides = []
        for side in (alone, together):
            names = [f"{name}-{turn}-{side.__name__}-{n}" for n in range(LEVELS)]
            works = [work(root, each, model, fields, resources) for each in names]
            sides.append(side(works, group))
        ratios[""].append(sides[0].cpu / sides[1].cpu)
        ratios["_wall"].append(sides[0].wall / sides[1].wall)
        print(f"  {name}: five runs {sides[0]}, five levels {sides[1]}", flush=True)
    key = f"five_levels_vs_five_runs_{name}"
    return {f"{key}{tail}": median(found) for tail, found in ratios.items()}


def step_share(root: Path, model: str, fields: dict[str, Any]) -> float:
    """Processor time of the model's steps over that of the processes that decode, in a run."""
    steps = 0.0
    inner = Loop.update

    def timed(self: Loop, *args: Any) -> Any:
        nonlocal steps
        begun = time.thread_time()
        agreed = inner(self, *args)
        steps += time.thread_time() - begun
        return agreed

    Loop.update = timed  # type: ignore[method-assign]
    begun, own = Spent.now(), time.process_time()
    try:
        alone([work(root, "share", model, fields, Resources(cpus_per_worker=1))])
    finally:
        Loop.update = inner  # type: ignore[method-assign]
    return steps / (Spent.now().since(begun).cpu - (time.process_time() - own))


def five_levels_vs_five_runs(root: Path) -> dict[str, float]:
    """Both regimes, with one thread: the threads of the two sides would disturb each other."""
    torch.set_num_threads(1)
    batch, found = 64, {}
    write_corpus(root / "large", list(jpegs(8 * batch, 500, 375, 90)), 256)
    bound_by_input = {
        "model_options": TINY,
        "image": ImageInput(size=224),
        "augment": Augment(crop=(0.08, 1.0), crop_interpolation="bilinear", flip=True),
        "schedule": {"epochs": 2, "batch_size": batch, "lr": 1e-3},
    }
    model = "vit_tiny_patch16_224"
    found["step_share"] = step_share(root / "large", model, bound_by_input)
    found |= compare(root / "large", "input", model, bound_by_input)
    write_corpus(root / "small", list(jpegs(24 * batch, 32, 32, 90)), 2_000)
    bound_by_model = {
        "model_options": {"channels": [32, 64, 128, 256]},
        "image": ImageInput(size=32),
        "schedule": {"epochs": 1, "batch_size": batch, "lr": 1e-3},
    }
    found |= compare(root / "small", "model", "resnet18", bound_by_model)
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        result = five_levels_vs_five_runs(Path(name))
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))

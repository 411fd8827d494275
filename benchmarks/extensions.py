"""What the stack costs for a method of an extension: the two-layer head, written so and built in.

    python benchmarks/extensions.py

Four configurations, three epochs, one thread. Medians of five ratios of processor time.
"""

from __future__ import annotations

import statistics
import time

import torch

from jobs.extensions.files import find
from jobs.extensions.spec import Part
from jobs.tuning.budget import Budget
from jobs.tuning.frozen.train import train
from jobs.tuning.heads import Shape
from jobs.tuning.rows import Labelled
from jobs.tuning.target import ClassTarget
from jobs.tuning.trained import Configuration
from orchestrator import EXPERIMENTS

CLASSES, SAMPLES = 5, 300
TRIED = [Configuration(1e-3 * (k + 1), 1e-4) for k in range(4)]


def seconds(shape: Shape, training: Labelled, tried: list[Configuration]) -> float:
    validation = Labelled(training.features[0], training.labels)
    started = time.process_time()
    train(shape, training, validation, tried, Budget(3, 64), seed=0)
    return time.process_time() - started


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    part = Part(find([str(EXPERIMENTS / "rivals.py")])["rivals"], "Mlp")
    for dim in (64, 512):
        labels = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
        rows = torch.randn(2, SAMPLES, dim, generator=generator) + labels[:, None].float()
        training = Labelled(rows, labels)
        built_in = Shape("paper", dim, ClassTarget(CLASSES))
        own = Shape("extension", dim, ClassTarget(CLASSES), part=part)
        seconds(own, training, TRIED)
        found = [
            (
                seconds(built_in, training, TRIED),
                seconds(own, training, TRIED),
                sum(seconds(own, training, [one]) for one in TRIED),
            )
            for _ in range(5)
        ]
        slower = statistics.median(o / b for b, o, _ in found)
        gain = statistics.median(alone / o for _, o, alone in found)
        print(f"D = {dim}: own / built in {slower:.2f}, alone / stacked {gain:.2f}")


if __name__ == "__main__":
    main()

"""What each difference between the authors' code and ours changes, from stores of finished sweeps.

Run it with the project installed: `python benchmarks/released_differences.py PAIR ...`. A pair is
`STORE:METHOD=STORE:METHOD`, ours first. It prints a line for each pair and fraction of the rows:
test accuracy of both in percent, the mean difference (theirs minus ours) in points, and its 95 %
interval. Cells are paired by task, noise level, fraction and seeds. The unit is the pre-training
seed: differences are averaged within it, and Student's t gives the interval over seeds. The
commands for the figures of `docs/published.md` are there.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

from jobs.tuning.schema import CELL

Cells = dict[tuple[str, ...], float]
"""Test accuracy by (pre-training seed, fraction, noise level, task, tuning seed)."""


def cells(side: str) -> Cells:
    """The cells of STORE:METHOD or STORE:METHOD:LABEL_NOISE (default: 0, in percent)."""
    store, method, *level = side.split(":")
    found: Cells = {}
    for file in Path(store).glob(f"tune/**/{method}/**/{CELL}"):
        (row,) = pq.read_table(file).to_pylist()
        if row["method"] != method or row["label_noise"] != float(level[0] if level else 0):
            continue
        of = dict(part.split("=") for part in file.parts if part.startswith("noise="))
        run = next(part for part in file.parts if part.startswith("seed="))
        key = run, f"{row['fraction']:g}", of["noise"], row["task"], str(row["tuning_seed"])
        found[key] = row["test_accuracy"]
    return found


def compare(pair: str) -> list[str]:
    """The lines of one pair. Raises SystemExit where the two have no cell in common."""
    ours, theirs = map(cells, pair.split("="))
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        raise SystemExit(f"{pair}: no cell in common; run both sweeps, and correct the paths")
    lines = []
    for fraction in sorted({key[1] for key in shared}, key=float):
        by_seed: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for key in shared:
            if key[1] == fraction:
                by_seed[key[0]].append((ours[key], theirs[key]))
        means = np.array([np.mean(values, axis=0) for values in by_seed.values()])
        gaps, seeds = means[:, 1] - means[:, 0], len(means)
        error = gaps.std(ddof=1) / np.sqrt(seeds) if seeds > 1 else np.nan
        half = stats.t.ppf(0.975, max(1, seeds - 1)) * error
        lines.append(
            f"{pair.split('=')[1].split(':', 1)[1]:24} fraction {fraction:>3} %  "
            f"ours {means[:, 0].mean():6.2f}  theirs {means[:, 1].mean():6.2f}  "
            f"difference {gaps.mean():+.2f} +- {half:.2f} ({seeds} seeds, "
            f"{sum(map(len, by_seed.values()))} pairs)"
        )
    return lines


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(*compare(argument), sep="\n")

"""The spread over replicates, tuning seeds and test samples, of scores with known components."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from analysis import schemas
from analysis.readout import Readout
from analysis.report import tables
from analysis.variance import components

Make = Callable[..., Readout]
REPLICATE, TUNING = 0.8, 0.5


def drawn(make: Make, seeds: int, tuning_seeds: tuple[int, ...]) -> Readout:
    """Scores with a part for each replicate, twice as large at noisy levels, and one for tuning."""
    readout = make(
        levels=(0.0, 10.0),
        seeds=tuple(range(seeds)),
        tuning_seeds=tuning_seeds,
        methods=("lp",),
        id_tasks=("digits",),
        ood_tasks=(),
        fractions=(100.0,),
    )
    random = np.random.default_rng(5)
    parts: dict[Any, float] = {}

    def part(*key: Any) -> float:
        return parts.setdefault(key, float(random.standard_normal()))

    rows = readout.cells.to_pylist()
    for row in rows:
        level, seed = row["noise"], row["pretrain_seed"]
        own = REPLICATE * (2 if level else 1) * part(level, seed)
        row["test_metric"] = 90 + own + TUNING * part(level, seed, row["tuning_seed"])
    return replace(readout, cells=pa.Table.from_pylist(rows, schema=schemas.CELLS_SCHEMA))


def test_the_components_are_found_again(make: Make) -> None:
    clean, noisy = components(drawn(make, 400, (0, 1, 2)))
    assert (clean.noisy, noisy.noisy, clean.replicates) == (False, True, 400)
    assert clean.replicate == pytest.approx(REPLICATE, rel=0.1)
    assert noisy.replicate == pytest.approx(2 * REPLICATE, rel=0.1)
    assert clean.tuning == pytest.approx(TUNING, rel=0.1)
    assert noisy.tuning == pytest.approx(TUNING, rel=0.1)


def test_a_part_that_the_design_does_not_show_is_not_estimated(make: Make) -> None:
    clean, _ = components(drawn(make, 3, (0,)))
    assert clean.replicate is not None
    assert clean.tuning is None
    assert clean.sample is None
    clean, _ = components(drawn(make, 1, (0, 1)))
    assert clean.replicate is None
    assert clean.tuning is not None


def test_the_part_of_the_test_samples_is_that_of_a_share(make: Make) -> None:
    readout = drawn(make, 2, (0,))
    right, n = 0.9, 1000
    rows = [
        {
            **{name: row[name] for name in ("noise", "pretrain_seed", "task", "method")},
            "tuning_seed": 0,
            "samples": "digits",
            "correct": (np.arange(n) < right * n).tolist(),
        }
        for row in readout.cells.to_pylist()
    ]
    table = pa.Table.from_pylist(rows, schema=schemas.PREDICTIONS_SCHEMA)
    clean, _ = components(replace(readout, predictions=table))
    assert clean.sample == pytest.approx(100 * math.sqrt(right * (1 - right) / n), rel=0.01)


def test_the_report_has_them_in_a_table(make: Make) -> None:
    page = str(tables.variance(drawn(make, 3, (0, 1))))
    assert "Replicate" in page
    assert "tuning seed" in page.lower()
    assert not tables.variance(make(levels=()))

"""The tidy summary of a readout: every averaged metric by noise level.

Takes a `Readout`, gives a table of SUMMARY_SCHEMA.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from analysis import wording
from analysis.averages import Average
from analysis.readout import Readout
from analysis.schemas import DOMAINS, OWN, PREPROCESSING, SUMMARY_SCHEMA, VALIDATION


def summary(readout: Readout) -> pa.Table:
    """Every averaged metric by noise level, as SUMMARY_SCHEMA; figures and tracking show the same.

    Metrics: `<domain>/<method>/<metric>` (test part, largest fraction) by the tasks' own metric
    first, or `/score` where the tasks have several, then `/accuracy` and `/macro_f1` beside it;
    `features/<domain>/sve` and `features/<domain>/lsvr` (test parts, preprocessing `released`),
    `pretrain/<measure>` for each of VALIDATION, `noise/realised_percent`.
    """
    rows: list[dict[str, Any]] = []
    for domain in readout.domains():
        own = readout.metrics(domain)
        several = len(set(own.values())) > 1
        first = "score" if several else next(iter(own.values()))
        beside = {"accuracy": "test_accuracy", "macro_f1": "test_macro_f1"}
        measures = {first: OWN} | {name: of for name, of in beside.items() if name != first}
        for method in readout.methods():
            for name, column in measures.items():
                found = readout.scores(domain, method, column)
                words = wording.score(own) if name == "score" else None
                rows += _rows(f"{domain}/{method}/{name}", found, metrics=words)
    for domain in DOMAINS:
        dtype = readout.features_dtype(domain=domain) or None
        for measure in ("sve", "lsvr"):
            found = readout.feature_space(measure, domain=domain)
            rows += _rows(f"features/{domain}/{measure}", found, PREPROCESSING, dtype)
    for measure in VALIDATION:
        rows += _rows(f"pretrain/{measure}", readout.pretraining_average(measure))
    realised: dict[float, list[float]] = {}
    for row in readout.noise.to_pylist():
        realised.setdefault(row["level"], []).append(row["realised_percent"])
    rows += [
        {
            "metric": "noise/realised_percent",
            "noise": level,
            "mean": math.fsum(draws) / len(draws),
            "seeds": 0,
            "members": [readout.question.corpus],
            "left_out": [],
        }
        for level, draws in sorted(realised.items())
    ]
    return pa.Table.from_pylist(rows, schema=SUMMARY_SCHEMA)


def _rows(
    metric: str,
    found: Average,
    preprocessing: str | None = None,
    dtype: str | None = None,
    metrics: str | None = None,
) -> Iterator[dict[str, Any]]:
    for noise in sorted(found.levels):
        interval = found.interval(noise)
        if interval is not None:
            yield {
                "metric": metric,
                "noise": noise,
                "mean": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "seeds": interval.n,
                "members": list(found.members),
                "left_out": list(found.left_out),
                "preprocessing": preprocessing,
                "dtype": dtype,
                "metrics": metrics,
            }

"""Promises of the answer: one sentence, what noise did, against what, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from analysis import pretrained
from analysis.readout import Readout
from analysis.report.answer import answer, failures
from analysis.report.pretrained import by_domain
from analysis.report.text import markdown
from analysis.schemas import PRETRAINED_CELLS_SCHEMA

Make = Callable[..., Readout]


def encoders(readout: Readout, scores: dict[str, float]) -> Readout:
    """An experiment on pretrained encoders alone; `scores` are those of encoders in domain."""
    rows: list[dict[str, Any]] = []
    for row in readout.cells.to_pylist():
        if row["noise"] or row["pretrain_seed"]:
            continue
        for name, score in scores.items():
            value = score - 20 * (row["domain"] == "ood") + (row["method"] == "mlp")
            rows.append({**row, "encoder": name, "test_accuracy": value, "test_metric": value})
    none = replace(readout.question, levels=(), seeds=(), encoders=tuple(scores), cells=frozenset())
    cells = [{k: v for k, v in row.items() if k in PRETRAINED_CELLS_SCHEMA.names} for row in rows]
    return Readout(
        "mine",
        none,
        readout.cells.slice(0, 0),
        pretrained_cells=pa.Table.from_pylist(cells, schema=PRETRAINED_CELLS_SCHEMA),
    )


def test_a_sure_change_has_its_size_and_interval(make: Make) -> None:
    found = answer(make(jitter=0.1))
    change = make(jitter=0.1).scores("id", "lp").change(30.0)
    assert change is not None
    assert change.interval.low is not None
    assert found.startswith(
        f"Against clean pre-training, 30 % symmetric noise lowers in-domain accuracy by "
        f"{-change.interval.mean:.1f} points ["
    )
    assert " and out-of-domain accuracy by 10." in found
    assert found.endswith("(LP, mean over tasks and 3 replicates, with 95 % intervals).")


def test_what_may_be_none_is_said_to_be_unsure(make: Make) -> None:
    found = answer(make(levels=(0.0, 1.0), jitter=3.0))
    assert "shows no sure change of in-domain accuracy" in found


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_few_replicates_have_no_interval_and_chance_may_explain_them(
    make: Make, seeds: tuple[int, ...]
) -> None:
    found = answer(make(seeds=seeds, jitter=0.0))
    assert "[" not in found
    assert "comes with in-domain accuracy 2.7 points lower" in found
    assert found.endswith("so chance may explain it).")


def test_half_a_sweep_is_answered_by_the_highest_level_with_replicates(make: Make) -> None:
    half = make(drop=lambda row: row["noise"] > 10 and row["pretrain_seed"] > 0)
    assert "10 % symmetric noise" in answer(half)
    assert "over tasks and 3 replicates" in answer(half)
    gone = make(drop=lambda row: row["noise"] > 10 and row["domain"] == "ood")
    assert "10 % symmetric noise" in answer(gone)


def test_without_a_comparison_there_is_no_answer(make: Make) -> None:
    assert "nothing to compare it with" in answer(make(levels=(0.0,)))
    assert "no change from clean" in answer(make(levels=(5.0, 10.0)))
    assert "no answer" in answer(make(drop=lambda row: True))
    apart = make(seeds=(0, 1), drop=lambda row: (row["noise"] == 0) == (row["pretrain_seed"] == 0))
    assert "No replicate is finished at 0 % and at another level" in answer(apart)


def test_encoders_alone_are_told_by_what_they_reach(make: Make) -> None:
    one = encoders(make(), {"big": 80.0})
    assert answer(one) == (
        "Used as published, big reaches a test accuracy of 80.0 to 81.0 % in domain (the most with "
        "MLP) and 60.0 to 61.0 % out of domain (the most with MLP)."
    )
    two = encoders(make(), {"big": 80.0, "small": 70.0})
    assert "2 encoders reach" in answer(two)
    assert "70.0 to 81.0 % in domain (the most with big and MLP)" in answer(two)
    table = by_domain(two)
    assert table is not None
    assert [row[0] for row in table.rows] == ["big", "big", "small", "small"]
    assert "not measured" not in markdown(two, [], []).lower()


def test_a_mean_of_encoders_is_over_the_tasks_that_all_have(make: Make) -> None:
    whole = encoders(make(), {"big": 80.0, "small": 70.0})
    lacking = [
        row
        for row in whole.pretrained_cells.to_pylist()
        if (row["encoder"], row["task"]) != ("small", "digits")
    ]
    cells = pa.Table.from_pylist(lacking, schema=PRETRAINED_CELLS_SCHEMA)
    means = pretrained.domain_means(replace(whole, pretrained_cells=cells))
    assert {one.tasks for one in means if one.domain == "id"} == {
        ("digits-magnitude", "digits-parity")
    }


def test_reasons_of_failures_are_told_once_each(make: Make) -> None:
    assert failures(make()) == ("", [])
    title, reasons = failures(make(problems=(("a", "failed", "x"), ("b", "failed", "x"))))
    assert (title, reasons) == ("2 steps failed.", [("a and 1 more", "x")])

"""Promises of the readout and its summary: checked tables, averages that name their members."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from analysis.readout import Readout
from analysis.report.findings import certainty, findings
from analysis.schemas import SUMMARY_SCHEMA
from analysis.summary import summary

Make = Callable[..., Readout]
Truth = Callable[[str, int, str, float], float]


def rows(readout: Readout, metric: str) -> list[dict[str, Any]]:
    return [row for row in summary(readout).to_pylist() if row["metric"] == metric]


def text(readout: Readout) -> str:
    return " ".join(one.text for one in findings(readout))


def test_the_summary_has_every_metric_that_tracking_draws(make: Make) -> None:
    table = summary(make())
    assert table.schema.equals(SUMMARY_SCHEMA)
    wanted = {
        f"{domain}/{method}/{measure}"
        for domain in ("id", "ood")
        for method in ("lp", "mlp", "nmtune-paper", "nmtune-released")
        for measure in ("accuracy", "macro_f1")
    }
    wanted |= {f"features/{d}/{m}" for d in ("id", "ood") for m in ("sve", "lsvr")}
    wanted |= {"pretrain/val_accuracy", "noise/realised_percent"}
    assert set(table["metric"].to_pylist()) == wanted
    assert table.num_rows == 5 * len(wanted)


def test_means_are_over_tasks_then_seeds_at_the_largest_fraction(make: Make, truth: Truth) -> None:
    for row in rows(make(jitter=0.0), "ood/mlp/accuracy"):
        tasks = [truth("ood", at, "mlp", row["noise"]) for at in range(3)]
        assert row["mean"] == pytest.approx(sum(tasks) / 3)
        assert (row["low"], row["high"]) == (None, None)  # equal values show no spread
        assert row["seeds"] == 3
        assert row["members"] == ["digits-blurred", "digits-inverted", "digits-rotated"]


def test_one_seed_has_no_interval(make: Make) -> None:
    readout = make(seeds=(0,), tuning_seeds=(0, 1))
    for metric in ("id/lp/accuracy", "features/id/sve", "pretrain/val_accuracy"):
        assert all(row["low"] is None and row["seeds"] == 1 for row in rows(readout, metric))
    assert "no verdict" in certainty(readout)
    assert "[" not in text(readout)


def test_a_missing_cell_leaves_its_task_out_at_every_level(make: Make) -> None:
    def gone(row: dict[str, Any]) -> bool:
        return (row["task"], row["noise"], row["method"]) == ("digits-parity", 10.0, "lp")

    readout = make(drop=gone)
    for row in rows(readout, "id/lp/accuracy"):
        assert row["members"] == ["digits", "digits-magnitude"]
        assert row["left_out"] == ["digits-parity"]
    assert all(len(row["members"]) == 3 for row in rows(readout, "id/mlp/accuracy"))
    done, asked = readout.finished()
    assert asked - done == 6  # three seeds, two fractions


def test_a_method_without_a_shared_task_has_no_average(make: Make) -> None:
    def gone(row: dict[str, Any]) -> bool:
        return row["method"] == "lp" and (row["noise"] == 0) == (row["task"] == "digits")

    assert rows(make(drop=gone), "id/lp/accuracy") == []


def test_features_speak_of_id_test_parts_in_the_released_preprocessing(make: Make) -> None:
    found = rows(make(), "features/id/sve")
    assert {row["preprocessing"] for row in found} == {"released"}
    assert {tuple(row["members"]) for row in found} == {("digits",)}
    accuracy = rows(make(), "id/lp/accuracy")
    assert {row["preprocessing"] for row in accuracy} == {None}


def test_realised_noise_is_a_count_without_interval(make: Make) -> None:
    found = rows(make(), "noise/realised_percent")
    assert [row["noise"] for row in found] == [0, 5, 10, 20, 30]
    assert all(row["seeds"] == 0 and row["low"] is None for row in found)
    assert found[1]["mean"] == pytest.approx(100 * 54 / 1077)


def test_a_table_of_another_shape_is_refused(make: Make) -> None:
    readout = make(levels=(0.0,), seeds=(0,))
    short = readout.cells.drop_columns(["test_macro_f1"])
    with pytest.raises(ValueError, match="cells table lacks test_macro_f1"):
        Readout("demo", readout.question, short)


def test_a_cell_given_twice_is_refused(make: Make) -> None:
    import pyarrow as pa

    readout = make(levels=(0.0,), seeds=(0,))
    twice = pa.concat_tables([readout.cells, readout.cells])
    with pytest.raises(ValueError, match="counts each member once"):
        summary(Readout("demo", readout.question, twice))


def test_importing_the_readout_is_light() -> None:
    program = (
        "import sys, analysis.summary, analysis.report.write; "
        "heavy = {'matplotlib', 'pandas', 'torch', 'ray', 'scipy'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

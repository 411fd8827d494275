"""Promises of the findings: losses as plain as wins, and what cannot be compared is stated."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from analysis.figures import space
from analysis.readout import Readout
from analysis.report.findings import certainty, findings, head_to_heads
from analysis.schemas import CELLS_SCHEMA

Make = Callable[..., Readout]
Truth = Callable[[str, int, str, float], float]


def text(readout: Readout) -> str:
    return " ".join(one.text for one in findings(readout))


def test_losses_are_stated_as_plainly_as_wins(make: Make, truth: Truth) -> None:
    readout = make(jitter=0.0)
    found = {(one.method, one.baseline, one.domain): one for one in head_to_heads(readout)}
    paper = found["nmtune-paper", "mlp", "ood"]
    gaps = [truth("ood", 0, "nmtune-paper", x) - truth("ood", 0, "mlp", x) for x in readout.levels]
    assert (paper.wins, paper.losses) == (sum(g > 0 for g in gaps), sum(g < 0 for g in gaps))
    assert paper.overall.interval.mean == pytest.approx(sum(gaps) / 5)
    assert "Beats MLP at 5 of 5 levels ID" in text(readout)
    assert "Loses to MLP at 4 of 5 levels OOD and wins at 1" in text(readout)
    assert "Loses to MLP at 5 of 5 levels ID" in text(readout)  # the released variant


def test_a_tuned_encoder_with_the_regularisers_is_compared_with_the_one_without(make: Make) -> None:
    readout = make(methods=("lp", "ft", "ft-nmtune", "lora-nmtune"))
    found = {(one.method, one.baseline) for one in head_to_heads(readout)}
    assert found == {("ft-nmtune", "ft")}
    (found,) = (one for one in findings(readout) if one.heading == "FT with NMTune's terms")
    assert "FT at" in found.text or "against FT" in found.text


def test_equal_methods_tie(make: Make) -> None:
    readout = make(jitter=0.0, methods=("lp", "mlp", "nmtune-new"), levels=(0.0,))
    cells = readout.cells.to_pylist()
    for row in cells:
        row["test_accuracy"] = row["test_metric"] = 90.0
    readout = Readout(
        "demo", readout.question, type(readout.cells).from_pylist(cells, CELLS_SCHEMA)
    )
    assert {(one.wins, one.ties, one.losses) for one in head_to_heads(readout)} == {(0, 1, 0)}
    assert "ties at 1" in text(readout)


def test_what_cannot_be_compared_is_stated(make: Make) -> None:
    assert "One noise level: nothing to compare it with" in text(make(levels=(10.0,)))
    assert "nothing at 0 %" in text(make(levels=(5.0, 10.0)))
    assert "nothing is finished" in certainty(make(drop=lambda row: True)).lower()
    assert "OOD" not in text(make(ood_tasks=()))


def test_a_correlation_is_told_only_of_four_encoders_or_more(make: Make) -> None:
    few = make(levels=(0.0, 30.0), seeds=(0,))
    assert "r = " not in text(few)
    assert "no correlation of fewer than 4, 2 encoders" in {
        one.get_text() for axes in space.against_scores(few).axes for one in axes.texts
    }
    assert text(make(levels=(0.0, 30.0), seeds=(0, 1))).count("over 4 encoders") == 2

"""Promises of the metric: every headline is of the metric that a task declares, and names it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from analysis import pretrained
from analysis.claims.claims import verdicts
from analysis.figures import draw
from analysis.readout import Readout
from analysis.report import text
from analysis.report.findings import head_to_heads
from analysis.report.page import html_page
from analysis.schemas import (
    CELLS_SCHEMA,
    LABEL_NOISE_CELLS_SCHEMA,
    PRETRAINED_CELLS_SCHEMA,
)
from analysis.summary import summary
from jobs.storage.folder import Folder
from orchestrator.cli import closing
from orchestrator.results.collect import Report

Make = Callable[..., Readout]
SCORES = {"lp": (69.5, 8.4), "mlp": (67.0, 12.0), "nmtune-paper": (66.4, 14.9)}
"""Accuracy and Matthews correlation of CoLA, as measured: the first by one is the last by the
other."""


@pytest.fixture
def cola(make: Make) -> Readout:
    """A sweep on one task that is judged by Matthews' correlation, with all kinds of cells."""
    readout = make(id_tasks=("glue-cola",), ood_tasks=(), methods=tuple(SCORES), jitter=0.0)
    rows = [_judged(row) for row in readout.cells.to_pylist()]
    clean = [row for row in rows if row["noise"] == 0 and row["pretrain_seed"] == 0]
    noisy = [{**row, "label_noise": 40.0} for row in rows]
    return replace(
        readout,
        question=replace(readout.question, encoders=("big",), label_noise=(0.0, 40.0)),
        cells=pa.Table.from_pylist(rows, schema=CELLS_SCHEMA),
        pretrained_cells=pa.Table.from_pylist(
            [{**row, "encoder": "big"} for row in clean], schema=PRETRAINED_CELLS_SCHEMA
        ),
        label_noise_cells=pa.Table.from_pylist(noisy, schema=LABEL_NOISE_CELLS_SCHEMA),
    )


def _judged(row: dict[str, Any]) -> dict[str, Any]:
    accuracy, matthews = SCORES[row["method"]]
    own = {"metric": "matthews", "test_metric": matthews, "validation_metric": matthews + 1}
    return {**row, **own, "test_accuracy": accuracy}


def report(readout: Readout) -> Report:
    of_pretrained = pretrained.summary(readout)
    return Report(Folder.of("x"), "f", summary(readout), of_pretrained, True, ())


def test_methods_are_ranked_by_it(cola: Readout) -> None:
    (found,) = (one for one in head_to_heads(cola) if one.baseline == "mlp")
    assert (found.method, found.wins, found.losses) == ("nmtune-paper", 5, 0)
    assert found.overall.interval.mean == pytest.approx(14.9 - 12.0)


def test_every_text_names_it_and_puts_it_first(cola: Readout) -> None:
    found = verdicts(cola)
    latex = text.latex(cola, found)["tables/scores-id.tex"]
    assert "test Matthews correlation" in latex
    assert "8.4" in latex
    assert "69.5" not in latex
    for page in (html_page(cola, (), found), text.markdown(cola, found, ())):
        plain = re.sub(r"<[^>]+>", " ", page)
        assert plain.index("est Matthews correlation") < plain.index("69.5")
        assert "by downstream label noise" in plain
    page = html_page(cola, (), found)
    first = page.index("test Matthews correlation in percent, mean over tasks")
    assert first < page.index("test accuracy in percent, mean over tasks")
    assert "mean difference in Matthews correlation" in page
    assert "validation is by the own metric" in page


def test_a_table_of_the_tasks_has_titles_and_metrics(cola: Readout) -> None:
    titled = replace(cola, question=replace(cola.question, titles={"glue-cola": "CoLA"}))
    row = "| glue-cola | CoLA | ID | Matthews correlation (× 100) |"
    assert row in text.markdown(titled, verdicts(titled), ())
    assert "<td>CoLA</td>" in html_page(titled)


def test_every_figure_is_of_it(cola: Readout) -> None:
    drawn = {one.name: one for one in draw.draw(cola)}
    assert drawn["scores"].title == "Matthews correlation against pre-training noise"
    for name in ("scores", "by-task", "by-fraction", "label-noise"):
        axes = drawn[name].figure.axes[0]
        assert "Matthews correlation (× 100)" in axes.get_ylabel(), name
        (lp,) = (line for line in axes.lines if line.get_label() == "LP")
        assert set(lp.get_ydata()) == {8.4}, name
    assert drawn["space-scores"].title == "The feature space against Matthews correlation"


def test_the_terminal_and_mlflow_show_it_under_its_name(cola: Readout, tmp_path: Path) -> None:
    made = report(cola)
    lines = list(closing.lines(made, 80))
    at = next(n for n, line in enumerate(lines) if line.startswith("ID  matthews"))
    (own,) = (line for line in lines[at:] if line.startswith("lp "))
    assert own.split()[1:] == ["8.4"] * 5
    assert next(n for n in made.summary["metric"].to_pylist() if "/lp/" in n) == "id/lp/matthews"
    words = " ".join(lines)
    assert "matthews" in words
    points = {name: value for name, level, value in made.record(tmp_path).points if level == 0}
    assert points["id/lp/matthews"] == 8.4
    assert points["id/lp/accuracy"] == 69.5
    assert points["encoders/big/glue-cola/lp/matthews/fraction_100"] == 8.4
    assert "encoders/big/glue-cola/lp/accuracy/fraction_100" not in points


def test_a_score_over_several_metrics_says_which(cola: Readout, make: Make, tmp_path: Path) -> None:
    other = make(id_tasks=("digits",), ood_tasks=(), methods=tuple(SCORES)).cells
    both = replace(cola, cells=pa.concat_tables([cola.cells, other]))
    made = report(both)
    said = "id score (accuracy; Matthews correlation: glue-cola)"
    assert f"ID{said[2:]}" in list(closing.lines(made, 80))
    assert made.record(tmp_path).score == said
    assert "id/lp/score" in made.summary["metric"].to_pylist()


def test_no_text_of_the_report_speaks_of_images(cola: Readout, make: Make) -> None:
    """A task may be of texts. Captions and R@1 alone are of images, where there are any."""
    for readout in (cola, make()):
        found = verdicts(readout)
        texts = [html_page(readout, (), found), text.markdown(readout, found, ())]
        texts += [f"{one.title} {one.caption}" for one in draw.draw(readout)]
        for one in texts:
            assert not re.search(r"\bimages?\b", re.sub(r"<style>.*?</style>", "", one, flags=re.S))

"""Pretrained encoders are shown, and are never mixed into what is averaged over noise levels."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from analysis import pretrained, wording
from analysis.figures import draw
from analysis.readout import Readout
from analysis.report import cells as cells_table
from analysis.report import downstream_noise, tables
from analysis.report import pretrained as pretrained_tables
from analysis.report import write as report
from analysis.report.html import Table
from analysis.report.page import html_page
from analysis.schemas import (
    LABEL_NOISE_CELLS_SCHEMA,
    PRETRAINED_CELLS_SCHEMA,
    PRETRAINED_SPECTRA_SCHEMA,
)
from analysis.summary import summary


def with_pretrained(readout: Readout) -> Readout:
    """The readout, with an encoder that got other tasks than another one."""
    rows: list[dict[str, Any]] = []
    for row in readout.cells.to_pylist():
        if row["noise"] == 0 and row["pretrain_seed"] == 0:
            place = {k: v for k, v in row.items() if k in PRETRAINED_CELLS_SCHEMA.names}
            rows.append({**place, "encoder": "big", "test_accuracy": 12.5, "test_metric": 12.5})
            if row["task"] == "digits":
                rows.append({**place, "encoder": "api", "test_accuracy": 25.0, "test_metric": 25.0})
    spectra = [
        {**row, "encoder": "big", "sve": 1.25}
        for row in readout.spectra.to_pylist()
        if row["noise"] == 0 and row["pretrain_seed"] == 0
    ]
    return replace(
        readout,
        question=replace(readout.question, encoders=("big", "api")),
        pretrained_cells=pa.Table.from_pylist(rows, schema=PRETRAINED_CELLS_SCHEMA),
        pretrained_spectra=pa.Table.from_pylist(spectra, schema=PRETRAINED_SPECTRA_SCHEMA),
    )


def html_of(table: Table | None) -> str:
    return "" if table is None else str(table.html())


@pytest.fixture
def both(make: Any) -> Readout:
    return with_pretrained(make())


def test_they_change_no_average(make: Any, both: Readout) -> None:
    assert summary(both).equals(summary(make()))
    assert report.cells_csv(both) == report.cells_csv(make())


def test_each_has_a_row_for_every_task_and_fraction_of_its_own(both: Readout) -> None:
    rows = pretrained.summary(both).to_pylist()
    assert {row["task"] for row in rows if row["encoder"] == "api"} == {"digits"}
    assert {row["accuracy"] for row in rows if row["encoder"] == "big"} == {12.5}
    html = html_of(pretrained_tables.scores(both))
    assert html.count("<td>api</td>") == 2
    assert html.index(">100 %<") < html.index(">10 %<")
    tasks = {row["task"] for row in rows if row["encoder"] == "big"}
    assert html.count("<td>big</td>") == 2 * len(tasks) == 12
    assert html.count(">25.0<") == 2 * 4  # fractions, methods
    assert "–" not in html
    assert "1.25" in html_of(pretrained_tables.spaces(both))


def test_tuning_seeds_have_their_deviation_beneath(make: Any) -> None:
    both = with_pretrained(make(tuning_seeds=(0, 1, 2)))
    cells = both.pretrained_cells.to_pylist()
    for cell in cells:
        cell["test_accuracy"] = cell["test_metric"] = 50.0 + cell["tuning_seed"]
    spread = replace(
        both, pretrained_cells=pa.Table.from_pylist(cells, schema=PRETRAINED_CELLS_SCHEMA)
    )
    assert {row["deviation"] for row in pretrained.summary(spread).to_pylist()} == {1.0}
    assert "± 1.0" in html_of(pretrained_tables.scores(spread))
    alone = with_pretrained(make(tuning_seeds=(0,)))
    assert {row["deviation"] for row in pretrained.summary(alone).to_pylist()} == {None}
    assert "±" not in html_of(pretrained_tables.scores(alone))


def test_nothing_is_said_of_noise_where_nothing_was_pre_trained(both: Readout) -> None:
    question = replace(both.question, levels=(), seeds=())
    page = html_page(replace(both, question=question))
    assert "Nothing was pre-trained here" in page
    assert "supported here" not in page
    assert "matrix" not in [one.name for one in draw.draw(replace(both, question=question))]


def test_a_correlation_is_never_called_an_accuracy(make: Any, both: Readout) -> None:
    blank = dict.fromkeys(("test_accuracy", "test_macro_f1", "validation_accuracy"))
    own: dict[str, Any] = {"metric": "pearson_spearman", "test_metric": -3.25}
    one = both.pretrained_cells.to_pylist()[0]
    own |= {"encoder": "api", "task": "similar", "fraction": both.fraction}
    row = {**one, **blank, **own}
    question = replace(both.question, id_tasks=(*both.question.id_tasks, "similar"))
    cells = pa.Table.from_pylist(
        [*both.pretrained_cells.to_pylist(), row], schema=PRETRAINED_CELLS_SCHEMA
    )
    told = replace(both, question=question, pretrained_cells=cells)
    (found,) = (r for r in pretrained.summary(told).to_pylist() if r["task"] == "similar")
    assert (found["accuracy"], found["macro_f1"], found["score"]) == (None, None, -3.25)
    html = html_of(pretrained_tables.scores(told))
    assert "similar: Mean of Pearson and Spearman correlation (× 100)" in html
    assert "or the metric that the row names" in html
    assert "the metric that the row names" not in html_of(pretrained_tables.scores(both))
    assert summary(told).equals(summary(make()))


def test_every_cell_shows_its_own_metric_beside_an_accuracy_that_it_is_not(make: Any) -> None:
    plain = make()
    rows = plain.cells.to_pylist()
    rows[0] |= {"metric": "matthews", "test_metric": 41.75}
    cells = pa.Table.from_pylist(rows, schema=plain.cells.schema)
    html = cells_table.cells(replace(plain, cells=cells))
    assert html.count("41.75") >= 1
    assert html.count("Matthews correlation") == 1
    assert "Own metric" in html


def test_the_report_has_a_section_for_them_only_where_they_are(
    make: Any, both: Readout, tmp_path: Path
) -> None:
    report.write(make(), tmp_path / "without", drawn=False)  # no figure is of them
    report.write(both, tmp_path / "with", drawn=False)
    assert "Pretrained encoders" not in (tmp_path / "without/report.html").read_text()
    assert "Pretrained encoders" in (tmp_path / "with/report.html").read_text()
    assert not (tmp_path / "without/encoders.csv").exists()
    lines = (tmp_path / "with/encoders.csv").read_text().splitlines()
    assert len(lines) == 1 + both.pretrained_cells.num_rows


def test_the_texts_hold_what_the_page_holds(both: Readout, tmp_path: Path) -> None:
    """A sweep of pretrained encoders alone: its texts said "0 of 0 cells" and had no result."""
    question = replace(both.question, levels=(), seeds=(), label_noise=(0.0, 40.0))
    empty = both.cells.slice(0, 0)
    noisy = [
        {**row, "noise_kind": "", "label_noise": 40.0} for row in both.pretrained_cells.to_pylist()
    ]
    alone = Readout(
        "mine",
        question,
        empty,
        pretrained_cells=both.pretrained_cells,
        pretrained_spectra=both.pretrained_spectra,
        label_noise_cells=pa.Table.from_pylist(noisy, schema=LABEL_NOISE_CELLS_SCHEMA),
    )
    report.write(alone, tmp_path)
    page = re.sub(r"<[^>]+>", " ", (tmp_path / "report.html").read_text())
    markdown = (tmp_path / "report.md").read_text().replace("\\", "")
    latex = {path.name: path.read_text() for path in (tmp_path / "tables").iterdir()}
    cells = wording.count(both.pretrained_cells.num_rows, "cell")
    for text in (page, markdown):
        assert f"pretrained encoders: big and api ({cells} finished)" in text
        assert "0 of 0" not in text
        assert "supported" not in text
    made = [pretrained_tables.by_domain(alone), pretrained_tables.scores(alone)]
    made.append(pretrained_tables.spaces(alone))
    made.append(tables.tasks(alone))
    made += downstream_noise.scores(alone).values()
    assert len(made) == 4 + 2  # ID and OOD
    assert len(latex) == len(made)
    for table in made:
        assert table is not None
        assert table.caption in markdown
        for row in table.texts():
            assert f"| {' | '.join(row)} |" in markdown
    assert "big & digits & 100" in latex["encoders.tex"].replace("\\", "")
    assert latex["encoders.tex"].count("12.5") == 12 * 4  # tasks and fractions, methods
    of_label_noise = 2 * 2 * 4  # domains, levels, methods
    of_domains = 2 * 4 + 1  # and the sentence of the answer
    assert page.count(" 12.5 ") == 12 * 4 + of_label_noise + of_domains
    assert "1.25" in latex["encoders-space.tex"]
    assert "12.5" in (tmp_path / "verdicts.md").read_text()

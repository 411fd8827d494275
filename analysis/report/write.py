"""The report: one self-contained HTML page, the figures and the tables beside it.

Takes a `Readout`, writes into a local folder `report.html`, `report.md`, `verdicts.md` (the
verdicts in short), `claims.csv`, `table.csv` (cells), `summary.csv`, `encoders.csv` (cells of
named encoders, if there are any), `label-noise.csv` (cells of relabelled tasks), other tables as
CSV, `tables/*.tex` and `figures/*`. The page loads nothing from outside itself; equal readouts give
equal bytes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis import downstream_noise, pretrained, wording
from analysis.claims.claims import verdicts
from analysis.claims.verdicts import Verdict
from analysis.figures.draw import Drawing, draw
from analysis.figures.style import save
from analysis.readout import Readout
from analysis.report import downstream_noise as noise_tables
from analysis.report import html, svg, tables, text
from analysis.report import pretrained as pretrained_tables
from analysis.report import verdicts as verdict_text
from analysis.report.findings import certainty, findings
from analysis.schemas import (
    CELLS_SCHEMA,
    LABEL_NOISE_CELLS_SCHEMA,
    PRETRAINED_CELLS_SCHEMA,
    SUMMARY_SCHEMA,
)
from analysis.summary import summary


def write(readout: Readout, folder: Path) -> list[Path]:
    """Write the report's files into a folder (made if absent); the files, the page first.

    A figure is drawn once and kept as PNG and SVG under `figures/`. Raises OSError when the folder
    cannot be written.
    """
    pictures = folder / "figures"
    pictures.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    shown: list[tuple[Drawing, bytes]] = []
    for drawing in draw(readout):
        saved = {kind: save(drawing.figure, kind) for kind in ("png", "svg")}
        for kind, data in saved.items():
            path = pictures / f"{drawing.name}.{kind}"
            path.write_bytes(data)
            written.append(path)
        shown.append((drawing, saved["svg"]))
    drawn = [(one.name, one.title) for one, _ in shown]
    found = verdicts(readout)
    files = {
        "report.html": page(readout, _figures(shown), found),
        "report.md": text.markdown(readout, found, drawn),
        "verdicts.md": verdict_text.markdown(readout, found, certainty(readout)),
        "claims.csv": _csv(verdict_text.COLUMNS, list(verdict_text.rows(found))),
        "table.csv": cells_csv(readout),
        "summary.csv": summary_csv(readout),
        **_others(readout),
        **text.latex(readout, found),
    }
    if readout.pretrained_cells.num_rows:
        files["encoders.csv"] = _csv(PRETRAINED_CELLS_SCHEMA.names, pretrained.rows(readout))
    if readout.label_noise_cells.num_rows:
        files["label-noise.csv"] = _csv(
            LABEL_NOISE_CELLS_SCHEMA.names, downstream_noise.rows(readout)
        )
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8", newline="")
    return [*(folder / name for name in files), *written]


def _figures(shown: Sequence[tuple[Drawing, bytes]]) -> str:
    """The figures as they stand in the page, with their captions."""
    pictures = svg.elements((svg, one.title) for one, svg in shown)
    return "".join(
        html.figure(picture, one.title, one.caption, one.name)
        for picture, (one, _) in zip(pictures, shown, strict=True)
    )


def _others(readout: Readout) -> dict[str, str]:
    """The page's other tables as CSV; singular values are left to the store."""
    found = {
        "spectra.csv": readout.spectra.drop_columns(["singular_values"]),
        "rotation.csv": readout.rotation.drop_columns(["angles"]),
        "pretraining.csv": readout.pretraining,
        "noise.csv": readout.noise,
        "problems.csv": readout.problems,
    }
    return {
        name: _csv(table.column_names, sorted(table.to_pylist(), key=lambda row: _place(row)))
        for name, table in found.items()
        if table.num_rows
    }


def _place(row: dict[str, Any]) -> tuple[str, ...]:
    """Sorts rows by their columns as they stand, numbers as numbers."""
    return tuple(f"{v:030.9f}" if isinstance(v, (int, float)) else str(v) for v in row.values())


def page(readout: Readout, drawn: str, found: Sequence[Verdict] | None = None) -> str:
    """The HTML document, around figures that are already HTML; verdicts are sought if not given."""
    found = verdicts(readout) if found is None else found
    title = readout.question.title or f"Experiment {readout.experiment}"
    gaps = tables.problems(readout)
    note = "" if gaps else html.paragraph("Nothing failed, was blocked or skipped.")
    f1 = [tables.averages(readout, domain, "test_macro_f1") for domain in readout.domains()]
    claims = verdict_text.evidence(found) if readout.question.levels else ""
    sections = [
        html.section(
            "named",
            "Named encoders",
            pretrained_tables.accuracies(readout),
            pretrained_tables.spaces(readout),
        ),
        html.section("figures", "Figures", drawn),
        html.section("claims", "The published claims, and what speaks for them here", claims),
        html.section(
            "label-noise", "Noise in the tasks' own labels", noise_tables.accuracies(readout)
        ),
        html.section("f1", "Macro F1 by noise level", *f1),
        html.section("methods", "Methods head to head", tables.methods(readout)),
        html.section("members", "How each average is made", tables.members(readout)),
        html.section(
            "encoders",
            "Encoders and their feature space",
            tables.pretraining(readout),
            tables.spaces(readout),
        ),
        html.section("noise", "Noise: asked for and realised", tables.noise(readout)),
        html.section(
            "gaps", "What is missing, failed or was skipped", tables.matrix(readout), gaps, note
        ),
        html.section("cells", "Every cell", tables.cells(readout)),
        html.section("provenance", "Provenance", tables.provenance(readout)),
    ]
    rest = "".join(sections)
    return html.page(title, _first_screen(readout, title, rest, found) + rest)


def _first_screen(readout: Readout, title: str, rest: str, found: Sequence[Verdict]) -> str:
    """The question, how sure the answer is, the answer, its numbers, the way to the rest."""
    question = readout.question
    done, asked = tables.finished(readout)
    facts = [
        f"{question.objective} pre-training of {question.encoder} (recipe {question.recipe}) on "
        f"{question.corpus}",
        f"{question.noise_kind.replace('_', ' ')} noise at {wording.levels(question.levels)}",
        wording.count(len(question.seeds), "pre-training seed"),
        f"{done:,} of {wording.count(asked, 'cell')} finished",
    ]
    if len(question.fractions) > 1:
        facts.append(
            f"heads trained on {wording.rows_used(readout.fraction)} where nothing is said"
        )
    facts += [beside] if (beside := noise_tables.finished(readout)) else []
    if not question.levels:
        facts = []
    if question.encoders:
        facts.append(f"named encoders: {wording.listed(question.encoders, many=6)}")
    in_words = "".join(
        f"<dt>{html.text(one.heading)}</dt><dd>{html.text(one.text)}</dd>\n"
        for one in findings(readout)
    )
    unsure = "sure unsure" if len(readout.seeds()) < 2 or done < asked else "sure"
    sure = certainty(readout)
    if done < asked:
        sure += (
            f" Incomplete: {wording.count(asked - done, 'cell')} of {asked:,} "
            f"{'is' if asked - done == 1 else 'are'} not finished (listed below)."
        )
    return "".join(
        [
            html.paragraph(f"Noisy Model Learning · experiment {readout.experiment}", "kicker"),
            f"<h1>{html.text(title)}</h1>\n",
            html.paragraph(" · ".join(facts), "facts"),
            _contents(rest),
            html.paragraph(verdict_text.in_short(found), "answer") if question.levels else "",
            html.paragraph(sure, unsure),
            verdict_text.overview(found) if question.levels else "",
            f'<dl class="answers">\n{in_words}</dl>\n' if in_words else "",
            *(tables.averages(readout, domain) for domain in readout.domains()),
        ]
    )


def _contents(rest: str) -> str:
    """Links to the sections that are there."""
    places = {
        "named": "Named encoders",
        "figures": "Figures",
        "claims": "Claims",
        "label-noise": "Wrong downstream labels",
        "methods": "Head to head",
        "members": "How averages are made",
        "noise": "Noise",
        "gaps": "What is missing",
        "cells": "Every cell",
        "provenance": "Provenance",
    }
    links = "".join(
        f'<a href="#{at}">{html.text(name)}</a>'
        for at, name in places.items()
        if f'<section id="{at}">' in rest
    )
    return f'<nav aria-label="Contents">{links}</nav>\n'


def cells_csv(readout: Readout) -> str:
    """Every finished cell, one line each, columns of CELLS_SCHEMA."""
    return _csv(CELLS_SCHEMA.names, tables.cell_rows(readout))


def summary_csv(readout: Readout) -> str:
    """The summary, one line a metric and noise level, columns of SUMMARY_SCHEMA."""
    return _csv(SUMMARY_SCHEMA.names, summary(readout).to_pylist())


def _csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """Comma-separated, "\\n" at line ends, nothing for null; lists joined by semicolons."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = [row[column] for column in columns]
        writer.writerow([";".join(v) if isinstance(v, list) else v for v in values])
    return out.getvalue()

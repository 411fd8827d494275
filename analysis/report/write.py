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

from analysis import downstream_noise, pretrained
from analysis.claims.claims import verdicts
from analysis.figures.draw import Drawing, draw
from analysis.figures.style import save
from analysis.readout import Readout
from analysis.report import tables, text
from analysis.report import verdicts as verdict_text
from analysis.report.findings import certainty
from analysis.report.page import html_page
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
    figures: list[tuple[Drawing, bytes]] = []
    for drawing in draw(readout):
        saved = {kind: save(drawing.figure, kind) for kind in ("png", "svg")}
        for kind, data in saved.items():
            path = pictures / f"{drawing.name}.{kind}"
            path.write_bytes(data)
            written.append(path)
        figures.append((drawing, saved["svg"]))
    drawn = [(one.name, one.title) for one, _ in figures]
    found = verdicts(readout)
    files = {
        "report.html": html_page(readout, figures, found),
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

"""The files of a report.

Takes a `Readout`, writes into a local folder: `report.html`, `report.md`, `verdicts.md` (the
verdicts in short), `claims.csv`, `table.csv` (cells), `summary.csv`, `encoders.csv` (cells of
pretrained encoders, if there are any), `label-noise.csv` (cells with downstream label noise), other
tables as CSV, `tables/*.tex` and `figures/*`. Equal readouts give equal bytes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis import downstream_noise, pretrained
from analysis.claims.claims import verdicts
from analysis.figures import style
from analysis.figures.draw import Drawing, draw
from analysis.readout import Readout
from analysis.report import text
from analysis.report import verdicts as verdict_text
from analysis.report.page import Picture, html_page
from analysis.schemas import (
    CELLS_SCHEMA,
    LABEL_NOISE_CELLS_SCHEMA,
    PRETRAINED_CELLS_SCHEMA,
    SUMMARY_SCHEMA,
)
from analysis.summary import summary

KINDS = ("png", "svg")  # of files, for each figure


def write(readout: Readout, folder: Path, *, drawn: bool = True) -> list[Path]:
    """Write the report's files into a folder, which is made if absent.

    Each figure is kept as PNG and SVG under `figures/`, and drawn again for phones, on the page
    alone; without `drawn` there are none. Returns the paths of the files, the page first. Raises
    OSError when the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = _pictures(readout, folder) if drawn else []
    names = [(one.drawing.name, one.drawing.title) for one in figures]
    found = verdicts(readout)
    files = {
        "report.html": html_page(readout, figures, found),
        "report.md": text.markdown(readout, found, names),
        "verdicts.md": text.short(readout, found),
        "claims.csv": as_csv(verdict_text.COLUMNS, list(verdict_text.rows(found))),
        "table.csv": cells_csv(readout),
        "summary.csv": summary_csv(readout),
        **_others(readout),
        **text.latex(readout, found),
    }
    if readout.pretrained_cells.num_rows:
        files["encoders.csv"] = as_csv(PRETRAINED_CELLS_SCHEMA.names, pretrained.rows(readout))
    if readout.label_noise_cells.num_rows:
        files["label-noise.csv"] = as_csv(
            LABEL_NOISE_CELLS_SCHEMA.names, downstream_noise.rows(readout)
        )
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8", newline="")
    of_figures = [_file(one.drawing, kind) for one in figures for kind in KINDS]
    return [folder / name for name in (*files, *of_figures)]


def _pictures(readout: Readout, folder: Path) -> list[Picture]:
    """The figures, after their files have been written into the report's folder."""
    (folder / "figures").mkdir(exist_ok=True)
    with style.narrow():
        narrow = [style.save(one.figure, "svg") for one in draw(readout)]
    found = []
    for drawing, of_phone in zip(draw(readout), narrow, strict=True):
        saved = {kind: style.save(drawing.figure, kind) for kind in KINDS}
        for kind, data in saved.items():
            (folder / _file(drawing, kind)).write_bytes(data)
        found.append(Picture(drawing, saved["svg"], of_phone))
    return found


def _file(drawing: Drawing, kind: str) -> str:
    return f"figures/{drawing.name}.{kind}"


def _others(readout: Readout) -> dict[str, str]:
    """The other tables as CSV, without the columns that hold lists."""
    found = {
        "spectra.csv": readout.spectra.drop_columns(["singular_values"]),
        "rotation.csv": readout.rotation.drop_columns(["angles"]),
        "pretraining.csv": readout.pretraining,
        "noise.csv": readout.noise,
        "problems.csv": readout.problems,
        "overlaps.csv": readout.overlaps,
        "iou.csv": readout.class_iou,
    }
    return {
        name: as_csv(table.column_names, sorted(table.to_pylist(), key=lambda row: _sort_key(row)))
        for name, table in found.items()
        if table.num_rows
    }


def _sort_key(row: dict[str, Any]) -> tuple[str, ...]:
    """Sorts rows by their columns from left to right, numbers by value."""
    return tuple(f"{v:030.9f}" if isinstance(v, (int, float)) else str(v) for v in row.values())


def cells_csv(readout: Readout) -> str:
    """Every finished cell, one line each, with the columns of CELLS_SCHEMA."""
    return as_csv(CELLS_SCHEMA.names, readout.sorted_cells())


def summary_csv(readout: Readout) -> str:
    """The summary, one line for each metric and noise level, with the columns of SUMMARY_SCHEMA."""
    return as_csv(SUMMARY_SCHEMA.names, summary(readout).to_pylist())


def as_csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """Comma-separated lines; null is empty, and lists are joined by semicolons."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = [row[column] for column in columns]
        writer.writerow([";".join(v) if isinstance(v, list) else v for v in values])
    return out.getvalue()

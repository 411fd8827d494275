"""The table of every finished cell, with links to its folder and to its run in MLflow.

Takes a `Readout`, gives an HTML table that a reader can filter and sort.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from analysis import wording
from analysis.readout import Readout
from analysis.report.html import NOTHING, Cell, table
from analysis.report.values import count_cell, number_cell, percent_cell

MOST_CELLS = 1000  # rows of the cell table on the page; table.csv has all
FROM_REPORT = "../.."  # from the folder of a report to its store


def cells(readout: Readout) -> Markup:
    """Every finished cell, up to MOST_CELLS of them."""
    own = set(readout.metrics().values()) - {"accuracy"}
    rows: list[list[Cell | str]] = []
    for row in readout.sorted_cells()[:MOST_CELLS]:
        rows.append(
            [
                row["task"],
                row["domain"].upper(),
                wording.method(row["method"]),
                percent_cell(row["noise"]),
                count_cell(row["pretrain_seed"]),
                count_cell(row["tuning_seed"]),
                percent_cell(row["fraction"]),
                *([_own_metric(row)] if own else []),
                number_cell(row["test_accuracy"], 2),
                number_cell(row["test_macro_f1"], 2),
                number_cell(_validation(row), 2),
                _tried(row["configurations"], row["configurations_failed"]),
                Cell(_short(row["lr"]), key=row["lr"]),
                f"{_short(row['mse'])} / {_short(row['cov'])} / {_short(row['svd'])}",
                _links(row["address"], readout.run_pages.get(row["address"])),
            ]
        )
    if not rows:
        return NOTHING
    total = readout.cells.num_rows
    shown = f"; the first {MOST_CELLS:,} are shown" if total > MOST_CELLS else ""
    heads = ["Task", "Domain", "Method", "Noise", "Seed", "Tuning seed", "Rows used"]
    heads += ["Own metric"] if own else []
    heads += ["Accuracy", "Macro F1", "Validation", "Tried", "lr", "mse / cov / svd", "Open"]
    caption = (
        f"{total:,} finished cells{shown}; accuracies and F1 in percent, correlations times 100; "
        f"validation is by {'the own metric' if own else 'accuracy'}; all in table.csv. "
        f"A folder opens where the report lies in its store{_of_runs(readout)}"
    )
    return table(heads, rows, caption=caption, numbers=len(heads) - 3, filtered=True)


def _links(address: str, run_page: str | None) -> Cell:
    """To the cell's folder in the store, and to its run's page."""
    folder = ("folder", f"{FROM_REPORT}/{quote(address, safe='/=')}/")
    return Cell("", links=(folder, *([("MLflow", run_page)] if run_page else [])))


def _of_runs(readout: Readout) -> str:
    """Where the runs of the cells are in MLflow."""
    if readout.run_pages:
        return ", MLflow where its server can be reached (unfold the sweep)"
    return "; in MLflow (nml-orch ui) its run is called tune noise=.../seed=.../method"


def _tried(count: int | None, failed: int | None) -> Cell:
    """How many configurations were tried; marked as a gap when some failed."""
    cell = count_cell(count)
    return Cell(cell.text, (f"{failed:,} failed",), cell.key, "gap") if failed else cell


def _own_metric(row: Mapping[str, Any]) -> Cell:
    """The task's own metric and its name."""
    value = row["test_metric"]
    if value is None:
        return Cell("–")
    return Cell(wording.number(value, 2), (wording.metric(row["metric"]),), value)


def _validation(row: Mapping[str, Any]) -> float | None:
    """The validation score that the cell was selected by; accuracy where no other is recorded."""
    own: float | None = row["validation_metric"]
    return row["validation_accuracy"] if own is None else own


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"

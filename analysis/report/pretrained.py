"""The report's tables of pretrained encoders: scores task by task, and their feature spaces.

Takes a `Readout`, gives tables for the page and for the texts; the numbers are
`analysis.pretrained`'s.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from analysis import wording
from analysis.pretrained import domain_means, main_score, metrics, summary
from analysis.readout import Readout
from analysis.report.html import Cell, Table


def by_domain(readout: Readout) -> Table | None:
    """What each encoder reaches in and out of domain, a column for each method; None if nothing."""
    found = domain_means(readout)
    if not found:
        return None
    methods = [m for m in readout.question.methods if m in {one.method for one in found}]
    values = {(one.encoder, one.domain, one.method): one for one in found}
    lines: list[list[Cell | str]] = []
    for encoder, domain in dict.fromkeys((one.encoder, one.domain) for one in found):
        tasks = next(one.tasks for one in found if one.domain == domain)
        cells = []
        for method in methods:
            of = values.get((encoder, domain, method))
            cells.append(Cell("–") if of is None else Cell(wording.number(of.score), key=of.score))
        where = Cell(wording.domain(domain), (wording.mean_of(tasks),))
        lines.append([encoder, where, *cells])
    return Table(
        ["Encoder", "Domain", *map(wording.method, methods)],
        lines,
        caption=f"Test {wording.score(metrics(readout))} in percent of encoders used as published, "
        f"mean over tasks, then tuning seeds; heads trained on "
        f"{wording.rows_used(readout.fraction)}",
        numbers=len(methods),
    )


def scores(readout: Readout) -> Table | None:
    """Test scores: one row for each encoder, task and fraction, one column for each method.

    A score is the task's own metric. A row names it where it is not accuracy. None without scores.
    """
    means = summary(readout).to_pylist()
    fractions = sorted({r["fraction"] for r in means}, reverse=True)
    question = readout.question
    known = (*question.id_tasks, *question.ood_tasks)
    methods = [m for m in question.methods if m in {r["method"] for r in means}]
    values = {(r["encoder"], r["task"], r["fraction"], r["method"]): r for r in means}
    named = {r["task"]: r["metric"] for r in means if r["metric"] not in (None, "accuracy")}
    encoders = list(dict.fromkeys(r["encoder"] for r in means))
    lines: list[list[Cell | str]] = []
    for encoder in encoders:
        found = {(r["task"], r["fraction"]) for r in means if r["encoder"] == encoder}
        for task, fraction in product(known, fractions):
            if (task, fraction) not in found:
                continue
            title = f"{task}: {wording.metric_with_unit(named[task])}" if task in named else task
            used = Cell(wording.percent(fraction), key=fraction)
            cells = [_of_seeds(values.get((encoder, task, fraction, m))) for m in methods]
            lines.append([encoder, title, used, *cells])
    if not lines:
        return None
    several = max(r["tuning_seeds"] for r in means) > 1
    return Table(
        ["Encoder", "Task", "Rows used", *map(wording.method, methods)],
        lines,
        caption="Pretrained encoders, not trained here: test accuracy in percent"
        + (" (or the metric that the row names)" if named else "")
        + (", mean over tuning seeds, below it their standard deviation" if several else "")
        + ", by the share of the training rows; they have no noise level and are in no average; "
        "encoders.csv has every cell" + _behind_apis(readout),
        numbers=1 + len(methods),
    )


def _behind_apis(readout: Readout) -> str:
    """What holds of encoders that nobody here can open."""
    apis = readout.question.apis
    if not apis:
        return ""
    words = (
        f". {wording.join(tuple(apis))}: behind an API, whose vectors are not deterministic; the "
        f"store's ledger (.embeddings) has the vectors that were used, and is the truth"
    )
    changed = [name for name, changes in apis.items() if changes]
    if changed:
        words += (
            f". {wording.join(changed)}: the model behind the name has changed while its vectors "
            f"were bought, and the change was accepted"
        )
    return words


def spaces(readout: Readout) -> Table | None:
    """SVE, LSVR and effective rank of each pretrained encoder and data set; None without them."""
    columns = ("sve", "lsvr", "effective_rank")
    lines: list[list[Cell | str]] = [
        [
            row["encoder"],
            row["images"],
            row["preprocessing"],
            row["dtype"] or "–",
            *(_cell(row[name], 2) for name in columns),
        ]
        for row in readout.pretrained_spectra.to_pylist()
        if row["part"] == "test"
    ]
    if not lines:
        return None
    return Table(
        ["Encoder", "Data set", "Preprocessing", "Type", "SVE", "LSVR", "Effective rank"],
        lines,
        caption="Feature space of the pretrained encoders on the test parts; type: that of the "
        "numbers that were measured",
        numbers=len(columns),
    )


def _of_seeds(row: dict[str, Any] | None) -> Cell:
    value = None if row is None else main_score(row)
    if row is None or value is None:
        return Cell("–", mark="gap")
    spread = row["deviation"]
    under = () if spread is None else (f"± {wording.number(spread)}",)
    return Cell(wording.number(value), under, value)


def _cell(value: float | None, digits: int) -> Cell:
    if value is None:
        return Cell("–", mark="gap")
    return Cell(wording.number(value, digits), key=value)

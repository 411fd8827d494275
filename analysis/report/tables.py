"""The report's tables: averages and their members, methods head to head, gaps, noise.

Takes a `Readout`, gives HTML tables. The caption of each says what its numbers are and what they
are averaged over.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from analysis import wording
from analysis.averages import Average
from analysis.readout import Readout
from analysis.report.findings import head_to_heads, replicates
from analysis.report.html import NOTHING, Cell, Table, table
from analysis.report.values import count_cell, number_cell, percent_cell
from analysis.schemas import CLEAN, DOMAINS, OWN, PREPROCESSINGS, VALIDATION
from analysis.statistics import LEAST_SEEDS, Interval
from analysis.variance import components

MOST_PROBLEMS = 300  # rows of the table of problems on the page; problems.csv has all
_MEASURES = {"test_accuracy": "accuracy", "test_macro_f1": "macro F1"}


def averages(readout: Readout, domain: str, measure: str = OWN) -> Markup:
    """Methods by noise level: mean, interval over seeds, change from the clean level.

    `measure` is a column of CELLS_SCHEMA: each task's own metric, accuracy or macro F1.
    """
    rows: list[list[Cell | str]] = []
    for method in readout.methods():
        found = readout.scores(domain, method, measure)
        if found.levels:
            several = len(readout.seeds()) >= LEAST_SEEDS
            cells = [_mean(found, level, several=several) for level in readout.levels]
            rows.append([wording.method(method), *cells])
    if not rows:
        return NOTHING
    name = _MEASURES.get(measure) or wording.score(readout.metrics(domain))
    return table(
        ["Method", *(f"{wording.percent(level)} noise" for level in readout.levels)],
        rows,
        caption=f"{wording.domain(domain)}: test {name} in percent, mean over tasks, then seeds; "
        f"below it the change from clean in points"
        + (
            ", with 95 % intervals"
            if len(readout.seeds()) >= LEAST_SEEDS
            else f"; fewer than {LEAST_SEEDS} seeds: no intervals"
        ),
        numbers=len(readout.levels),
    )


def _mean(found: Average, level: float, digits: int = 1, *, several: bool) -> Cell:
    """A mean, its interval and its change from clean; says so where it is of few seeds."""
    interval = found.interval(level)
    if interval is None:
        return Cell("–", mark="gap")
    under = []
    if interval.low is not None:
        under.append(_bracket(interval, digits))
    elif several:
        equal = "equal in " if interval.n >= LEAST_SEEDS else ""
        under.append(equal + wording.count(interval.n, "seed"))
    change = found.change(level) if level != CLEAN else None
    if change is not None:
        under.append(f"Δ {wording.interval(change.interval, digits, sign=True)}")
    return Cell(wording.number(interval.mean, digits), tuple(under), interval.mean)


def _bracket(interval: Interval, digits: int) -> str:
    return wording.interval(interval, digits).split(" ", 1)[1]


def methods(readout: Readout) -> Markup:
    """Methods head to head, paired by level, seed and task."""
    rows: list[list[Cell | str]] = [
        [
            wording.method(one.method),
            wording.method(one.baseline),
            one.domain.upper(),
            count_cell(one.wins),
            count_cell(one.ties),
            count_cell(one.losses),
            Cell(
                wording.interval(one.overall.interval, 2, sign=True), key=one.overall.interval.mean
            ),
            count_cell(one.overall.unpaired),
        ]
        for one in head_to_heads(readout)
    ]
    if not rows:
        return NOTHING
    heads = ["Method", "Against", "Domain", "Wins", "Ties", "Losses", "Points", "Unpaired"]
    return table(
        heads,
        rows,
        caption="Wins, ties and losses count noise levels; points is the mean difference in "
        f"{wording.score(readout.metrics())} over all levels, paired by level, seed and task; "
        "unpaired scores are left out",
        numbers=5,
    )


def members(readout: Readout) -> Markup:
    """What each average is over, and which members it leaves out because a score is missing."""
    rows: list[list[Cell | str]] = []
    asked = {(task, method) for _, _, task, method, _, _ in readout.question.asked()}
    for domain in readout.domains():
        for method in readout.methods():
            found = readout.scores(domain, method)
            planned = {t for t in readout.question.tasks(domain) if (t, method) in asked}
            absent = sorted({*found.left_out, *(planned - set(found.members))})
            if found.members or absent:
                name = f"{wording.method(method)}, {domain.upper()}"
                rows.append([name, _listing(found.members), _gap(absent)])
    for domain in ("id", "ood"):
        found = readout.feature_space("sve", domain=domain)
        if found.members or found.left_out:
            name = f"SVE and LSVR, {domain.upper()}"
            rows.append([name, _listing(found.members), _gap(found.left_out)])
    if not rows:
        return NOTHING
    return table(
        ["Average", "Members", "Left out"],
        rows,
        caption="A member is in an average only if it has a score at every noise level and seed "
        "at which the method has any; the others are left out at every level",
    )


def spaces(readout: Readout) -> Markup:
    """SVE and LSVR by noise level for each preprocessing and domain."""
    rows: list[list[Cell | str]] = []
    for preprocessing in PREPROCESSINGS:
        for domain in ("id", "ood"):
            for measure in ("sve", "lsvr", "effective_rank"):
                found = readout.feature_space(measure, domain=domain, preprocessing=preprocessing)
                if found.levels:
                    title = "Effective rank" if measure == "effective_rank" else measure.upper()
                    several = len(readout.seeds()) >= LEAST_SEEDS
                    cells = [_mean(found, level, 2, several=several) for level in readout.levels]
                    rows.append([title, domain.upper(), preprocessing, *cells])
    if not rows:
        return NOTHING
    return table(
        ["Measure", "Data sets", "Preprocessing", *map(wording.percent, readout.levels)],
        rows,
        caption="Feature space of the test parts by noise level: mean over data sets, then seeds; "
        f"below it the change from clean{_dtypes(readout)}",
        numbers=len(readout.levels),
    )


def _dtypes(readout: Readout) -> str:
    """Such as "; computed from float32 features, which are stored as float16"."""
    measured, stored = readout.features_dtype(), readout.features_dtype("stored")
    if not measured:
        return ""
    kept = f", which are stored as {stored}" if stored and stored != measured else ""
    return f"; computed from {measured} features{kept}"


def pretraining(readout: Readout) -> Markup:
    """The pre-training runs: one row for each encoder."""
    columns = {
        "val_accuracy": "Validation accuracy (%)",
        "val_image_to_text_r1": "Validation R@1, image to text (%)",
        "val_text_to_image_r1": "Validation R@1, text to image (%)",
        "train_accuracy_clean": "Train accuracy, clean (%)",
        "train_accuracy_flipped": "Train accuracy, flipped (%)",
        "train_loss_clean": "Train loss, clean",
        "train_loss_flipped": "Train loss, flipped",
    }
    for measure in VALIDATION:
        if not readout.pretraining_average(measure).levels:
            del columns[measure]
    rows: list[list[Cell | str]] = []
    for row in sorted(readout.pretraining.to_pylist(), key=lambda r: (r["noise"], r["seed"])):
        values = [number_cell(row[name], 3 if "loss" in name else 1) for name in columns]
        rows.append([percent_cell(row["noise"]), count_cell(row["seed"]), *values])
    if not rows:
        return NOTHING
    return table(
        ["Noise", "Seed", *columns.values()],
        rows,
        caption="Pre-training runs: last epoch; flipped samples count as right on their wrong "
        f"{wording.label_word(readout.question.noise_kind)}s",
        numbers=len(columns) + 2,
    )


def noise(readout: Readout) -> Markup:
    """Requested and realised noise by level, of all draws together."""
    by_level: dict[float, list[dict[str, Any]]] = {}
    for row in readout.noise.to_pylist():
        by_level.setdefault(row["level"], []).append(row)
    rows: list[list[Cell | str]] = [
        [
            percent_cell(level),
            count_cell(len(draws)),
            _counts([row["eligible"] for row in draws]),
            _counts([row["changed"] for row in draws]),
            _realised([row["realised_percent"] for row in draws], sign=False, suffix=" %"),
            _realised([row["realised_percent"] - level for row in draws], sign=True),
        ]
        for level, draws in sorted(by_level.items())
    ]
    if not rows:
        return NOTHING
    return table(
        [
            "Level requested",
            "Draws",
            "Rows that could change",
            "Rows changed",
            "Realised",
            "Difference (points)",
        ],
        rows,
        caption=f"Noise kind {readout.question.noise_kind} over the training part of "
        f"{readout.question.corpus}",
        numbers=6,
    )


def _counts(values: Sequence[int]) -> Cell:
    """A count, or the least and the most of several."""
    low, high = min(values), max(values)
    return Cell(f"{low:,}" if low == high else f"{low:,}–{high:,}", key=low)


def _realised(values: Sequence[float], *, sign: bool, suffix: str = "") -> Cell:
    """A percentage with two digits, or the least and the most of several draws."""
    low, high = (
        wording.signed(value, 2) if sign else f"{value:.2f}" for value in (min(values), max(values))
    )
    return Cell(f"{low if low == high else f'{low} to {high}'}{suffix}", key=min(values))


def variance(readout: Readout) -> Markup:
    """What varies: the spread over replicates, tuning seeds and test samples."""
    rows: list[list[Cell | str]] = [
        [
            wording.domain(one.domain),
            wording.method(one.method),
            "noisy" if one.noisy else "clean",
            count_cell(one.replicates),
            *(_spread(value) for value in (one.replicate, one.tuning, one.sample)),
        ]
        for one in components(readout)
    ]
    if not rows:
        return NOTHING
    return table(
        ["Domain", "Method", "Levels", "Replicates", "Replicate", "Tuning seed", "Test samples"],
        rows,
        caption="Standard deviation of the mean over tasks, in points, over replicates "
        f"({replicates(readout.question)}), over tuning seeds within a replicate, and by the "
        "choice of the test samples. A dash: this experiment does not show it",
        numbers=4,
    )


def _spread(value: float | None) -> Cell:
    return Cell("–") if value is None else Cell(f"{value:.2f}", key=value)


def tasks(readout: Readout) -> Table | None:
    """Each task with its title and the metric that it is judged by; None without tasks."""
    question, metrics = readout.question, readout.metrics()
    for row in (*readout.pretrained_cells.to_pylist(), *readout.label_noise_cells.to_pylist()):
        metrics.setdefault(row["task"], row["metric"] or "accuracy")
    rows: list[list[Cell | str]] = [
        [
            task,
            question.titles.get(task, task),
            domain.upper(),
            wording.metric_with_unit(metrics[task]) if task in metrics else "nothing finished yet",
        ]
        for domain in DOMAINS
        for task in question.tasks(domain)
    ]
    if not rows:
        return None
    heads = ["Task", "Title", "Domain", "Its own metric"]
    return Table(heads, rows, "The tasks; every average and claim is of their own metrics")


def matrix(readout: Readout) -> Markup:
    """How many of the requested cells are finished, by task and noise level."""
    question = readout.question
    if not question.levels:
        return NOTHING
    done = Counter((key[2], key[0]) for key in readout.finished_keys())
    asked = Counter((key[2], key[0]) for key in question.asked())
    rows: list[list[Cell | str]] = []
    for domain in ("id", "ood"):
        for task in question.tasks(domain):
            row: list[Cell | str] = [task, domain.upper()]
            for level in question.levels:
                got, all_ = done[task, level], asked[task, level]
                row.append(Cell(f"{got}/{all_}", key=got, mark="" if got == all_ else "gap"))
            rows.append(row)
    return table(
        ["Task", "Domain", *map(wording.percent, question.levels)],
        rows,
        caption="Finished of requested cells (methods, fractions and seeds together) by noise "
        "level; shaded where some are missing",
        numbers=len(question.levels),
    )


def overlaps(readout: Readout) -> Table | None:
    """How many of each task's test samples are trained on; None where nothing is compared."""
    counted = ("test_images", "overlap", "pretraining", "training", "exact", "near", "undecodable")
    rows: list[list[Cell | str]] = [
        [
            row["task"],
            row["note"] or row["corpus"] or "pretrained encoders",
            *(count_cell(row[name]) for name in counted),
        ]
        for row in readout.overlaps.to_pylist()
    ]
    if not rows:
        return None
    heads = ["Task", "Pre-trained on", "Test samples", "Trained on", "In pre-training"]
    heads += ["In the task's training rows", "Exact copies", "Changed copies", "Not decodable"]
    caption = "Test samples with a copy among the samples that are trained on"
    return Table(heads, rows, caption)


def problems(readout: Readout) -> Markup:
    """What failed, was blocked, is missing or was skipped, and why."""
    found = readout.problems.to_pylist()
    rows: list[list[Cell | str]] = [
        [row["status"], row["address"], row["reason"] or "no reason given"]
        for row in sorted(found, key=lambda row: (row["status"], row["address"]))
    ]
    if not rows:
        return NOTHING
    counts = Counter(row["status"] for row in found)
    caption = wording.join([f"{counts[status]:,} {status}" for status in sorted(counts)])
    if len(rows) > MOST_PROBLEMS:
        caption += f"; the first {MOST_PROBLEMS:,} are shown"
    return table(["Status", "Step", "Reason"], rows[:MOST_PROBLEMS], caption=caption)


def provenance(readout: Readout) -> Markup:
    """Where and with which versions the results were made."""
    rows = [[name, value] for name, value in _flat(readout.provenance)]
    return table(["What", "Value"], rows, caption="Provenance") if rows else NOTHING


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name in sorted(value, key=str):
            yield from _flat(value[name], f"{path}.{name}" if path else str(name))
    elif isinstance(value, (list, tuple)):
        plain = all(isinstance(item, str) for item in value)
        yield path, " ".join(value) if plain else json.dumps(value, default=str)
    else:
        yield path, "unknown" if value is None else str(value)


def _listing(found: tuple[str, ...]) -> Cell | str:
    return ", ".join(found) if found else Cell("none shared by all levels", mark="gap")


def _gap(found: tuple[str, ...] | list[str]) -> Cell | str:
    return Cell(", ".join(found), mark="gap") if found else "nothing"

"""The last screen of a sweep: the answer, and its tables, as lines that fit the terminal.

Takes a report's summary tables; gives lines. A table is a domain, a row a method, a column a noise
level. Where not all columns fit side by side, the others follow below.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analysis.statistics import LEAST_SEEDS, Interval
from orchestrator.tracking.naming import DOMAINS

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.results.collect import Report

NAME = 26  # letters of a row's name at most
SHORT = 12  # letters of a metric that stands in its table's head


def lines(report: Report, width: int, *, verbose: bool = False) -> Iterator[str]:
    """The answer, the tables by noise level, those of pretrained encoders; all within `width`."""
    if report.answer:
        yield ""
        yield from textwrap.wrap(report.answer, width)
    yield from _by_level(report.summary, width, verbose)
    yield from _pretrained(report.pretrained, width)


def _by_level(summary: pa.Table, width: int, verbose: bool) -> Iterator[str]:
    rows = summary.to_pylist()
    own = _own(rows)
    for domain, metric in own.items():
        chosen = [row for row in rows if _parts(row) == (domain, metric)]
        words = next((row["metrics"] for row in chosen if row["metrics"]), metric.replace("_", " "))
        yield ""
        if len(words) > SHORT:
            yield from textwrap.wrap(f"{domain.upper()} {words}", width)
            words = "score"
        head = f"{domain.upper():3} {words}, noise in %"  # the columns of both stand in line
        yield from _table(head, chosen, width, lambda row: _method(row["metric"]))
    if own:
        yield from textwrap.wrap(_explained(rows, verbose), width)
    shown = set(own.items())
    rest = [row for row in rows if _parts(row) not in shown]
    if rest and (verbose or not own):
        yield ""
        yield from _table("noise in %", rest, width, _title, name=max(NAME, width // 2))


def _own(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Domain -> the tasks' own metric: the first of its domain in the summary."""
    found: dict[str, str] = {}
    for row in rows:
        domain, metric = _parts(row)
        if domain in DOMAINS:
            found.setdefault(domain, metric)
    return found


def _parts(row: Mapping[str, Any]) -> tuple[str, str]:
    """Domain and metric of a row such as id/<method>/accuracy; ("", "") of any other."""
    domain, _, rest = str(row["metric"]).partition("/")
    return (domain, rest.rpartition("/")[2]) if domain in DOMAINS else ("", "")


def _method(metric: str) -> str:
    return metric.partition("/")[2].rpartition("/")[0]


def _explained(rows: Sequence[Mapping[str, Any]], verbose: bool) -> str:
    """What a number is the mean of, and what ± is; or that there is none, and why."""
    scores = [row for row in rows if _parts(row)[0]]
    tasks = {_parts(row)[0].upper(): len(row["members"]) for row in scores}
    same = len(set(tasks.values())) == 1
    of = tasks if not same else {"": next(iter(tasks.values()))}
    means = " and ".join(_count(n, f"{domain} task".strip()) for domain, n in of.items())
    most = max(row["seeds"] for row in scores)
    if any(row["high"] is not None for row in scores):
        sure = f"± is half of the {_replicates(most)}"
    elif most >= LEAST_SEEDS:
        sure = "no interval: the replicates gave equal values"
    else:
        sure = f"{_replicates(most)} (try --seeds 0,1,2)"
    return f"Mean of {means}; {sure}{'' if verbose else '; -v: more'}."


def _replicates(seeds: int) -> str:
    """What so many replicates (pre-training seeds) give: an interval, or none."""
    if seeds >= LEAST_SEEDS:
        return f"95 % interval over {seeds} replicates"
    return f"{'one replicate' if seeds == 1 else f'{seeds} replicates'}: no interval"


def _title(row: Mapping[str, Any]) -> str:
    """A metric's name, with the type of the measured features if it is coarser than float32."""
    coarse = row["dtype"] not in (None, "float32")
    return f"{row['metric']} ({row['dtype']})" if coarse else str(row["metric"])


def _value(row: Mapping[str, Any]) -> str:
    digits = 3 if str(row["metric"]).startswith("features/") else 1
    half = Interval(row["mean"], row["low"], row["high"], row["seeds"]).half
    return f"{row['mean']:.{digits}f}" + ("" if half is None else f" ±{half:.{digits}f}")


def _table(
    head: str,
    rows: Sequence[Mapping[str, Any]],
    width: int,
    named: Any,
    *,
    name: int = NAME,
) -> Iterator[str]:
    levels = sorted({row["noise"] for row in rows})
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cells.setdefault(named(row), {})[f"{row['noise']:g}"] = _value(row)
    yield from _blocks(head, [f"{level:g}" for level in levels], cells, width, name)


def _blocks(
    head: str,
    columns: Sequence[str],
    cells: Mapping[str, Mapping[str, str]],
    width: int,
    name: int,
) -> Iterator[str]:
    """A table; columns that do not fit follow below, under the same rows."""
    title = max(len(head), *(min(len(row), name) for row in cells))
    widths = {
        c: 2 + max(len(c), *(len(row.get(c, "-")) for row in cells.values())) for c in columns
    }
    left = list(columns)
    while left:
        block, used = [left.pop(0)], title
        used += widths[block[0]]
        while left and used + widths[left[0]] <= width:
            used += widths[left[0]]
            block.append(left.pop(0))
        yield f"{head:{title}}" + "".join(f"{c:>{widths[c]}}" for c in block)
        for row, values in cells.items():
            yield f"{_cut(row, title):{title}}" + "".join(
                f"{values.get(c, '-'):>{widths[c]}}" for c in block
            )


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _pretrained(summary: pa.Table, width: int) -> Iterator[str]:
    """Test scores of pretrained encoders: rows are tasks and fractions, columns are methods.

    A score is the task's own metric. A row names it if it is not accuracy.
    """
    from analysis.pretrained import main_score

    rows = summary.to_pylist()
    if not rows:
        return
    order = list(dict.fromkeys((row["encoder"], row["task"]) for row in rows))
    several = len({row["fraction"] for row in rows}) > 1
    cells: dict[str, dict[str, str]] = {}
    for row in sorted(rows, key=lambda r: (order.index((r["encoder"], r["task"])), -r["fraction"])):
        metric = f" ({row['metric']})" if row["metric"] not in (None, "accuracy") else ""
        share = f"  {row['fraction']:g} %" if several else ""
        title = f"{row['encoder']}  {row['task']}{metric}{share}"
        cells.setdefault(title, {})[row["method"]] = f"{main_score(row):.1f}"
    methods = list(dict.fromkeys(row["method"] for row in rows))
    accuracy = "accuracy, or the metric that a row names"
    share = "; a row's percentage is the share of the training rows" if several else ""
    yield ""
    yield from textwrap.wrap(f"Pretrained encoders: {accuracy}, on the test part{share}", width)
    yield from _blocks("pretrained encoder", methods, cells, width, max(NAME, width // 2))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

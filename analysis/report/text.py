"""The report as text: a Markdown page, and LaTeX tables for a paper.

Takes a `Readout` and its verdicts, gives text. The LaTeX tables have the layout of the papers'
(methods by noise level; the ablation as in Table 16). They need the package booktabs, and amssymb
for check marks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from analysis import wording
from analysis.averages import Average
from analysis.claims.verdicts import Verdict
from analysis.figures.ablation import families
from analysis.readout import Readout
from analysis.report import downstream_noise, masks, pretrained, tables
from analysis.report import verdicts as verdict_text
from analysis.report.facts import assurance, facts
from analysis.report.findings import findings
from analysis.report.html import Table
from analysis.report.verdicts import escape
from analysis.schemas import OWN, REGULARISERS
from analysis.statistics import Interval

_MOST_REASONS = 30
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
    "Δ": r"$\Delta$",
}


# -- Markdown --------------------------------------------------------------------------------------


def markdown(readout: Readout, found: Sequence[Verdict], drawn: Sequence[tuple[str, str]]) -> str:
    """The report in Markdown; `drawn` holds the names and titles of the figures."""
    lines = [short(readout, found)]
    if in_words := findings(readout):
        lines += ["## In words", ""]
        lines += [f"- **{one.heading}**: {one.text}" for one in in_words]
        lines.append("")
    lines += [f"{escape('; '.join(facts(readout)))}.", ""]
    for domain in readout.domains():
        own = readout.metrics(domain)
        beside = {"test_accuracy": "accuracy", "test_macro_f1": "macro F1"}
        only = {f"test_{name}" for name in own.values()} if len(set(own.values())) == 1 else set()
        measures = {OWN: wording.score(own)}
        measures |= {name: title for name, title in beside.items() if name not in only}
        for measure, title in measures.items():
            lines += [f"## {wording.domain(domain)}: test {title} (%)", ""]
            lines += [*_averages(readout, domain, measure), ""]
    lines += _section("Feature space of the pretrained encoders", pretrained.spaces(readout))
    lines += _section("Downstream label noise", *downstream_noise.scores(readout).values())
    lines += _section("IoU by class", *(table for _, table in masks.class_iou(readout)))
    lines += _section("Tasks", tables.tasks(readout))
    lines += _section("Test samples that are trained on", tables.overlaps(readout))
    lines += _missing(readout)
    if drawn:
        lines += ["## Figures", ""]
        lines += [f"![{title}](figures/{name}.png)" for name, title in drawn]
        lines.append("")
    lines += [
        "Every number is in the CSV files beside this one: claims, summary, table (cells), "
        "encoders (cells of pretrained encoders).",
        "",
    ]
    return "\n".join(lines)


def short(readout: Readout, found: Sequence[Verdict]) -> str:
    """The verdicts, and what pretrained encoders reach: MLflow's description of the sweep."""
    verdicts = verdict_text.markdown(readout, found, assurance(readout))
    of_encoders = (pretrained.by_domain(readout), pretrained.scores(readout))
    return "\n".join([verdicts, *_section("Pretrained encoders", *of_encoders)])


def _section(title: str, *tables: Table | None) -> list[str]:
    """The lines of a titled part with its tables; none without a table."""
    found = [line for table in tables if table is not None for line in _table(table)]
    return [f"## {title}", "", *found] if found else []


def _table(table: Table) -> list[str]:
    first = len(table.heads) - table.numbers
    lines = [table.heads, *table.texts()]
    rows = [f"| {' | '.join(map(escape, line))} |" for line in lines]
    rule = f"|{'---|' * first}{'---:|' * table.numbers}"
    return [f"{escape(table.caption)}.", "", rows[0], rule, *rows[1:], ""]


def _missing(readout: Readout) -> list[str]:
    """What failed, was blocked, is missing or was skipped: each reason with its first step."""
    first: dict[tuple[str, str], str] = {}
    count: Counter[tuple[str, str]] = Counter()
    for row in sorted(readout.problems.to_pylist(), key=lambda row: row["address"]):
        why = (row["status"], row["reason"] or "no reason given")
        first.setdefault(why, row["address"])
        count[why] += 1
    if not count:
        return ["Nothing failed, was blocked or skipped.", ""]
    lines = ["## What is missing, failed or was skipped", ""]
    for (status, reason), number in sorted(count.items())[:_MOST_REASONS]:
        more = f" and {number - 1:,} more" if number > 1 else ""
        lines.append(f"- {status}: `{first[status, reason]}`{more}: {reason}")
    if len(count) > _MOST_REASONS:
        lines.append(f"- and {len(count) - _MOST_REASONS:,} more reasons: problems.csv has them")
    return [*lines, ""]


def _averages(readout: Readout, domain: str, measure: str) -> list[str]:
    heads = ["Method", *(f"{wording.percent(level)} noise" for level in readout.levels)]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * len(readout.levels)}"]
    for method in readout.methods():
        found = readout.scores(domain, method, measure)
        if found.levels:
            cells = [_value(found.interval(level)) for level in readout.levels]
            lines.append(f"| {wording.method(method).replace('|', '/')} | {' | '.join(cells)} |")
    return lines


def _value(of: Interval | None) -> str:
    return "–" if of is None else wording.interval(of)


# -- LaTeX -----------------------------------------------------------------------------------------


def latex(readout: Readout, found: Sequence[Verdict]) -> dict[str, str]:
    """File name -> table, for the tables that the readout has numbers for."""
    made = {
        **{f"scores-{domain}.tex": _scores(readout, domain) for domain in readout.domains()},
        "ablation.tex": _ablation(readout),
        "claims.tex": _claims(found) if readout.question.levels else "",
        "encoders-domains.tex": _latex(pretrained.by_domain(readout), "encoders-domains"),
        "encoders.tex": _latex(pretrained.scores(readout), "encoders"),
        "encoders-space.tex": _latex(pretrained.spaces(readout), "encoders-space"),
        **{
            f"label-noise-{domain}.tex": _latex(table, f"label-noise-{domain}")
            for domain, table in downstream_noise.scores(readout).items()
        },
        **{
            f"iou-{task}.tex": _latex(table, f"iou-{task}")
            for task, table in masks.class_iou(readout)
        },
        "tasks.tex": _latex(tables.tasks(readout), "tasks"),
        "overlap.tex": _latex(tables.overlaps(readout), "overlap"),
    }
    return {f"tables/{name}": text for name, text in made.items() if text}


def _latex(table: Table | None, label: str) -> str:
    """A table of the page; empty without one."""
    if table is None:
        return ""
    columns = "l" * (len(table.heads) - table.numbers) + "r" * table.numbers
    return _tabular(table.heads, table.texts(), f"{table.caption}.", label, columns)


def _scores(readout: Readout, domain: str) -> str:
    """Methods by noise level: mean over tasks and seeds, half its interval; the best in bold."""
    averages = {m: readout.scores(domain, m) for m in readout.methods()}
    averages = {m: found for m, found in averages.items() if found.levels}
    if not averages:
        return ""
    best = {level: _best(list(averages.values()), level) for level in readout.levels}
    rows = [
        [wording.method(m), *(_mean(found.interval(x), best[x]) for x in readout.levels)]
        for m, found in averages.items()
    ]
    members = wording.mean_of(next(iter(averages.values())).members)
    if len({found.members for found in averages.values()}) > 1:
        members = "each method over its own finished tasks"
    seeds = wording.count(len(readout.seeds()), "pre-training seed")
    return _tabular(
        ["Method", *(f"{wording.percent(level)}" for level in readout.levels)],
        rows,
        f"{wording.domain(domain)}: test {wording.score(readout.metrics(domain))} (%) by "
        f"pre-training noise, {members}; {seeds}"
        + ("; ± half the 95 % t interval." if readout.several() else "; no intervals."),
        f"scores-{domain}",
    )


def _best(averages: Sequence[Average], level: float) -> float:
    values = [of.mean for found in averages if (of := found.interval(level)) is not None]
    return max(values, default=float("inf"))


def _mean(of: Interval | None, best: float) -> str:
    if of is None:
        return "--"
    text = f"{of.mean:.1f}"
    if round(of.mean, 1) == round(best, 1):
        text = rf"\textbf{{{text}}}"
    if of.half is not None:
        text += rf" {{\scriptsize$\pm${of.half:.1f}}}"
    return _RAW + text


def _ablation(readout: Readout) -> str:
    """The regularisers of each method and its ID score by noise level, as in Table 16."""
    rows: list[list[str]] = []
    for variant, less in families(readout).items():
        for method in (variant, *less):
            found = readout.scores("id", method)
            marks = [
                _RAW + (r"$\checkmark$" if term in readout.regularisers(method) else "")
                for term in REGULARISERS
            ]
            values = [_mean(found.interval(level), float("inf")) for level in readout.levels]
            rows.append([wording.method(method), *marks, *values])
    if not rows:
        return ""
    heads = [
        "Method",
        *(term.upper() for term in REGULARISERS),
        *map(wording.percent, readout.levels),
    ]
    score = wording.score(readout.metrics("id"))
    caption = f"NMTune's regularisers: ID test {score} (%) by pre-training noise."
    return _tabular(heads, rows, caption, "ablation")


def _claims(found: Sequence[Verdict]) -> str:
    rows = [
        [
            one.claim.sentence,
            one.words,
            verdict_text.numbers(one.comparisons[0]) if one.comparisons else "–",
        ]
        for one in found
    ]
    columns = r"p{0.42\linewidth}lp{0.36\linewidth}"
    heads = ["Published claim", "Verdict", "First comparison"]
    return _tabular(
        heads,
        rows,
        f"{verdict_text.count_sentence(found)} {verdict_text.rule(found)}",
        "claims",
        columns,
    )


_RAW = "\0"  # marks a cell that is LaTeX already


def _tabular(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str,
    label: str,
    columns: str | None = None,
) -> str:
    form = columns or "l" + "c" * (len(heads) - 1)
    body = [" & ".join(map(_tex, row)) + r" \\" for row in rows]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs} and, for check marks, amssymb",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(caption)}}}",
            rf"\label{{tab:nml-{label}}}",
            rf"\begin{{tabular}}{{{form}}}",
            r"\toprule",
            " & ".join(map(_tex, heads)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _tex(text: str) -> str:
    """Text with LaTeX's special characters escaped; cells that start with _RAW stay as they are."""
    if text.startswith(_RAW):
        return text.removeprefix(_RAW)
    return "".join(_SPECIAL.get(letter, letter) for letter in text.replace("–", "--"))

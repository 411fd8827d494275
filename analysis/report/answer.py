"""The answer in one sentence, and what stands beside it on the first screen.

Takes a `Readout`, gives plain text: what noise did in and out of domain, against what, and how sure
that is. Where nothing was pre-trained: what the encoders reach. Page, terminal and MLflow may show
the same sentence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from analysis import pretrained, wording
from analysis.averages import Average
from analysis.claims.verdicts import Verdict
from analysis.readout import Readout
from analysis.schemas import CLEAN, CORRELATIONS
from analysis.statistics import LEAST_SEEDS, Interval

_ADJECTIVES = {"id": "in-domain", "ood": "out-of-domain"}
_PLACES = {"id": "in domain", "ood": "out of domain"}
_MOST_REASONS = 3  # of failures above the answer; the table of what is missing has all


def answer(readout: Readout) -> str:
    """What was found, in one sentence."""
    return _of_noise(readout) if readout.question.levels else _of_encoders(readout)


def _of_noise(readout: Readout) -> str:
    method = readout.probe()
    levels = readout.levels
    averages = {domain: readout.scores(domain, method) for domain in readout.domains()}
    measured = sorted({level for found in averages.values() for level in found.levels})
    if not measured:
        return "No task is finished at every noise level and seed yet, so there is no answer."
    if CLEAN not in measured:
        return (
            f"Measured at {wording.levels(measured)} noise and not at 0 %, so there is no change "
            f"from clean pre-training to state."
        )
    if len(measured) == 1:
        missing = "the noisy levels are not finished" if len(levels) > 1 else "no other was asked"
        return f"Measured at 0 % noise alone ({missing}), so there is nothing to compare it with."
    by_level = {level: _changes(averages, level) for level in measured if level != CLEAN}
    by_level = {level: found for level, found in by_level.items() if found}
    if not by_level:
        return "No replicate is finished at 0 % and at another level yet, so there is no answer."
    last = max(by_level, key=lambda level: (_replicated(by_level[level], averages), level))
    changes = by_level[last]
    kind = readout.question.noise_kind.replace("_", " ")
    clauses = [
        _clause(domain, wording.score_name(readout.metrics(domain)), of)
        for domain, of in changes.items()
    ]
    verbs = [clause.split(" ", 1)[0] for clause in clauses]
    if len(set(verbs)) == 1:  # said once
        clauses[1:] = [clause.split(" ", 1)[1] for clause in clauses[1:]]
    return (
        f"Against clean pre-training, {wording.percent(last)} {kind} noise "
        f"{wording.join(clauses)} ({_how_sure(list(changes.values()), wording.method(method))})."
    )


def _changes(averages: Mapping[str, Average], level: float) -> dict[str, Interval]:
    """Domain -> what a level changes from clean, where both are measured."""
    found = {domain: of.change(level) for domain, of in averages.items()}
    return {domain: change.interval for domain, change in found.items() if change is not None}


def _replicated(changes: Mapping[str, Interval], averages: Mapping[str, Average]) -> bool:
    """Whether every domain has its change from enough replicates: a sweep may be half done."""
    measured = [domain for domain, found in averages.items() if found.levels]
    return all(domain in changes and changes[domain].n >= LEAST_SEEDS for domain in measured)


def _clause(domain: str, score: str, of: Interval) -> str:
    """Such as "lowers in-domain accuracy by 2.8 points [2.1, 3.5]"."""
    what, size = f"{_ADJECTIVES[domain]} {score}", wording.number(abs(of.mean))
    points = "point" if size == "1.0" else "points"
    if of.excludes_zero:
        assert of.low is not None, "what excludes zero has an interval"
        assert of.high is not None, "what excludes zero has an interval"
        ends = sorted((abs(of.low), abs(of.high)))
        return (
            f"{'lowers' if of.mean < 0 else 'raises'} {what} by {size} {points} "
            f"[{wording.number(ends[0])}, {wording.number(ends[1])}]"
        )
    if of.low is not None:
        bracket = wording.interval(of, sign=True).partition(" ")[2]
        return f"shows no sure change of {what}, {wording.signed(of.mean)} {points} {bracket}"
    if size == "0.0":
        return f"leaves {what} as it is"
    return f"comes with {what} {size} {points} {'lower' if of.mean < 0 else 'higher'}"


def _how_sure(of: Sequence[Interval], method: str) -> str:
    """Whose mean it is, over how many replicates, and what the brackets are."""
    seeds = min((one.n for one in of), default=0)
    over = f"{method}, mean over tasks"
    if seeds < LEAST_SEEDS:
        few = "one replicate" if seeds == 1 else f"{seeds} replicates"
        return f"{over}; {few}, so chance may explain it"
    sure = "95 % interval" if len(of) == 1 else "95 % intervals"
    if all(one.low is None for one in of):
        return f"{over} and {seeds} replicates, which are equal: no interval"
    return f"{over} and {seeds} replicates, with {sure}"


def _of_encoders(readout: Readout) -> str:
    """What the pretrained encoders reach in and out of domain, over encoders and methods."""
    rows = pretrained.domain_means(readout)
    if not rows:
        return "Nothing was pre-trained here, and no encoder has finished a task yet."
    encoders = list(dict.fromkeys(row.encoder for row in rows))
    metrics = pretrained.metrics(readout)
    unit = "" if set(metrics.values()) & set(CORRELATIONS) else " %"
    clauses = [
        _reached([row for row in rows if row.domain == domain], unit, len(encoders) > 1)
        for domain in dict.fromkeys(row.domain for row in rows)
    ]
    alone = len(encoders) == 1
    return (
        f"Used as published, {encoders[0] if alone else f'{len(encoders)} encoders'} "
        f"{'reaches' if alone else 'reach'} a test {wording.score_name(metrics)} of "
        f"{wording.join(clauses)}."
    )


def _reached(rows: Sequence[pretrained.Reached], unit: str, several: bool) -> str:
    """Such as "64.5 to 67.4 % out of domain (the most with MLP)"."""
    best = max(rows, key=lambda row: row.score)
    low, high = (wording.number(of(row.score for row in rows)) for of in (min, max))
    where = _PLACES[rows[0].domain]
    if low == high:
        same = f" with each of {len(rows)} methods" if len(rows) > 1 and not several else ""
        return f"{high}{unit} {where}{same}"
    whose = f"{best.encoder} and " if several else ""
    return f"{low} to {high}{unit} {where} (the most with {whose}{wording.method(best.method)})"


def beyond(readout: Readout, found: Sequence[Verdict]) -> str:
    """What more replicates would show; empty where there are enough for verdicts."""
    if readout.several() or not readout.seeds():
        return ""
    testable = sum(bool(one.comparisons) for one in found)
    claims = f", and {testable} of the papers' claims a verdict" if testable else ""
    return (
        f"With {LEAST_SEEDS} replicates (--seeds 0,1,2) each point would have an interval{claims}."
    )


def failures(readout: Readout) -> tuple[str, list[tuple[str, str]]]:
    """How many steps failed or wait for those, and each reason with its steps, most first.

    Both empty where nothing failed.
    """
    rows = sorted(readout.problems.to_pylist(), key=lambda row: row["address"])
    failed = [row for row in rows if row["status"] == "failed"]
    if not failed:
        return "", []
    blocked = sum(row["status"] == "blocked" for row in rows)
    reasons = Counter(row["reason"] or "no reason given" for row in failed)
    first = {row["reason"] or "no reason given": row["address"] for row in reversed(failed)}
    title = f"{wording.count(len(failed), 'step')} failed"
    if blocked:
        title += f", and {blocked:,} could not run without {'it' if len(failed) == 1 else 'them'}"
    shown = [
        (first[reason] + (f" and {number - 1:,} more" if number > 1 else ""), reason)
        for reason, number in reasons.most_common(_MOST_REASONS)
    ]
    if len(reasons) > _MOST_REASONS:
        shown.append((f"and {len(reasons) - _MOST_REASONS:,} more reasons", "listed below"))
    return f"{title}.", shown

"""What an experiment found, in one sentence: a screen and a tracking page begin with it.

Takes a `Readout`, gives plain text: what the strongest noise did in and out of domain, against
what, and how sure that is. Gives no verdict on a claim.
"""

from __future__ import annotations

from analysis import wording
from analysis.averages import Average
from analysis.readout import Readout
from analysis.schemas import CLEAN
from analysis.statistics import LEAST_SEEDS, Difference

_UNCHANGED = 0.05  # points: rounds to 0.0
_IN_WORDS = {"id": "in domain (ID)", "ood": "out of domain (OOD)"}


def sentence(readout: Readout) -> str:
    """The answer, or why there is none."""
    question = readout.question
    if not question.levels:
        return "Nothing was pre-trained here, so there is no answer about noise."
    found = {domain: of for domain in readout.domains() if (of := _over_methods(readout, domain))}
    levels = sorted({level for of in found.values() for level in of.levels})
    if not levels:
        return "No task is finished at every noise level and seed, so there is no answer yet."
    if levels[0] != CLEAN:
        return "Nothing was measured at 0 % noise, so no change from clean can be stated."
    if len(levels) == 1:
        return "One noise level, 0 %: there is nothing to compare it with."
    changes = {
        domain: change
        for domain, of in found.items()
        if (change := of.change(levels[-1])) is not None
    }
    if not changes:
        return "No task is finished at both ends of the noise, so there is no answer yet."
    parts = _once([f"{_change(change)} {_IN_WORDS.get(d, d)}" for d, change in changes.items()])
    methods = wording.count(len(readout.methods()), "method")
    what = wording.label_word(question.noise_kind)
    score = wording.score_name(readout.metrics(next(iter(changes))))
    return (
        f"With {wording.percent(levels[-1])} {what} noise in pre-training, {score} "
        f"{wording.join(parts)}, against pre-training without noise "
        f"(mean over {methods}; {_sureness(list(changes.values()))})."
    )


def replicates(seeds: int) -> str:
    """What so many replicates (pre-training seeds) give: an interval, or none."""
    if seeds >= LEAST_SEEDS:
        return f"95 % interval over {seeds} replicates"
    return f"{'one replicate' if seeds == 1 else f'{seeds} replicates'}: no interval"


def _over_methods(readout: Readout, domain: str) -> Average | None:
    """The mean over all methods that have a task finished at every level and seed."""
    each = {m: of for m in readout.methods() if (of := readout.scores(domain, m)).levels}
    if not each:
        return None
    levels: dict[float, dict[tuple[int, str], float]] = {}
    for method, of in each.items():
        for level, scores in of.levels.items():
            own = {(seed, f"{method}/{task}"): value for (seed, task), value in scores.items()}
            levels.setdefault(level, {}).update(own)
    members = sorted(f"{method}/{task}" for method, of in each.items() for task in of.members)
    return Average(tuple(members), (), levels)


def _change(change: Difference) -> str:
    """Such as "falls by 4.1 points [3.0, 5.2]"."""
    of = change.interval
    if of.low is not None and of.high is not None and not of.excludes_zero:
        return f"shows no clear change ({wording.interval(of, sign=True)} points)"
    if abs(of.mean) < _UNCHANGED:
        return "does not change"
    text = f"{'rises' if of.mean > 0 else 'falls'} by {wording.number(abs(of.mean))} points"
    if of.low is None or of.high is None:
        return text
    ends = sorted((abs(of.low), abs(of.high)))
    return f"{text} [{wording.number(ends[0])}, {wording.number(ends[1])}]"


def _once(parts: list[str]) -> list[str]:
    """The parts without a verb that the part before has too: "falls by 1 ... and by 7 ..."."""
    verbs = [part.partition(" by ")[0] for part in parts]
    return [
        part.removeprefix(f"{verb} ") if at and verb == verbs[at - 1] else part
        for at, (part, verb) in enumerate(zip(parts, verbs, strict=True))
    ]


def _sureness(changes: list[Difference]) -> str:
    seeds = min(change.interval.n for change in changes)
    if seeds >= LEAST_SEEDS:
        return f"brackets: {replicates(seeds)}"
    return f"{replicates(seeds)}, so this may be chance"

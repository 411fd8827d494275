"""The findings of an experiment in sentences, each with its numbers and their intervals.

Takes a `Readout`, gives findings. Losses are stated as plainly as wins, a difference from one seed
gets no verdict, and what could not be compared is stated too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis import wording
from analysis.averages import Average
from analysis.readout import Question, Readout
from analysis.schemas import CLEAN, PREPROCESSING, SLIGHT
from analysis.statistics import LEAST_SEEDS, Difference, pearson

_EQUAL = 1e-9  # points; a smaller difference is a tie
_BASELINES = ("mlp", "lp")


@dataclass(frozen=True)
class Finding:
    """What a finding is about, and its sentences."""

    heading: str
    text: str


@dataclass(frozen=True)
class HeadToHead:
    """One method against another over the noise levels of a domain, paired by task and seed."""

    domain: str
    method: str
    baseline: str
    wins: int  # levels at which the method's mean is higher
    ties: int
    losses: int
    overall: Difference  # over all levels

    @property
    def levels(self) -> int:
        """Levels at which both were measured."""
        return self.wins + self.ties + self.losses


def certainty(readout: Readout) -> str:
    """How far the numbers may be trusted, in one or two sentences."""
    seeds = readout.seeds()
    if not readout.question.levels:
        return (
            "Nothing was pre-trained here, so there is no answer about noise: the encoders are "
            "used as published."
        )
    if not seeds:
        return "Nothing is finished yet, so there is no answer."
    if len(seeds) == 1:
        return "One pre-training seed: no verdict. Every difference below may be chance."
    if len(seeds) < LEAST_SEEDS:
        return (
            f"{len(seeds)} replicates ({replicates(readout.question)}): no interval and no verdict "
            f"of fewer than {LEAST_SEEDS}."
        )
    few = " With so few replicates the intervals are wide." if len(seeds) < 4 else ""
    return (
        f"{len(seeds)} replicates ({replicates(readout.question)}); brackets are 95 % t intervals "
        f"over them of paired means. The intervals are not corrected for the number of "
        f"comparisons; the verdicts are.{few}"
    )


def replicates(question: Question) -> str:
    """What each replicate draws for itself, and what all of them share."""
    own = ["initial weights", "data order"]
    if question.noise_draws == "own":
        own.append("noise draw")
    if not question.tuning_seeds:
        own.append("tuning seed")
    shared = f"; every verdict is {question.scope} alone" if question.scope else ""
    return f"each with its own {wording.join(own)}{shared}"


def findings(readout: Readout) -> list[Finding]:
    """The findings on noise, methods, feature space and pre-training, where there are numbers."""
    found: list[Finding] = []
    for domain in readout.domains():
        found.append(Finding(wording.domain(domain), _noise_effect(readout, domain)))
    found += _methods(readout)
    space = _space(readout)
    found += [Finding("Feature space", space)] if space else []
    pretraining = _pretraining(readout)
    found += [Finding("Pre-training", pretraining)] if pretraining else []
    return found


def head_to_heads(readout: Readout) -> list[HeadToHead]:
    """Every NMTune variant against its control, MLP and LP, and MLP against LP, as far as run.

    A method `<another>-nmtune` (of `lora` and `ft`, say) is compared with that other one.
    """
    methods = readout.methods()
    pairs = [
        (variant, baseline)
        for variant in readout.nmtune_variants()
        for baseline in dict.fromkeys((readout.control(variant), *_BASELINES))
        if baseline in methods
    ]
    if set(_BASELINES) <= set(methods):
        pairs.append(_BASELINES)
    regularised = [(m, m.removesuffix("-nmtune")) for m in methods if m.endswith("-nmtune")]
    pairs += [(m, plain) for m, plain in regularised if plain in methods]
    compared = [
        _compare(readout, domain, method, baseline)
        for method, baseline in pairs
        for domain in readout.domains()
    ]
    return [one for one in compared if one is not None]


def _compare(readout: Readout, domain: str, method: str, baseline: str) -> HeadToHead | None:
    ours, theirs = readout.scores(domain, method), readout.scores(domain, baseline)
    overall = ours.against_overall(theirs)
    if overall is None:
        return None
    differences = [ours.against(theirs, level) for level in readout.levels]
    means = [one.interval.mean for one in differences if one is not None]
    wins = sum(mean > _EQUAL for mean in means)
    losses = sum(mean < -_EQUAL for mean in means)
    ties = len(means) - wins - losses
    return HeadToHead(domain, method, baseline, wins, ties, losses, overall)


# -- noise -----------------------------------------------------------------------------------------


def _noise_effect(readout: Readout, domain: str) -> str:
    averages = {m: readout.scores(domain, m) for m in readout.methods()}
    averages = {m: found for m, found in averages.items() if found.levels}
    if not averages:
        return "No method has a task that is finished at every level and seed: no average yet."
    levels = sorted({level for found in averages.values() for level in found.levels})
    over = wording.mean_of(next(iter(averages.values())).members)
    score = wording.score(readout.metrics(domain))
    if len({found.members for found in averages.values()}) > 1:
        over = "over each method's own finished tasks, listed below"
    if len(levels) == 1:
        only = "; ".join(
            f"{wording.method(m)} {wording.interval(of)}"
            for m, found in averages.items()
            if (of := found.interval(levels[0])) is not None
        )
        return (
            f"Test {score} at {wording.percent(levels[0])} noise ({over}): {only}. "
            f"One noise level: nothing to compare it with."
        )
    if levels[0] != CLEAN:
        return (
            f"Test {score} ({over}) was measured at {wording.levels(levels)} noise, but nothing "
            f"at 0 %: no change from clean can be stated."
        )
    slight = [level for level in levels if CLEAN < level <= SLIGHT]
    if domain == "id" and slight:
        text = _tally("Slight noise", averages, slight, score)
    else:
        text = _tally("Any noise", averages, levels[1:], score)
    ends = "; ".join(_end_to_end(m, found, levels[-1]) for m, found in averages.items())
    return (
        f"{text}From 0 to {wording.percent(levels[-1])} noise, test {score} in percent ({over}) "
        f"goes {ends}."
    )


def _end_to_end(method: str, found: Average, last: float) -> str:
    start, end, change = found.interval(CLEAN), found.interval(last), found.change(last)
    if start is None or end is None or change is None:
        return f"{wording.method(method)}: not finished at both ends"
    alone = ", one seed" if change.interval.n == 1 and len(found.seed_means(CLEAN)) > 1 else ""
    return (
        f"{wording.method(method)} {wording.number(start.mean)} → {wording.number(end.mean)} "
        f"({wording.interval(change.interval, sign=True)}{alone})"
    )


def _tally(what: str, averages: dict[str, Average], levels: Sequence[float], score: str) -> str:
    """How often the score is above and below clean over methods and levels, with the extremes."""
    changes = [
        (change.interval, method, level)
        for method, found in averages.items()
        for level in levels
        if (change := found.change(level)) is not None
    ]
    if not changes:
        return ""
    above = [one for one in changes if one[0].mean > _EQUAL]
    below = [one for one in changes if one[0].mean < -_EQUAL]
    total = wording.count(len(changes), "comparison")
    text = (
        f"{what} ({wording.levels(levels)}): {score} is above clean in {len(above)} and below in "
        f"{len(below)} of {total} (method by level)"
    )
    for word, side in (("gain", above), ("loss", below)):
        if side:
            of, method, level = max(side, key=lambda one: abs(one[0].mean))
            text += (
                f"; the largest {word} is {wording.interval(of, sign=True)} points "
                f"({wording.method(method)} at {wording.percent(level)})"
            )
    if all(of.low is None for of, _, _ in changes):
        return f"{text}. Fewer than {LEAST_SEEDS} seeds: no verdict. "
    gains = sum(of.excludes_zero for of, _, _ in above)
    losses = sum(of.excludes_zero for of, _, _ in below)
    return (
        f"{text}. The interval excludes zero in {gains + losses} of {total}: "
        f"{wording.count(gains, 'gain')}, {wording.count(losses, 'loss', 'losses')}. "
    )


# -- methods ---------------------------------------------------------------------------------------


def _methods(readout: Readout) -> list[Finding]:
    compared = head_to_heads(readout)
    found: list[Finding] = []
    for method in dict.fromkeys(one.method for one in compared if "nmtune" in one.method):
        of_method = [one for one in compared if one.method == method]
        baseline = of_method[0].baseline  # the MLP before the linear probe
        sentences = [_sentence(one) for one in of_method if one.baseline == baseline]
        found.append(Finding(wording.method(method), " ".join(sentences)))
    return found


def _sentence(one: HeadToHead) -> str:
    """Such as "Loses to MLP at 3 of 5 levels OOD and wins at 2 (−0.4 points on average)."."""
    other, where = wording.method(one.baseline), one.domain.upper()
    of = f"of {wording.count(one.levels, 'level')} {where}"
    ties = f", ties at {one.ties}" if one.ties else ""
    if one.wins > one.losses:
        also = f" and loses at {one.losses}" if one.losses else ""
        verb = f"Beats {other} at {one.wins} {of}{also}{ties}"
    elif one.losses > one.wins:
        also = f" and wins at {one.wins}" if one.wins else ""
        verb = f"Loses to {other} at {one.losses} {of}{also}{ties}"
    else:
        verb = f"Wins at {one.wins} and loses at {one.losses} {of} against {other}{ties}"
    interval = one.overall.interval
    if interval.low is None:
        sure = f", {wording.count(interval.n, 'seed')}: no verdict"
    elif interval.excludes_zero:
        sure = ", the interval excludes zero"
    else:
        sure = ", undecided: the interval contains zero"
    if one.overall.unpaired:
        sure += f"; {wording.count(one.overall.unpaired, 'score')} without a counterpart left out"
    return f"{verb} ({wording.interval(interval, sign=True)} points on average{sure})."


# -- the encoder -----------------------------------------------------------------------------------


def _space(readout: Readout) -> str:
    """SVE of ID features and LSVR of OOD features, as the claims and the papers have them."""
    sentences = []
    for domain, measure in (("id", "sve"), ("ood", "lsvr")):
        found = readout.feature_space(measure, domain=domain)
        levels = sorted(found.levels)
        if len(levels) > 1:
            sentences.append(
                f"From {levels[0]:g} to {wording.percent(levels[-1])} noise, {measure.upper()} of "
                f"{domain.upper()} test features goes {_ends(found, levels)} ({PREPROCESSING} "
                f"preprocessing, {wording.mean_of(found.members, 'data set')})."
                + _correlation(readout, domain, measure)
            )
    return " ".join(sentences)


def _ends(found: Average, levels: Sequence[float]) -> str:
    first, last = found.interval(levels[0]), found.interval(levels[-1])
    assert first is not None, "a level of an average holds a score"
    assert last is not None, "a level of an average holds a score"
    return f"{wording.interval(first, 2)} → {wording.interval(last, 2)}"


def _correlation(readout: Readout, domain: str, measure: str) -> str:
    """Pearson's r between a measure of the feature space and the scores, over encoders."""
    method = next((m for m in ("lp", *readout.methods()) if m in readout.methods()), None)
    if method is None:
        return ""
    space = readout.feature_space(measure, domain=domain)
    average = readout.scores(domain, method)
    pairs = [
        (value, scores[seed])
        for level in sorted(space.levels)
        if (scores := average.seed_means(level))
        for seed, value in space.seed_means(level).items()
        if seed in scores
    ]
    found = pearson([x for x, _ in pairs], [y for _, y in pairs])
    if found.r is None:
        return ""
    r = wording.signed(found.r, 2)
    if len(readout.seeds()) < LEAST_SEEDS:
        r += f" ({wording.count(len(readout.seeds()), 'seed')}: no verdict)"
    return (
        f" {measure.upper()} against {domain.upper()} {wording.score(readout.metrics(domain))} "
        f"({wording.method(method)}): r = {r} over {wording.count(found.n, 'encoder')}, "
        f"which differ in noise and are therefore not independent."
    )


_HELD_OUT = {
    "val_accuracy": "Accuracy on held-out samples with clean labels",
    "val_image_to_text_r1": "The share of held-out samples nearest to their own clean caption",
}


def _held_out(readout: Readout, measure: str, what: str) -> str:
    found = readout.pretraining_average(measure)
    levels = sorted(found.levels)
    if not levels:
        return ""
    first, last = found.interval(levels[0]), found.interval(levels[-1])
    if first is None or last is None:
        return ""
    text = f"{what} is {wording.interval(first)} % at {wording.percent(levels[0])} noise"
    if len(levels) > 1:
        text += f" and {wording.interval(last)} % at {wording.percent(levels[-1])}"
    return text


def _pretraining(readout: Readout) -> str:
    sentences = (_held_out(readout, measure, what) for measure, what in _HELD_OUT.items())
    found = [sentence for sentence in sentences if sentence]
    if not found:
        return ""
    text = ". ".join(found)
    memory = readout.pretraining_average("train_accuracy_flipped")
    memorised = memory.interval(max(memory.levels)) if memory.levels else None
    if memorised is not None:
        wrong = wording.label_word(readout.question.noise_kind)
        text += (
            f"; by the last epoch {wording.interval(memorised)} % of the flipped training samples "
            f"give their wrong {wrong} back at {wording.percent(max(memory.levels))}"
        )
    return text + "."

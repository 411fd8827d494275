"""How names and numbers are written for a reader: methods, domains, noise, intervals.

Takes names and numbers of the tables, gives short plain text, the same in figures and report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis.schemas import CORRELATIONS
from analysis.statistics import LEAST_POINTS, Correlation, Interval

_METHODS = {
    "lp": "LP",
    "mlp": "MLP",
    "nmtune": "NMTune",
    "nmtune-paper": "NMTune (paper)",
    "nmtune-released": "NMTune (released)",
    "lora": "LoRA",
    "lora-nmtune": "LoRA with NMTune's terms",
    "ft": "FT",
    "ft-nmtune": "FT with NMTune's terms",
}
_DOMAINS = {"id": "In-domain (ID)", "ood": "Out-of-domain (OOD)"}
_METRICS = {
    "accuracy": "Accuracy",
    "mean_per_class_accuracy": "Mean per-class accuracy",
    "macro_f1": "Macro F1",
    "f1": "F1",
    "accuracy_f1": "Mean of accuracy and F1",
    "matthews": "Matthews correlation",
    "miou": "Mean IoU",
    "pixel_accuracy": "Pixel accuracy",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "pearson_spearman": "Mean of Pearson and Spearman correlation",
}
_MANY = 6  # names in a sentence before it says "and n more"


def method(slug: str) -> str:
    """A method's written name; an unknown one stays as it is."""
    whose = slug.removesuffix("-control")
    if whose != slug and whose in _METHODS:
        return f"{_METHODS[whose]}, control"
    return _METHODS.get(slug, slug)


def domain(slug: str) -> str:
    """Such as "In-domain (ID)" or "Out-of-domain (OOD)"."""
    return _DOMAINS.get(slug, slug)


def metric(slug: str | None) -> str:
    """A task metric's written name."""
    return _METRICS.get(slug or "", slug or "Metric")


def metric_with_unit(slug: str | None) -> str:
    """A task metric's written name with its unit: "Accuracy (%)"."""
    return f"{metric(slug)} {'(× 100)' if slug in CORRELATIONS else '(%)'}"


def score(metrics: Mapping[str, str]) -> str:
    """What an average over tasks is of: "accuracy", or "score (accuracy; F1: mrpc)".

    `metrics` are the tasks' own, by task.
    """
    named = {one: [t for t, m in metrics.items() if m == one] for one in metrics.values()}
    if len(named) < 2:
        return _lower(metric(next(iter(named), "accuracy")))
    usual = max(named, key=lambda one: len(named[one]))
    others = "; ".join(
        f"{_lower(metric(one))}: {join(tasks, _MANY)}"
        for one, tasks in named.items()
        if one != usual
    )
    return f"score ({_lower(metric(usual))}; {others})"


def score_name(metrics: Mapping[str, str]) -> str:
    """The same for a title: "accuracy", or "score" where the tasks have several metrics."""
    names = set(metrics.values())
    return "score" if len(names) > 1 else _lower(metric(next(iter(names), "accuracy")))


def capitalised(text: str) -> str:
    """Text that begins with a capital."""
    return text[:1].upper() + text[1:]


def score_in_short(metrics: Mapping[str, str]) -> str:
    """The same for a figure's axis: "accuracy (%)" or "score (own metrics)"."""
    names = set(metrics.values())
    if len(names) > 1:
        return "score (own metrics)"
    found = next(iter(names), "accuracy")
    return _lower(metric_with_unit(found))


def _lower(name: str) -> str:
    """A metric's name within a sentence; names of people and F1 keep their capitals."""
    return (
        name
        if name.startswith(("F1", "Matthews", "Pearson", "Spearman"))
        else (name[:1].lower() + name[1:])
    )


def label_word(noise_kind: str) -> str:
    """What a kind of noise changes: "label" or "caption"."""
    return "caption" if noise_kind.startswith("caption") else "label"


def percent(level: float) -> str:
    """A noise level or a share: "5 %", "2.5 %"."""
    return f"{level:g} %"


def rows_used(fraction: float) -> str:
    """How much a head was trained on: "10 % of the training rows"."""
    return f"{percent(fraction)} of the training rows"


def levels(values: Sequence[float]) -> str:
    """Noise levels in one phrase: "0, 5 and 10 %"."""
    words = [f"{value:g}" for value in values]
    return f"{join(words)} %" if words else "none"


def join(words: Sequence[str], many: int | None = None) -> str:
    """Words in one phrase: "a, b and c"; beyond `many` of them, "a, b and 7 more"."""
    if many is not None and len(words) > many:
        return f"{', '.join(words[:many])} and {len(words) - many} more"
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def mean_of(members: Sequence[str], kind: str = "task") -> str:
    """What an average is over: "mean of 3 tasks: a, b and c"."""
    if len(members) == 1:
        return f"one {kind}: {members[0]}"
    return f"mean of {len(members)} {kind}s: {join(members, _MANY)}"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Such as "1 seed", "3 seeds"; the plural where it is not the noun and an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def number(value: float, digits: int = 1) -> str:
    """A number with a true minus sign; never "-0.0"."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", "−")


def signed(value: float, digits: int = 1) -> str:
    """A change: "+0.4", "−1.2", "0.0"."""
    text = number(value, digits)
    return f"+{text}" if float(text.replace("−", "-")) > 0 else text


def interval(of: Interval, digits: int = 1, sign: bool = False) -> str:
    """Such as "97.1 [96.0, 98.2]", or the mean alone when there is no interval."""
    write = signed if sign else number
    mean = write(of.mean, digits)
    if of.low is None or of.high is None:
        return mean
    return f"{mean} [{write(of.low, digits)}, {write(of.high, digits)}]"


def correlation(of: Correlation) -> str:
    """Such as "r = −0.62", or that there is none.

    Without its interval: points of a report differ in noise and share seeds, so they are not
    independent, and the interval would be too narrow.
    """
    if of.n < LEAST_POINTS:
        return f"no correlation of fewer than {LEAST_POINTS}"
    if of.r is None:
        return "no correlation defined"
    return f"r = {signed(of.r, 2)}"

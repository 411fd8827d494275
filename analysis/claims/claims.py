"""The published claims, each as a small declared test.

Takes a `Readout`, gives verdicts. A claim says where it was published, what is compared to test it
here, and what it cannot be tested without; how a verdict follows is declared in `verdicts.py`.
Where the papers give the numbers of the same comparison, they stand beside it: one run each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from analysis import wording
from analysis.averages import Average
from analysis.claims import published
from analysis.claims.contrasts import CLEAN, SLIGHT, Evidence, Part, Side
from analysis.claims.verdicts import Claim, Verdict, judge
from analysis.readout import Readout
from analysis.schemas import PREPROCESSING, REGULARISERS
from analysis.statistics import pearson

_PAPER = "arXiv:2309.17002"
_WHERE = {"id": "in-domain", "ood": "out-of-domain"}
Declared = tuple[Claim, Sequence[Part]]


def verdicts(readout: Readout) -> list[Verdict]:
    """Every published claim's verdict, those that cannot be tested here included."""
    evidence = Evidence(readout)
    declared: list[Declared] = [
        _slight_helps(evidence),
        _noise_hurts(evidence),
        _peak(evidence),
        *_space(evidence),
        *_order(evidence),
        *_gap(evidence),
        *_shares(evidence),
    ]
    return judge(declared)


def _named(levels: Sequence[float]) -> str:
    return f"{wording.levels(levels)} noise"


# -- noise -----------------------------------------------------------------------------------------


def _slight_helps(evidence: Evidence) -> Declared:
    method = evidence.readout.probe()
    slight, _ = _split(evidence, "id", method)
    parts = (
        evidence.part(f"{_named(slight)} − clean", 1, "id", _apart(method, slight, [CLEAN]))
        if slight
        else []
    )
    claim = Claim(
        "slight-noise-helps-id",
        "Slight noise (5-10 %) helps in-domain transfer",
        f"{_PAPER}, Figures 1a and 5a, section 3.2",
        f"ID accuracy of {wording.method(method)}, mean over tasks and slight levels, minus clean",
        "a clean level and one of at most 10 %, and an ID task finished at both",
        _papers("id", "lp", lambda x: _mean(x, (5, 10)) - x[0]),
    )
    return claim, parts


def _noise_hurts(evidence: Evidence) -> Declared:
    method = evidence.readout.probe()
    slight, heavy = _split(evidence, "ood", method)
    parts = [
        part
        for level in (*slight, *heavy)
        for part in evidence.part(
            f"{_named([level])} − clean", -1, "ood", _apart(method, [level], [CLEAN])
        )
    ]
    claim = Claim(
        "any-noise-hurts-ood",
        "Any noise hurts out-of-domain transfer",
        f"{_PAPER}, Figures 1b and 5c, section 3.2",
        f"OOD accuracy of {wording.method(method)}, mean over tasks, below clean at every level",
        "a clean and a noisy level, and an OOD task finished at both",
        _papers("ood", "lp", lambda x: max(x[level] - x[0] for level in x if level), "at best "),
    )
    return claim, parts


def _peak(evidence: Evidence) -> Declared:
    method = evidence.readout.probe()
    slight, heavy = _split(evidence, "id", method)
    others = [CLEAN, *heavy] if slight and heavy else []
    parts = [
        part
        for level in others
        for part in evidence.part(
            f"{_named(slight)} − {'clean' if level == CLEAN else _named([level])}",
            1,
            "id",
            _apart(method, slight, [level]),
        )
    ]
    claim = Claim(
        "id-peaks-at-5-10",
        "The in-domain gain peaks at 5-10 % noise",
        f"{_PAPER}, Figures 1a and 5a",
        f"ID accuracy of {wording.method(method)}: mean over slight levels above clean and above "
        "each heavier level",
        "a clean level, one of at most 10 % and a heavier one",
        _papers("id", "lp", lambda x: _mean(x, (5, 10)) - max(x[0], x[20], x[30])),
    )
    return claim, parts


def _split(evidence: Evidence, domain: str, method: str) -> tuple[list[float], list[float]]:
    """The slight and the heavier noise levels; none of either without a clean one."""
    levels = evidence.levels(domain, method)
    if CLEAN not in levels:
        return [], []
    return [x for x in levels if CLEAN < x <= SLIGHT], [x for x in levels if x > SLIGHT]


def _apart(method: str, first: Sequence[float], second: Sequence[float]) -> list[Side]:
    """The mean of a method over some levels minus that over others."""
    plus = [Side(1 / len(first), method, level) for level in first]
    return plus + [Side(-1 / len(second), method, level) for level in second]


# -- the feature space -----------------------------------------------------------------------------


def _space(evidence: Evidence) -> Iterator[Declared]:
    for measure, domain, figure in (("sve", "id", "5b"), ("lsvr", "ood", "5d")):
        found = evidence.readout.space(measure, domain=domain)
        yield _moves(evidence, measure, domain, figure, found)
        yield _correlates(evidence, measure, domain, figure, found)


def _moves(evidence: Evidence, measure: str, domain: str, figure: str, found: Average) -> Declared:
    noisy = sorted(level for level in found.levels if level != CLEAN)
    parts = (
        evidence.space_part(f"{_named([noisy[-1]])} − clean", 1, found, noisy[-1]) if noisy else []
    )
    own = [one for one in published.space(measure) if one.method == "lp"]
    claim = Claim(
        f"{measure}-moves",
        f"{measure.upper()} of the features rises with noise",
        f"{_PAPER}, Figure {figure}, section 3.3",
        f"{measure.upper()} of {domain.upper()} test features ({PREPROCESSING} preprocessing) at "
        f"the highest noise minus clean",
        f"features of {domain.upper()} test images at a clean and a noisy level",
        _listed(own, [one.levels[30.0] - one.levels[0.0] for one in own], 3),
    )
    return claim, parts


def _correlates(
    evidence: Evidence, measure: str, domain: str, figure: str, found: Average
) -> Declared:
    method = evidence.readout.probe()
    accuracy = evidence.accuracy(domain, method)
    label = f"{measure.upper()} against {domain.upper()} accuracy, Fisher z of r over levels"
    own = [one for one in published.space(measure) if one.method == "lp"]
    scores = {
        one.corpus: one for one in published.curves(domain, "test_macro_f1") if one.method == "lp"
    }
    rs = [_r(one.levels, scores[one.corpus].levels) for one in own]
    claim = Claim(
        f"{measure}-correlates-with-{domain}",
        f"The higher the {measure.upper()}, the lower the {domain.upper()} accuracy",
        f"{_PAPER}, Figures {figure} and 5{'a' if domain == 'id' else 'c'}, section 3.3",
        f"Pearson's r between {measure.upper()} and {domain.upper()} accuracy of "
        f"{wording.method(method)} over noise levels, in each seed, below zero over seeds. The "
        "direction is that of the papers' own points",
        f"features and finished {domain.upper()} tasks at three noise levels or more",
        _listed(own, rs, 2, "r = "),
    )
    return claim, evidence.correlation(label, -1, found, accuracy)


def _r(x: Mapping[float, float], y: Mapping[float, float]) -> float:
    shared = sorted(x.keys() & y.keys())
    r = pearson([x[level] for level in shared], [y[level] for level in shared]).r
    assert r is not None, "published curves vary"
    return r


# -- methods ---------------------------------------------------------------------------------------


def _order(evidence: Evidence) -> Iterator[Declared]:
    for domain, figure in (("id", "5a"), ("ood", "5c")):
        for variant in evidence.readout.variants() or ("nmtune-paper",):
            pairs = ((variant, "mlp"), ("mlp", "lp"))
            parts = [part for a, b in pairs for part in _overall(evidence, domain, a, b)]
            claim = Claim(
                f"{variant}-mlp-lp-{domain}",
                f"{wording.method(variant)} beats MLP, and MLP beats LP, {_WHERE[domain]}",
                f"{_PAPER}, Figure {figure}, Table 1",
                f"{domain.upper()} accuracy, mean over tasks and all noise levels, of each minus "
                f"the next",
                f"NMTune, mlp and lp on the same {domain.upper()} tasks",
                _order_papers(domain),
            )
            yield claim, parts if len(parts) == len(pairs) else []


def _overall(evidence: Evidence, domain: str, first: str, second: str) -> list[Part]:
    levels = sorted(set(evidence.levels(domain, first)) & set(evidence.levels(domain, second)))
    label = f"{wording.method(first)} − {wording.method(second)}"
    sides = [
        Side(sign / len(levels), method, level)
        for sign, method in ((1, first), (-1, second))
        for level in levels
    ]
    return evidence.part(label, 1, domain, sides) if levels else []


def _order_papers(domain: str) -> str:
    curves = {(s.corpus, s.method): s for s in published.curves(domain, "test_macro_f1")}
    own = [one for one in curves.values() if one.method == "nmtune"]
    least = [
        min(
            _mean(one.levels) - _mean(curves[one.corpus, "mlp"].levels),
            _mean(curves[one.corpus, "mlp"].levels) - _mean(curves[one.corpus, "lp"].levels),
        )
        for one in own
    ]
    return _listed(own, least, 2, "macro F1, the smaller of both ")


def _gap(evidence: Evidence) -> Iterator[Declared]:
    for domain, figure in (("id", "1a"), ("ood", "1b")):
        for variant in evidence.readout.variants() or ("nmtune-paper",):
            levels = set(evidence.levels(domain, variant)) & set(evidence.levels(domain, "lp"))
            noisy = sorted(levels - {CLEAN})
            parts: list[Part] = []
            if noisy and CLEAN in levels:
                minus = [Side(-s.weight, s.method, s.level) for s in _apart("lp", noisy, [CLEAN])]
                sides = [*_apart(variant, noisy, [CLEAN]), *minus]
                label = f"what {_named(noisy)} costs, {wording.method(variant)} against LP"
                parts = evidence.part(label, 1, domain, sides)
            own = {s.corpus: s for s in published.curves(domain) if s.method == "nmtune"}
            plain = {s.corpus: s for s in published.curves(domain) if s.method == "lp"}
            apart = [_lost(own[c].levels) - _lost(plain[c].levels) for c in own]
            claim = Claim(
                f"{variant}-narrows-{domain}",
                f"{wording.method(variant)} narrows the gap between clean and noisy pre-training, "
                f"{_WHERE[domain]}",
                f"{_PAPER}, Figure {figure}, section 4",
                f"{domain.upper()} accuracy, mean over tasks: noisy levels minus clean under "
                f"NMTune, minus the same under LP",
                f"NMTune and lp on the same {domain.upper()} tasks at a clean and a noisy level",
                _listed(list(own.values()), apart, 2),
            )
            yield claim, parts


def _lost(levels: Mapping[float, float]) -> float:
    return _mean(levels, [level for level in levels if level]) - levels[0.0]


def _shares(evidence: Evidence) -> Iterator[Declared]:
    """What each regulariser adds to the others: whole NMTune minus NMTune without it."""
    readout = evidence.readout
    whole = [v for v in readout.variants() if readout.terms(v)] or ["nmtune-paper"]
    own = {(s.corpus, s.method): s for s in published.ablation()}
    full = [one for one in own.values() if one.method == "nmtune[mse+cov+svd]"]
    for variant in whole:
        for term in REGULARISERS:
            rest = "+".join(name for name in REGULARISERS if name != term)
            without = _without(readout, variant, term)
            parts = [] if without is None else _overall(evidence, "id", variant, without)
            apart = [
                _mean(one.levels) - _mean(own[one.corpus, f"nmtune[{rest}]"].levels) for one in full
            ]
            claim = Claim(
                f"{variant}-share-of-{term}",
                f"{wording.method(variant)}: the {term.upper()} regulariser adds to the others",
                f"{_PAPER}, Table 16",
                "ID accuracy, mean over tasks and noise levels, of NMTune minus the same without "
                f"{term.upper()}",
                f"a method with the head of {variant} and a weight of 0 for {term} alone",
                _listed(full, apart, 2),
            )
            yield claim, parts


def _without(readout: Readout, variant: str, term: str) -> str | None:
    """The method of the same head that lacks this regulariser and no other."""
    rest, head = set(REGULARISERS) - {term}, readout.head(variant)
    for method in readout.methods():
        if readout.terms(method) == rest and readout.head(method) == head:
            return method
    return None


# -- the papers' numbers ---------------------------------------------------------------------------


def _papers(
    domain: str, method: str, value: Callable[[Mapping[float, float]], float], word: str = ""
) -> str:
    own = [one for one in published.curves(domain) if one.method == method]
    return _listed(own, [value(one.levels) for one in own], 2, word)


def _listed(
    own: Sequence[published.Series], values: Sequence[float], digits: int, word: str = ""
) -> str:
    return "; ".join(
        f"{word}{wording.signed(value, digits)} ({one.place})"
        for one, value in zip(own, values, strict=True)
    )


def _mean(of: Mapping[float, float], levels: Sequence[float] | None = None) -> float:
    chosen = list(of) if levels is None else levels
    return sum(of[level] for level in chosen) / len(chosen)

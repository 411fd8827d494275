"""The published claims, each as a small declared test.

Takes a `Readout`, gives verdicts. A claim says where it was published, what is compared to test it
here, and which levels and methods the test needs. `verdicts.py` declares how a verdict follows.
Where the papers give numbers for the same comparison, the claim quotes them: one run each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from analysis import wording
from analysis.averages import Average
from analysis.claims import own, published
from analysis.claims.contrasts import Comparison, Contrasts, Side
from analysis.claims.verdicts import Claim, Verdict, judge
from analysis.readout import Readout
from analysis.schemas import CLEAN, PREPROCESSING, REGULARISERS, SLIGHT
from analysis.statistics import LEAST_POINTS, pearson

_PAPER = "arXiv:2309.17002"
_WHERE = {"id": "in-domain", "ood": "out-of-domain"}
Declared = tuple[Claim, Sequence[Comparison]]


def verdicts(readout: Readout) -> list[Verdict]:
    """The verdict on every published claim, also on those that cannot be tested here.

    If the experiment registered claims, the others get none: see `judge`.
    """
    found, registered = declared(readout), readout.question.registered()
    known = {claim.id for claim, _ in found}
    lost = [name for name in registered or () if name not in known]  # of a method without cells
    return judge(
        [*found, *((_lost(name), ()) for name in lost)],
        family=registered,
        scope=readout.question.scope,
    )


def declared(readout: Readout) -> list[Declared]:
    """Every published claim with the comparisons that test it; none if it cannot be tested."""
    contrasts = Contrasts(readout)
    noise = [_slight_helps(contrasts), _noise_hurts(contrasts), _peak(contrasts)]
    kinds: dict[str, Iterable[Declared]] = {
        "What noise does to downstream tasks": noise,
        "What noise does to the feature space": _space(contrasts),
        "Methods against each other": _order(contrasts),
        "Whether NMTune narrows the gap": _gap(contrasts),
        "What each regulariser adds": _shares(contrasts),
        "Claims of your own": [own.declared(one, contrasts) for one in readout.own_claims],
    }
    return [
        (replace(claim, kind=kind), comparisons)
        for kind, found in kinds.items()
        for claim, comparisons in found
    ]


def _lost(name: str) -> Claim:
    """A registered claim that the results do not give, but which still counts."""
    needs = "the method and its weights in the claim's name"
    return Claim(name, f"Registered claim {name}", "the experiment file", "none", needs)


def _score(contrasts: Contrasts, domain: str) -> str:
    """What a domain's averages are of: "ID accuracy", or "ID score (...)"."""
    return f"{domain.upper()} {wording.score(contrasts.readout.metrics(domain))}"


def _noise(levels: Sequence[float]) -> str:
    return f"{wording.levels(levels)} noise"


# -- noise -----------------------------------------------------------------------------------------


def _slight_helps(contrasts: Contrasts) -> Declared:
    method = contrasts.readout.probe()
    slight, _ = _split(contrasts, "id", method)
    comparisons = (
        contrasts.of_scores(
            f"{_noise(slight)} minus clean, {wording.method(method)}, ID",
            1,
            "id",
            _difference(method, slight, [CLEAN]),
        )
        if slight
        else []
    )
    claim = Claim(
        "slight-noise-helps-id",
        "Slight noise (5-10 %) helps in-domain transfer",
        f"{_PAPER}, Figures 1a and 5a, section 3.2",
        f"{_score(contrasts, 'id')} of {wording.method(method)}, mean over tasks and slight "
        f"levels, minus clean",
        "a clean level and one of at most 10 %, and an ID task finished at both",
        _published("id", "lp", lambda x: _mean(x, (5, 10)) - x[0]),
    )
    return claim, comparisons


def _noise_hurts(contrasts: Contrasts) -> Declared:
    method = contrasts.readout.probe()
    slight, heavy = _split(contrasts, "ood", method)
    comparisons = [
        comparison
        for level in (*slight, *heavy)
        for comparison in contrasts.of_scores(
            f"{_noise([level])} minus clean, {wording.method(method)}, OOD",
            -1,
            "ood",
            _difference(method, [level], [CLEAN]),
        )
    ]
    claim = Claim(
        "any-noise-hurts-ood",
        "Any noise hurts out-of-domain transfer",
        f"{_PAPER}, Figures 1b and 5c, section 3.2",
        f"{_score(contrasts, 'ood')} of {wording.method(method)}, mean over tasks, below clean at "
        f"every level",
        "a clean and a noisy level, and an OOD task finished at both",
        _published("ood", "lp", lambda x: max(x[level] - x[0] for level in x if level), "at best "),
    )
    return claim, comparisons


def _peak(contrasts: Contrasts) -> Declared:
    method = contrasts.readout.probe()
    slight, heavy = _split(contrasts, "id", method)
    others = [CLEAN, *heavy] if slight and heavy else []
    comparisons = [
        comparison
        for level in others
        for comparison in contrasts.of_scores(
            f"{_noise(slight)} minus {'clean' if level == CLEAN else _noise([level])}, "
            f"{wording.method(method)}, ID",
            1,
            "id",
            _difference(method, slight, [level]),
        )
    ]
    claim = Claim(
        "id-peaks-at-5-10",
        "The in-domain gain peaks at 5-10 % noise",
        f"{_PAPER}, Figures 1a and 5a",
        f"{_score(contrasts, 'id')} of {wording.method(method)}: mean over slight levels above "
        f"clean and above each heavier level",
        "a clean level, one of at most 10 % and a heavier one",
        _published("id", "lp", lambda x: _mean(x, (5, 10)) - max(x[0], x[20], x[30])),
    )
    return claim, comparisons


def _split(contrasts: Contrasts, domain: str, method: str) -> tuple[list[float], list[float]]:
    """The slight and the heavier noise levels; both empty when no clean level was measured."""
    levels = contrasts.levels(domain, method)
    if CLEAN not in levels:
        return [], []
    return [x for x in levels if CLEAN < x <= SLIGHT], [x for x in levels if x > SLIGHT]


def _difference(method: str, first: Sequence[float], second: Sequence[float]) -> list[Side]:
    """The sides of a comparison: a method's mean over some levels minus its mean over others."""
    plus = [Side(1 / len(first), method, level) for level in first]
    return plus + [Side(-1 / len(second), method, level) for level in second]


# -- the feature space -----------------------------------------------------------------------------


def _space(contrasts: Contrasts) -> Iterator[Declared]:
    for measure, domain, figure in (("sve", "id", "5b"), ("lsvr", "ood", "5d")):
        found = contrasts.readout.feature_space(measure, domain=domain)
        yield _moves(contrasts, measure, domain, figure, found)
        yield _correlates(contrasts, measure, domain, figure, found)


def _moves(
    contrasts: Contrasts, measure: str, domain: str, figure: str, found: Average
) -> Declared:
    noisy = sorted(level for level in found.levels if level != CLEAN)
    comparisons = (
        contrasts.of_feature_space(
            f"{_noise([noisy[-1]])} minus clean, {measure.upper()} of {domain.upper()} features",
            1,
            found,
            noisy[-1],
        )
        if noisy
        else []
    )
    own = [one for one in published.space(measure) if one.method == "lp"]
    claim = Claim(
        f"{measure}-moves",
        f"{measure.upper()} of {_WHERE[domain]} features rises with noise",
        f"{_PAPER}, Figure {figure}, section 3.3",
        f"{measure.upper()} of {domain.upper()} test features ({PREPROCESSING} preprocessing) at "
        f"the highest noise minus clean",
        f"features of {domain.upper()} test samples at a clean and a noisy level",
        _quoted(own, [one.levels[30.0] - one.levels[0.0] for one in own], 3),
    )
    return claim, comparisons


def _correlates(
    contrasts: Contrasts, measure: str, domain: str, figure: str, found: Average
) -> Declared:
    method = contrasts.readout.probe()
    average, score = contrasts.scores(domain, method), _score(contrasts, domain)
    label = f"{measure.upper()} against {score}, Fisher z of r over levels"
    own = [one for one in published.space(measure) if one.method == "lp"]
    scores = {
        one.corpus: one for one in published.curves(domain, "test_macro_f1") if one.method == "lp"
    }
    rs = [_correlation(one.levels, scores[one.corpus].levels) for one in own]
    claim = Claim(
        f"{measure}-correlates-with-{domain}",
        f"The higher the {measure.upper()}, the lower the {score}",
        f"{_PAPER}, Figures {figure} and 5{'a' if domain == 'id' else 'c'}, section 3.3",
        f"Pearson's r between {measure.upper()} and {score} of {wording.method(method)} over "
        "noise levels, in each seed, below zero over seeds. The "
        "direction is that of the papers' own points",
        f"features and finished {domain.upper()} tasks at {LEAST_POINTS} noise levels or more",
        _quoted(own, rs, 2, "r = "),
    )
    return claim, contrasts.of_correlation(label, -1, found, average)


def _correlation(x: Mapping[float, float], y: Mapping[float, float]) -> float:
    shared = sorted(x.keys() & y.keys())
    r = pearson([x[level] for level in shared], [y[level] for level in shared]).r
    assert r is not None, "published curves vary"
    return r


# -- methods ---------------------------------------------------------------------------------------


def _order(contrasts: Contrasts) -> Iterator[Declared]:
    """NMTune over MLP over LP, in contrasts that differ in one thing each.

    NMTune and MLP differ in the regularisers and, in the authors' code, in the head. So NMTune is
    compared with its control, and the head of the control with that of MLP.
    """
    readout = contrasts.readout
    for domain, figure in (("id", "5a"), ("ood", "5c")):
        for variant in readout.nmtune_variants() or ("nmtune-paper",):
            control = readout.control(variant)
            name = wording.method(variant)
            claim = Claim(
                f"{variant}-regularisers-help-{domain}",
                f"The regularisers of {name} help {_WHERE[domain]}",
                f"{_PAPER}, Figure {figure}, Table 1",
                f"{_score(contrasts, domain)}, mean over tasks and all noise levels, of {name} "
                f"minus its control ({wording.method(control) if control else 'without them'}): "
                f"head, views and budget are equal",
                f"NMTune and its control on the same {domain.upper()} tasks",
                _published_order(domain, "nmtune", "mlp"),
            )
            yield claim, _overall(contrasts, domain, variant, control) if control else []
            if control and control != "mlp" and "mlp" in readout.methods():
                yield _head(contrasts, domain, name, control)
        claim = Claim(
            f"mlp-beats-lp-{domain}",
            f"MLP beats LP {_WHERE[domain]}",
            f"{_PAPER}, Figure {figure}, Table 1",
            f"{_score(contrasts, domain)}, mean over tasks and all noise levels, of MLP minus LP",
            f"mlp and lp on the same {domain.upper()} tasks",
            _published_order(domain, "mlp", "lp"),
        )
        yield claim, _overall(contrasts, domain, "mlp", "lp")


def _head(contrasts: Contrasts, domain: str, name: str, control: str) -> Declared:
    """What the head of an NMTune adds to that of MLP, both without regularisers."""
    claim = Claim(
        f"{control}-beats-mlp-{domain}",
        f"The head of {name} alone beats that of MLP {_WHERE[domain]}",
        "not published: part of NMTune against MLP in the authors' code",
        f"{_score(contrasts, domain)}, mean over tasks and all noise levels, of "
        f"{wording.method(control)} minus MLP",
        f"the control of {name} and mlp on the same {domain.upper()} tasks",
    )
    return claim, _overall(contrasts, domain, control, "mlp")


def _overall(contrasts: Contrasts, domain: str, first: str, second: str) -> list[Comparison]:
    levels = sorted(set(contrasts.levels(domain, first)) & set(contrasts.levels(domain, second)))
    against = _against(contrasts.readout, first, second)
    label = f"{against}, {domain.upper()}, mean over levels"
    sides = [
        Side(sign / len(levels), method, level)
        for sign, method in ((1, first), (-1, second))
        for level in levels
    ]
    return contrasts.of_scores(label, 1, domain, sides) if levels else []


def _against(readout: Readout, first: str, second: str) -> str:
    """Such as "NMTune (released) minus its control"."""
    other = "its control" if second == readout.control(first) else wording.method(second)
    return f"{wording.method(first)} minus {other}"


def _published_order(domain: str, first: str, second: str) -> str:
    curves = {(s.corpus, s.method): s for s in published.curves(domain, "test_macro_f1")}
    own = [one for one in curves.values() if one.method == first]
    differences = [_mean(one.levels) - _mean(curves[one.corpus, second].levels) for one in own]
    return _quoted(own, differences, 2, "macro F1 ")


def _gap(contrasts: Contrasts) -> Iterator[Declared]:
    for domain, figure in (("id", "1a"), ("ood", "1b")):
        for variant in contrasts.readout.nmtune_variants() or ("nmtune-paper",):
            control, name = contrasts.readout.control(variant), wording.method(variant)
            claim = Claim(
                f"{variant}-narrows-{domain}",
                f"The regularisers of {name} narrow the gap between clean and noisy pre-training "
                f"{_WHERE[domain]}",
                f"{_PAPER}, Figure {figure}, section 4 (against LP)",
                f"{_score(contrasts, domain)}, mean over tasks: noisy levels minus clean under "
                f"{name}, minus the same under its control",
                f"NMTune and its control on the same {domain.upper()} tasks at a clean and a noisy "
                f"level",
                _published_gap(domain),
            )
            yield claim, _narrows(contrasts, domain, variant, control) if control else []


def _narrows(contrasts: Contrasts, domain: str, variant: str, control: str) -> list[Comparison]:
    levels = set(contrasts.levels(domain, variant)) & set(contrasts.levels(domain, control))
    noisy = sorted(levels - {CLEAN})
    if not noisy or CLEAN not in levels:
        return []
    minus = [Side(-s.weight, s.method, s.level) for s in _difference(control, noisy, [CLEAN])]
    return contrasts.of_scores(
        f"what {_noise(noisy)} costs, {_against(contrasts.readout, variant, control)}, "
        f"{domain.upper()}",
        1,
        domain,
        [*_difference(variant, noisy, [CLEAN]), *minus],
    )


def _published_gap(domain: str) -> str:
    curves = {(s.corpus, s.method): s for s in published.curves(domain, "test_macro_f1")}
    own = [one for one in curves.values() if one.method == "nmtune"]
    differences = [
        _cost_of_noise(one.levels) - _cost_of_noise(curves[one.corpus, "mlp"].levels) for one in own
    ]
    return _quoted(own, differences, 2, "macro F1, against MLP ")


def _cost_of_noise(levels: Mapping[float, float]) -> float:
    return _mean(levels, [level for level in levels if level]) - levels[0.0]


def _shares(contrasts: Contrasts) -> Iterator[Declared]:
    """What each regulariser adds to the others: full NMTune minus NMTune without it."""
    readout = contrasts.readout
    variants = [v for v in readout.nmtune_variants() if readout.regularisers(v)] or ["nmtune-paper"]
    own = {(s.corpus, s.method): s for s in published.ablation()}
    full = [one for one in own.values() if one.method == "nmtune[mse+cov+svd]"]
    for variant in variants:
        for term in REGULARISERS:
            rest = "+".join(name for name in REGULARISERS if name != term)
            without = _without(readout, variant, term)
            comparisons = [] if without is None else _overall(contrasts, "id", variant, without)
            differences = [
                _mean(one.levels) - _mean(own[one.corpus, f"nmtune[{rest}]"].levels) for one in full
            ]
            claim = Claim(
                f"{variant}-share-of-{term}",
                f"{wording.method(variant)}: the {term.upper()} regulariser adds to the others",
                f"{_PAPER}, Table 16",
                f"{_score(contrasts, 'id')}, mean over tasks and noise levels, of NMTune minus the "
                f"same without "
                f"{term.upper()}",
                f"a method with the head of {variant} and a weight of 0 for {term} alone",
                _quoted(full, differences, 2),
            )
            yield claim, comparisons


def _without(readout: Readout, variant: str, term: str) -> str | None:
    """The method with the same head that lacks this regulariser alone; None if there is none."""
    rest, head = set(REGULARISERS) - {term}, readout.head(variant)
    for method in readout.methods():
        if readout.regularisers(method) == rest and readout.head(method) == head:
            return method
    return None


# -- the papers' numbers ---------------------------------------------------------------------------


def _published(
    domain: str, method: str, value: Callable[[Mapping[float, float]], float], prefix: str = ""
) -> str:
    own = [one for one in published.curves(domain) if one.method == method]
    return _quoted(own, [value(one.levels) for one in own], 2, prefix)


def _quoted(
    own: Sequence[published.Series], values: Sequence[float], digits: int, prefix: str = ""
) -> str:
    """The papers' values in a sentence, each with the curve it is of."""
    return "; ".join(
        f"{prefix}{wording.signed(value, digits)} ({one.title})"
        for one, value in zip(own, values, strict=True)
    )


def _mean(of: Mapping[float, float], levels: Sequence[float] | None = None) -> float:
    chosen = list(of) if levels is None else levels
    return sum(of[level] for level in chosen) / len(chosen)

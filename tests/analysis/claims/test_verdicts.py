"""Promises of the verdicts: earned over seeds, never from one, with what would decide."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from analysis import wording
from analysis.claims import published
from analysis.claims.claims import verdicts
from analysis.claims.contrasts import Comparison, Contrasts, Side
from analysis.claims.verdicts import Claim, Verdict, judge
from analysis.readout import Readout
from analysis.report import text as as_text
from analysis.report import verdicts as verdict_text
from analysis.report.findings import findings
from analysis.schemas import CELLS_SCHEMA, PREDICTIONS_SCHEMA, SPECTRA_SCHEMA
from analysis.statistics import directed_p, holm
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.plan.power import claims_tested

Make = Callable[..., Readout]
CLAIM = Claim("c", "A claim", "somewhere", "a test", "data")


def by_id(found: list[Verdict]) -> dict[str, Verdict]:
    return {one.claim.id: one for one in found}


def comparison(
    *values: float, direction: int = 1, samples: Mapping[str, Any] | None = None
) -> Comparison:
    return Comparison("a − b", "points", direction, dict(enumerate(values)), samples or {})


def changed(readout: Readout, change: Callable[[dict[str, Any]], None], **tables: Any) -> Readout:
    rows = readout.cells.to_pylist()
    for row in rows:
        change(row)
    cells = pa.Table.from_pylist(rows, schema=CELLS_SCHEMA)
    given = {"spectra": readout.spectra, **tables}
    return Readout(readout.experiment, readout.question, cells, **given)


# -- statistics ------------------------------------------------------------------------------------


def test_holm_is_the_textbooks() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_p_values_reject_as_often_as_they_say() -> None:
    draws = np.random.default_rng(3).standard_normal((4000, 4))
    share = np.mean([directed_p(list(row), 1) < 0.1 for row in draws])
    assert 0.035 < share < 0.065  # the two-sided p is not halved
    assert directed_p([1.0, 1.1, 0.9], -1) == 1.0
    assert directed_p([1.0], 1) == 1.0


# -- verdicts --------------------------------------------------------------------------------------


def test_one_seed_never_gives_a_verdict(make: Make) -> None:
    found = verdicts(make(seeds=(0,), jitter=0.0))
    assert {one.decision for one in found} == {"undecided"}
    measured = [one for one in found if one.comparisons]
    assert measured
    assert all("a verdict needs at least 3" in one.reason for one in measured)


def test_a_clear_effect_is_supported_and_its_opposite_is_not() -> None:
    values = (1.0, 1.1, 0.9, 1.05)
    yes, no = judge([(CLAIM, [comparison(*values)]), (CLAIM, [comparison(*values, direction=-1)])])
    assert (yes.decision, no.decision) == ("supported", "not supported")
    assert "rules the claim out" in no.reason


def test_a_negligible_effect_is_none_however_sure() -> None:
    (found,) = judge([(CLAIM, [comparison(0.02, 0.021, 0.019, 0.02)])])
    assert found.decision == "not supported"


def test_every_comparison_must_hold() -> None:
    sure = comparison(1.0, 1.1, 0.9, 1.05)
    (found,) = judge([(CLAIM, [sure, comparison(1.0, -1.1, 0.9, -1.0)])])
    assert found.decision == "undecided"
    (found,) = judge([(CLAIM, [sure, comparison(-1.0, -1.1, -0.9, -1.0)])])
    assert found.decision == "not supported"


def test_more_claims_ask_for_more() -> None:
    weak = (CLAIM, [comparison(1.0, 1.3, 0.7)])
    (alone,) = judge([weak])
    crowd = judge([weak] * 20)
    assert alone.decision == "supported"
    assert {one.decision for one in crowd} == {"undecided"}


def test_chance_in_the_test_samples_can_withhold_a_verdict() -> None:
    values = (1.0, 1.1, 0.9, 1.05)
    few = np.array([[100.0] * 3 + [-100.0] * 2 + [0.0] * (95)] * 4)
    (found,) = judge([(CLAIM, [comparison(*values, samples={"t": few})])])
    assert found.decision == "undecided"
    assert "test samples" in found.reason


def test_an_undecided_claim_says_how_many_seeds_would_decide(make: Make) -> None:
    found = by_id(verdicts(make(jitter=2.0)))["slight-noise-helps-id"]
    assert found.decision == "undecided"
    assert "seeds would be needed" in found.reason
    assert "to show 0.5 points" in found.reason
    assert "after correction" in found.reason


def test_the_truth_of_a_synthetic_experiment_is_found(make: Make) -> None:
    found = by_id(verdicts(make(jitter=0.05, seeds=(0, 1, 2, 3, 4))))
    words = {name: one.decision for name, one in found.items()}
    assert words["slight-noise-helps-id"] == "not supported"  # it only ever loses there
    assert words["any-noise-hurts-ood"] == "supported"
    assert words["id-peaks-at-5-10"] == "not supported"
    assert words["sve-moves"] == words["lsvr-moves"] == "supported"
    assert words["nmtune-paper-regularisers-help-id"] == words["mlp-beats-lp-id"] == "supported"
    assert words["nmtune-released-regularisers-help-id"] == "not supported"  # below MLP
    assert words["nmtune-paper-narrows-ood"] == "not supported"  # 1.4 times the slope


def test_a_head_is_not_taken_for_a_regulariser(make: Make) -> None:
    """NMTune (released) beats MLP by its head alone: its control does too, by as much."""
    control = "nmtune-released-control"
    readout = make(
        methods=("lp", "mlp", "nmtune-released", control),
        controls={"nmtune-released": control},
        seeds=range(5),
        jitter=0.02,
    )

    def lifted(row: dict[str, Any]) -> None:
        lift = {"mlp": 0.8, "nmtune-released": 2.0, control: 2.0}.get(row["method"], 0.0)
        row["test_metric"] = 90 + lift + 0.05 * math.sin(sum(map(ord, row["address"])))

    found = by_id(verdicts(changed(readout, lifted)))
    assert found["nmtune-released-regularisers-help-id"].decision != "supported"
    assert found[f"{control}-beats-mlp-id"].decision == "supported"
    assert not any(name.startswith(f"{control}-regularisers") for name in found)


def test_a_gain_at_slight_noise_is_found_where_there_is_one(make: Make) -> None:
    def helped(row: dict[str, Any]) -> None:
        row["test_metric"] += 3.0 if row["noise"] in (5.0, 10.0) else 0.0

    found = by_id(verdicts(changed(make(jitter=0.05, seeds=(0, 1, 2, 3, 4)), helped)))
    assert found["slight-noise-helps-id"].decision == "supported"
    assert found["id-peaks-at-5-10"].decision == "supported"
    assert found["any-noise-hurts-ood"].decision == "not supported"


def test_what_was_not_measured_says_what_it_needs(make: Make) -> None:
    found = by_id(verdicts(make(methods=("lp",), ood_tasks=(), levels=(0.0, 30.0))))
    for name in ("slight-noise-helps-id", "any-noise-hurts-ood", "mlp-beats-lp-id"):
        assert (found[name].decision, found[name].comparisons) == ("undecided", ())
        assert "it needs" in found[name].reason


def test_a_regularisers_share_is_read_from_the_weights_not_the_names(make: Make) -> None:
    readout = make(methods=("lp", "mlp", "nmtune-paper", "my-own"), jitter=0.05, seeds=range(5))

    def weighed(row: dict[str, Any]) -> None:
        row["head"] = "linear" if row["method"] == "lp" else "paper"
        if row["method"] in ("nmtune-paper", "my-own"):
            row |= {"mse": 0.01, "cov": 0.01, "svd": 0.01}
        if row["method"] == "my-own":
            row["cov"] = 0.0

    found = by_id(verdicts(changed(readout, weighed)))
    assert found["nmtune-paper-share-of-cov"].decision == "supported"  # +1.1 against +0.3
    assert not found["nmtune-paper-share-of-mse"].comparisons


def with_predictions(readout: Readout, right: float) -> Readout:
    """The readout with predictions: every cell of level 0 has a share of `right` more correct."""
    rows = []
    for row in readout.cells.to_pylist():
        if row["fraction"] == readout.fraction:
            correct = np.arange(200) < (150 + 200 * right * (row["noise"] == 0))
            rows.append(
                {
                    **{name: row[name] for name in ("noise", "pretrain_seed", "task", "method")},
                    "tuning_seed": row["tuning_seed"],
                    "samples": f"set of {row['task']}",
                    "correct": correct.tolist(),
                }
            )
    table = pa.Table.from_pylist(rows, schema=PREDICTIONS_SCHEMA)
    return changed(readout, lambda row: None, predictions=table)


def test_predictions_are_paired_by_sample(make: Make) -> None:
    contrasts = Contrasts(with_predictions(make(seeds=(0, 1)), right=0.1))
    (found,) = contrasts.of_scores("", -1, "id", [Side(1, "lp", 10.0), Side(-1, "lp", 0.0)])
    assert len(found.samples) == 3
    total = sum(float(one.mean()) for one in found.samples.values())
    assert total == pytest.approx(-10.0)
    (nothing,) = Contrasts(make()).of_scores("", -1, "id", [Side(1, "lp", 10.0)])
    assert nothing.samples == {}


# -- as text ---------------------------------------------------------------------------------------


def test_markdown_holds_every_verdict_and_no_markup_of_strangers(make: Make) -> None:
    readout = make(title="What *is* <this>?")
    found = verdicts(readout)
    text = verdict_text.markdown(readout, found, "Sure.")
    assert "What \\*is\\* \\<this\\>?" in text
    for one in found:
        assert one.claim.sentence.split(",")[0] in text


def test_the_answer_in_short_counts_every_claim(make: Make) -> None:
    found = verdicts(make(methods=("lp",)))
    unmeasured = sum(not one.comparisons for one in found)
    told = verdict_text.count_sentence(found)
    assert told.startswith(f"Of {len(found)} claims, ")
    assert told.endswith(f"are undecided ({unmeasured} of them not measured).")


def test_claims_csv_has_every_claim_and_comparison(make: Make) -> None:
    found = verdicts(make())
    rows = list(verdict_text.rows(found))
    assert {row["claim"] for row in rows} == {one.claim.id for one in found}
    assert len(rows) == sum(max(len(one.comparisons), 1) for one in found)
    assert all(tuple(row) == verdict_text.COLUMNS for row in rows)


def test_latex_is_balanced_and_escaped(make: Make) -> None:
    readout = make(methods=("lp", "mlp", "nmtune-paper", "50%_&{odd}"))
    made = as_text.latex(readout, verdicts(readout))
    assert set(made) == {f"tables/{n}.tex" for n in ("scores-id", "scores-ood", "claims", "tasks")}
    for text in made.values():
        assert text.count(r"\begin{") == text.count(r"\end{") == 2
        assert "%" not in text.replace(r"\%", "").replace("% needs", "")
        body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
        heads = (
            next(x for x in text.splitlines() if x.endswith(r"\\")).replace(r"\&", "").count("&")
        )
        for line in body.splitlines()[1:]:
            assert line.replace(r"\&", "").count("&") == heads
            assert line.endswith(r"\\")
    assert r"50\%\_\&\{odd\}" in made["tables/scores-id.tex"]


# -- the papers' numbers ---------------------------------------------------------------------------


def test_the_published_numbers_are_all_there() -> None:
    assert len(published.rows()) == 1787
    curves = {(s.corpus, s.method): s.levels for s in published.curves("id")}
    assert curves["ImageNet-1K", "lp"] == {0: 73.535, 5: 74.122, 10: 73.229, 20: 72.614, 30: 71.43}
    assert curves["YFCC15M", "nmtune"][5.0] == 67.436
    assert len(list(published.ablation())) == 16


def test_published_curves_match_by_corpus_encoder_and_method(make: Make) -> None:
    from dataclasses import replace

    question = make().question
    same = replace(question, corpus="imagenet-1k", encoder="resnet50")
    curves = list(published.curves("id"))
    assert not any(published.matches(one, question, "lp") for one in curves)
    assert [one.corpus for one in curves if published.matches(one, same, "lp")] == ["ImageNet-1K"]
    assert any(published.matches(one, same, "nmtune-paper") for one in curves)
    assert not any(published.matches(one, same, "mlp") for one in curves)
    for changes in ({"noise_kind": "subset"}, {"fractions": (10.0,)}, {"corpus": "yfcc15m"}):
        other = replace(same, **changes)  # type: ignore[arg-type]
        assert not any(published.matches(one, other, "lp") for one in curves)


def test_a_task_is_judged_by_its_own_metric_and_the_page_names_it(make: Make) -> None:
    """By accuracy noise helps `digits`; by Matthews' correlation, its own metric, it hurts."""

    def change(row: dict[str, Any]) -> None:
        if row["task"] == "digits":
            row["metric"] = "matthews"
            row["test_metric"] = 50.0 - row["noise"] + row["pretrain_seed"] / 100
            row["test_accuracy"] = 50.0 + row["noise"]

    readout = changed(make(seeds=(0, 1, 2)), change)
    tasks = readout.scores("id", "lp").members
    assert "digits" in tasks
    alone = readout.scores("id", "lp", task="digits")
    assert alone.interval(10.0).mean < alone.interval(0.0).mean  # type: ignore[union-attr]
    claim = by_id(verdicts(readout))["slight-noise-helps-id"]
    assert all(one.samples is None for one in claim.comparisons)  # no sample has a correlation
    page = as_text.markdown(readout, verdicts(readout), [])
    named = wording.score(readout.metrics("id"))
    assert named.startswith("score (accuracy; Matthews correlation: digits")
    assert f"test {named} (%)" in page
    assert "test accuracy (%)" in page


def test_equal_values_are_not_tested_and_ask_for_no_seeds() -> None:
    """Heads that answer one class for every image differ by nothing, in every seed."""
    for value in (0.0, 0.7):
        (found,) = judge([(CLAIM, [comparison(*[value] * 4)])])
        assert found.decision == "undecided"
        assert (found.p_for, found.p_against) == (1.0, 1.0)
        assert "show no spread" in found.reason
        assert found.comparisons[0].needed is None


def test_the_plan_counts_the_claims_that_are_tested(make: Make) -> None:
    experiment = load.load()
    readout = make(
        seeds=(0, 1, 2),
        methods=tuple(experiment.tuning.methods),
        controls=experiment.tuning.controls,
    )
    tested = sum(bool(one.comparisons) for one in verdicts(readout))
    assert tested == claims_tested(build.build(experiment))


def test_sentences_and_claims_on_the_feature_space_have_one_sign(make: Make) -> None:
    """LSVR falls on ID features and rises on OOD features: every text names which it is of."""
    readout = make(seeds=(0, 1, 2))
    spectra = readout.spectra.to_pylist()
    for row in spectra:
        sign = 1 if row["domain"] == "ood" else -1
        row["sve"] = 3.0 - sign * 0.02 * row["noise"] + 0.001 * row["pretrain_seed"]
        row["lsvr"] = 2.0 + sign * 0.01 * row["noise"] + 0.001 * row["pretrain_seed"]
    table = pa.Table.from_pylist(spectra, schema=SPECTRA_SCHEMA)
    readout = changed(readout, lambda row: None, spectra=table)
    (text,) = (one.text for one in findings(readout) if one.heading == "Feature space")
    claims = by_id(verdicts(readout))
    for measure, domain in (("sve", "id"), ("lsvr", "ood")):
        words = f"{measure.upper()} of {domain.upper()} test features goes (.*?) → (.*?) "
        said = re.search(words, text)
        assert said is not None, text
        start, end = (float(word.split()[0].strip("[]")) for word in said.groups())
        (found,) = claims[f"{measure}-moves"].comparisons
        assert (end > start) == (found.seeds.mean > 0)
        sentence = claims[f"{measure}-moves"].claim.sentence
        assert wording.domain(domain).split()[0].lower() in sentence

"""Promises of registered claims: they alone share the correction and get a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from analysis.claims.claims import verdicts
from analysis.claims.contrasts import Comparison
from analysis.claims.verdicts import Claim, Verdict, judge
from analysis.readout import Readout
from analysis.registration import Registration, in_words, next_in_words
from analysis.report import text as as_text
from analysis.report import verdicts as verdict_text
from analysis.report.page import html_page
from analysis.statistics import directed_p, holm

Make = Callable[..., Readout]
SEEDS = 6
NAMES = tuple(f"c{at}" for at in range(15))
REGISTERED = NAMES[:3]
FIRST = Registration(["sve-moves", "any-noise-hurts-ood"], "2030-01-02T03:04:05+00:00", 0)
LATER = Registration(["sve-moves", "id-peaks-at-5-10"], "2030-02-02T03:04:05+00:00", 12)


def claimed(name: str, values: np.ndarray) -> tuple[Claim, list[Comparison]]:
    claim = Claim(name, f"Claim {name}", "somewhere", "a test", "data")
    return claim, [Comparison("a − b", "points", 1, dict(enumerate(values.tolist())))]


def registered(readout: Readout, *entries: Registration) -> Readout:
    return replace(readout, question=replace(readout.question, registrations=entries))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the number of seeds needed, which no decision reads and which takes most time."""
    monkeypatch.setattr("analysis.claims.verdicts._with_needed", lambda found, size: found)


def share(found: list[list[Verdict]], names: tuple[str, ...]) -> float:
    """In how many judgements any of these claims is supported."""
    hits = (any(one.decision == "supported" and one.claim.id in names for one in f) for f in found)
    return float(np.mean(list(hits)))


def test_the_family_wise_rate_of_registered_claims_is_bounded(quick: None) -> None:
    """Three registered claims of no effect among fifteen; the others have a clear one."""
    random = np.random.default_rng(5)
    true = np.where(np.isin(NAMES, REGISTERED), 0.0, 2.0)
    runs = 250
    draws = random.standard_normal((runs, len(NAMES), SEEDS)) * 0.3 + true[:, None]
    found = [judge(list(map(claimed, NAMES, run)), family=REGISTERED) for run in draws]
    margin = 1.65 * np.sqrt(0.05 * 0.95 / runs)
    assert share(found, REGISTERED) <= 0.05 + margin
    uncorrected = [any(directed_p(list(x), 1) < 0.05 for x in run[:3]) for run in draws]
    assert share(found, REGISTERED) < np.mean(uncorrected)
    assert share(found, NAMES) == share(found, REGISTERED)  # no other gets a verdict


def test_fewer_registered_claims_give_more_power_than_all(quick: None) -> None:
    """One claim of an effect, registered alone, with two others, or tested beside fourteen."""
    random = np.random.default_rng(6)
    true = np.where(np.isin(NAMES, "c0"), 0.45, 0.0)
    draws = random.standard_normal((100, len(NAMES), SEEDS)) * 0.3 + true[:, None]
    alone, three, all_of_them = (
        share([judge(list(map(claimed, NAMES, run)), family=family) for run in draws], ("c0",))
        for family in (("c0",), REGISTERED, None)
    )
    assert alone > three + 0.1 > all_of_them + 0.2


def test_the_family_and_no_other_claim_shares_the_correction() -> None:
    random = np.random.default_rng(7)
    claims = list(map(claimed, NAMES, random.standard_normal((15, SEEDS)) * 0.3 + 0.5))
    found = judge(claims, family=REGISTERED)
    raw = [directed_p(list(parts[0].values.values()), 1) for _, parts in claims]
    assert [one.p_for for one in found[:3]] == pytest.approx(holm(raw[:3]))
    assert [one.p_for for one in found[3:]] == pytest.approx(raw[3:])
    assert {one.decision for one in found[3:]} == {"exploratory"}
    assert all("not corrected" in one.reason for one in found[3:])
    assert [one.family for one in found] == [3] * 3 + [0] * 12
    assert {one.family for one in judge(claims)} == {15}


def test_a_registered_claim_without_results_still_counts() -> None:
    sure = claimed("sure", np.array([0.5, 0.6, 0.4, 0.55]))
    empty = (claimed("empty", np.zeros(0))[0], [])
    alone, _ = judge([sure, empty], family=["sure"])
    with_empty, none = judge([sure, empty], family=["sure", "empty"])
    assert alone.p_for is not None
    assert with_empty.p_for == pytest.approx(2 * alone.p_for)
    assert (none.decision, none.p_for) == ("undecided", None)
    (lost, _) = judge([sure, empty], family=["sure", "of-a-method-without-cells"])
    assert lost.p_for == with_empty.p_for


def test_the_report_shows_exploratory_claims_apart_and_when_claims_were_registered(
    make: Make,
) -> None:
    readout = registered(make(seeds=(0, 1, 2, 3), jitter=0.05), FIRST, LATER)
    found = verdicts(readout)
    judged, aside = verdict_text.split(found)
    assert sorted(one.claim.id for one in judged) == ["id-peaks-at-5-10", "sve-moves"]
    assert len(aside) == len(found) - 2
    told = verdict_text.tally(readout, found)
    assert told.startswith("Of 2 registered claims, ")
    assert f"{len(aside)} other claims are exploratory: no verdict." in told
    assert (
        "2 claims were registered on 2030-01-02 03:04:05 UTC, before any step was finished: "
        "sve-moves, any-noise-hurts-ood. Changed on 2030-02-02 03:04:05 UTC, after 12 steps were "
        "finished: added id-peaks-at-5-10; removed any-noise-hurts-ood."
    ) in told
    page = html_page(readout, found=found)
    heading = page.index(verdict_text.EXPLORATORY)
    assert page.index('id="claim-sve-moves"') < heading < page.index('id="claim-slight-noise')
    assert "the 2 registered claims" in page
    assert told.split(": sve")[0] in page
    text = as_text.markdown(readout, found, [])
    assert f"**{verdict_text.EXPLORATORY}**" in text
    rows = {row["claim"]: row for row in verdict_text.rows(found)}
    assert rows["sve-moves"]["correction"] == "Holm over 2 claims"
    assert rows["slight-noise-helps-id"]["correction"] == "none"
    assert rows["slight-noise-helps-id"]["verdict"] == "exploratory"
    assert "exploratory" in as_text.latex(readout, found)["tables/claims.tex"]


def test_without_registered_claims_all_share_the_correction(make: Make) -> None:
    readout = make(seeds=(0, 1, 2), jitter=0.05)
    removed = Registration(None, "2030-03-02T03:04:05+00:00", 40)
    for entries in ((), (FIRST, removed)):
        found = verdicts(registered(readout, *entries))
        assert "exploratory" not in {one.decision for one in found}
        assert found == verdicts(readout)
    assert "no claim is registered any more" in in_words([FIRST, removed])


def test_a_registered_claim_that_no_result_gives_is_not_dropped(make: Make) -> None:
    gone = Registration(["sve-moves", "nmtune-x-narrows-id"], FIRST.time, 0)
    found = {one.claim.id: one for one in verdicts(registered(make(), gone))}
    assert found["nmtune-x-narrows-id"].decision == "undecided"
    assert found["sve-moves"].family == 2


def test_a_next_entry_is_described_as_what_it_would_do() -> None:
    assert next_in_words([], FIRST) == (
        "registers 2 claims before any step was finished: sve-moves, any-noise-hurts-ood"
    )
    assert next_in_words([FIRST], LATER) == (
        "changes the registered claims after 12 steps were finished: added id-peaks-at-5-10; "
        "removed any-noise-hurts-ood"
    )

"""Promises of the record of registered claims: entries are only added, and every change is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.storage.folder import Folder
from orchestrator.cli import _run
from orchestrator.errors import StoreError, UserError
from orchestrator.experiment import load, registered
from orchestrator.experiment.model import Experiment
from orchestrator.plan import build
from orchestrator.plan.claims import candidates, check, warnings
from orchestrator.plan.power import claims_tested, power_line


def experiment(*claims: str, name: str = "demo", noise: str = "0,5,10,20") -> Experiment:
    sets = [f"name={name}", *([f"claims=[{', '.join(claims)}]"] if claims else [])]
    return load.load(overrides=sets, noise=noise, seeds="0,1,2")


def entries(root: Folder, name: str = "demo") -> list[tuple[list[str] | None, int]]:
    return [(one.claims, one.finished) for one in registered.history(root, name)]


def test_an_entry_is_added_for_every_change_and_for_nothing_else(tmp_path: Path) -> None:
    root = Folder.of(tmp_path)
    registered.register(experiment(), root, lambda: 0)
    assert entries(root) == []  # none was ever registered
    for claims, finished in (
        (("sve-moves", "lsvr-moves"), 0),
        (("lsvr-moves", "sve-moves"), 3),  # in another order: the same
        (("sve-moves",), 5),
        ((), 7),
        (("sve-moves",), 9),
    ):
        registered.register(experiment(*claims), root, lambda finished=finished: finished)
        registered.register(experiment("id-peaks-at-5-10", name="other"), root, lambda: 1)
    assert entries(root) == [
        (["sve-moves", "lsvr-moves"], 0),
        (["sve-moves"], 5),
        (None, 7),
        (["sve-moves"], 9),
    ]
    assert entries(root, "other") == [(["id-peaks-at-5-10"], 1)]


def test_two_drivers_that_register_at_once_both_keep_their_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Folder.of(tmp_path)
    with monkeypatch.context() as blind:
        blind.setattr(registered, "history", lambda root, name: [])
        registered.register(experiment("sve-moves"), root, lambda: 0)
        registered.register(experiment("lsvr-moves"), root, lambda: 0)
    assert sorted(claims or [] for claims, _ in entries(root)) == [["lsvr-moves"], ["sve-moves"]]


def test_a_damaged_entry_is_one_sentence_with_the_way_out(tmp_path: Path) -> None:
    root = Folder.of(tmp_path)
    registered.register(experiment("sve-moves"), root, lambda: 0)
    (entry,) = (tmp_path / registered.FOLDER / "demo").iterdir()
    entry.write_text("{}")
    with pytest.raises(StoreError, match=f"{entry.name} cannot be used .*put the file back"):
        registered.history(root, "demo")


def test_an_entry_that_somebody_has_changed_is_never_used(tmp_path: Path) -> None:
    root = Folder.of(tmp_path)
    registered.register(experiment("sve-moves"), root, lambda: 3)
    (entry,) = (tmp_path / registered.FOLDER / "demo").iterdir()
    whole = entry.read_text()
    for old, new in (("sve-moves", "lsvr-moves"), ("3", "0")):
        entry.write_text(whole.replace(old, new, 1))
        with pytest.raises(StoreError, match=r"\(it has changed since it was written\); put"):
            registered.register(experiment("sve-moves"), root, lambda: 0)


# -- the experiment file -------------------------------------------------------------------------


def test_registered_claims_change_no_fingerprint() -> None:
    plain, with_claims = build.build(experiment()), build.build(experiment("sve-moves"))
    assert {a: s.fingerprint for a, s in plain.steps.items()} == {
        a: s.fingerprint for a, s in with_claims.steps.items()
    }


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ("[slight-noise-help-id]", "did you mean slight-noise-helps-id"),
        ("[nmtune-papr-narrows-id]", "did you mean nmtune-paper-narrows-id"),
        ("[sve-moves, sve-moves]", "sve-moves named twice"),
        ("[]", "claims"),
    ],
)
def test_claims_that_cannot_be_registered_are_refused(claims: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        build.build(load.load(overrides=[f"claims={claims}"]))
    assert "\n" not in str(refused.value)


def test_claims_without_pre_training_are_refused() -> None:
    with pytest.raises(UserError, match="pre-trains nothing; leave claims out"):
        load.load("encoders-practical", overrides=["claims=[sve-moves]"])


def test_every_listed_claim_can_be_registered_and_untestable_ones_are_named() -> None:
    listed = candidates(build.build(experiment()))
    tested = [one.claim.id for one in listed if one.tested]
    assert len(tested) == claims_tested(build.build(experiment()))
    assert "nmtune-paper-regularisers-help-id" in tested
    whole = build.build(experiment(*tested))
    check(whole)
    assert list(warnings(whole)) == []
    (sentence,) = warnings(build.build(experiment("sve-moves", "id-peaks-at-5-10", noise="0,10")))
    assert sentence.startswith("claims: id-peaks-at-5-10 cannot be tested as planned")
    assert "a clean level, one of at most 10 % and a heavier one" in sentence


@pytest.mark.parametrize("source", ["demo", "ablation", "finetune", "digits-clip", "decide"])
@pytest.mark.parametrize("noise", ["0,5,10,20,30", "0,10", "0,30", "5,10,20", "0"])
def test_the_count_of_testable_claims_is_that_of_the_results(source: str, noise: str) -> None:
    plan = build.build(load.load(source, noise=noise, overrides=["claims=null"]))
    assert claims_tested(plan) == sum(one.tested for one in candidates(plan))


def test_the_power_is_that_of_the_registered_claims() -> None:
    line = power_line(build.build(experiment("sve-moves", "slight-noise-helps-id")))
    assert line is not None
    assert "9 in 80 % (2 registered claims share the correction)" in line


def test_plan_lists_the_ids_and_what_a_sweep_would_register(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["plan", "--noise", "0,10,20", "--set", "claims=[sve-moves]"]
    assert _run([*words, "--claims"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 17  # a correlation needs a fourth level
    assert [line.split()[1] for line in lines if line.startswith("*")] == ["sve-moves"]
    assert _run(words) == 0
    assert "registers 1 claim before any step was finished: sve-moves" in capsys.readouterr().out
    assert not (tmp_path / "nml-store").exists()  # a plan registers nothing

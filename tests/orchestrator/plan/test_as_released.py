"""Settings of the authors' code in a plan: what they leave as it is, and what cannot be planned."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.experiment import load
from orchestrator.plan import build

FEW = ("tasks=[digits]", "tuning.fractions=[100]")


def fingerprints(*overrides: str) -> dict[str, str]:
    made = build.build(load.load(noise="0", seeds="0", overrides=[*FEW, *overrides]))
    return {address: step.fingerprint for address, step in made.steps.items()}


def test_the_classes_of_label_noise_change_noisy_cells_alone() -> None:
    both = "tuning.label_noise=[0,20]"
    ours, theirs = fingerprints(both), fingerprints(both, "tuning.label_noise_classes=all")
    changed = {address for address in ours if ours[address] != theirs[address]}
    assert changed == {address for address in ours if "/label_noise=20/" in address}
    assert len(changed) == 5


def test_a_methods_setting_changes_its_own_cells_alone() -> None:
    setting = "tuning.methods.nmtune-released.residual=false"
    ours, theirs = fingerprints(), fingerprints(setting)
    changed = {address for address in ours if ours[address] != theirs[address]}
    own = ("/nmtune-released/", "/nmtune-released-control/")
    assert changed == {address for address in ours if any(name in address for name in own)}
    assert changed


def test_views_that_are_not_made_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"tuning.methods.lp.views is 3, and features.views.count is 2"
    ):
        fingerprints("tuning.methods.lp.views=3")
    table = str(tmp_path / "x.parquet")
    given = "encoders=[{kind: features, name: mine, files: {digits: " + table + "}}]"
    with pytest.raises(UserError, match="encoder mine gives features of the plain samples alone"):
        load.load(overrides=[*FEW, given, "tuning.methods.lp.views=1"])
    assert load.load(overrides=[*FEW, given, "tuning.methods.lp.views=0"]).encoders


def test_the_authors_methods_are_the_same_at_both_scales() -> None:
    theirs, small = load.load("as-released"), load.load("as-released-digits")
    assert theirs.tuning.methods == small.tuning.methods
    for one in (theirs, small):
        assert one.features.views.count == 2 * one.tuning.epochs, "no view comes twice"
    probe = theirs.tuning.methods["lp"].space
    assert (probe.lr, probe.weight_decay) == (0.01, 0.0001)
    assert {"dtd-train", "caltech101-top1"} <= set(theirs.tasks)
    assert not {"dtd", "caltech101"} & set(theirs.tasks)
    assert all(m.classifier_init == "kaiming_uniform" for m in theirs.tuning.methods.values())
    assert build.build(theirs).steps

"""`nml-orch diff`: two runs differ only in noise, or every other field is named."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs.contract import Outcome
from jobs.storage.folder import Folder
from orchestrator.errors import UserError
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.plan.plan import Plan
from orchestrator.results.compare import Comparison, compare
from orchestrator.store.store import Store

RUN = "digits/symmetric/resnet-small"
MADE = {"versions": {"torch": "2.11"}, "python": "3.11", "commit": "c0ffee", "dirty": False}


def planned(*overrides: str, seeds: str = "0,1") -> Plan:
    return build.build(load.load(overrides=overrides, noise="0,10", seeds=seeds))


def filled(
    root: Path,
    made: Plan,
    card: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] = MADE,
    kinds: tuple[str, ...] = ("corpus", "noise", "pretrain", "features"),
) -> Folder:
    """A store of the plan's steps; every encoder's weights are its own."""
    store = Store(Folder.of(root))
    store.prepare()
    for step in made.steps.values():
        if step.kind not in kinds:
            continue
        output = store.begin(step).output
        output.write_bytes("made.bin", step.address.encode())
        if step.kind == "pretrain":
            same = {"initial_weights_sha256": f"i{step.labels['seed']}", "order_sha256": "o"}
            output.write_json(
                "encoder.json", {**same, "weights_sha256": step.address, **(card or {})}
            )
        store.commit(step, Outcome(metrics={"m": float(len(step.address))}), provenance)
    return store.root


def compared(storage: Folder, a: str, b: str) -> Comparison:
    return compare(f"pretrain/{RUN}/{a}", f"pretrain/{RUN}/{b}", storage)


def paths(found: Comparison) -> set[str]:
    return {one.path for pair in found.pairs for one in pair.differs}


def test_two_levels_of_a_seed_differ_only_in_noise(tmp_path: Path) -> None:
    found = compared(filled(tmp_path, planned()), "noise=0/seed=0", "noise=10/seed=0")
    assert found.noise_alone
    assert found.verdict() == "These two runs differ only in noise."
    (pair,) = found.pairs
    assert [str(one) for one in pair.noise] == ["inputs.noise.spec.level: 0.0 -> 10.0"]
    assert {"card.initial_weights_sha256", "made_with.versions.torch"} <= set(pair.identical)
    assert "step.spec.recipe.schedule.lr" in pair.identical
    assert {one.path for one in pair.results} >= {
        "results.card.weights_sha256",
        "results.metrics.m",
    }
    assert pair.beside == ()


def test_two_seeds_differ_in_more_than_noise(tmp_path: Path) -> None:
    found = compared(filled(tmp_path, planned()), "noise=0/seed=0", "noise=0/seed=1")
    assert not found.noise_alone
    assert paths(found) == {"spec.seed", "card.initial_weights_sha256"}
    assert "in more than noise: card.initial_weights_sha256, spec.seed" in found.verdict()


def test_whole_folders_are_compared_pair_by_pair(tmp_path: Path) -> None:
    storage = filled(tmp_path, planned())
    found = compared(storage, "noise=0", "noise=10")
    assert [pair.first[-6:] for pair in found.pairs] == ["seed=0", "seed=1"]
    assert found.noise_alone
    features = compare(f"features/{RUN}/noise=0", f"features/{RUN}/noise=10", storage)
    assert len(features.pairs) > 2
    assert features.noise_alone
    assert {one.path for one in features.pairs[0].noise} == {
        "inputs.encoder.inputs.noise.spec.level"
    }


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("pretrain.recipe.schedule.lr=0.05", "spec.recipe.schedule.lr"),
        ("pretrain.recipe.augment.flip=true", "spec.recipe.augment.flip"),
    ],
)
def test_another_recipe_is_named_by_its_field(tmp_path: Path, override: str, field: str) -> None:
    filled(tmp_path / "a", planned())
    filled(tmp_path / "b", planned(override))
    found = compare(
        f"{tmp_path}/a/pretrain/{RUN}/noise=0/seed=0",
        f"{tmp_path}/b/pretrain/{RUN}/noise=10/seed=0",
        Folder.of(tmp_path / "nowhere"),
    )
    assert paths(found) == {field}


@pytest.mark.parametrize(
    ("card", "made", "field"),
    [
        ({"order_sha256": "other"}, MADE, "card.order_sha256"),
        ({"initial_weights_sha256": "other"}, MADE, "card.initial_weights_sha256"),
        ({"augmentation_sha256": "new"}, MADE, "card.augmentation_sha256"),
        ({}, {**MADE, "commit": "beef"}, "made_with.commit"),
        ({}, {**MADE, "versions": {"torch": "2.12"}}, "made_with.versions.torch"),
        ({}, {**MADE, "cpu": "another"}, "made_with.cpu"),
        ({}, {**MADE, "kernels": "deterministic"}, "made_with.kernels"),
    ],
)
def test_fields_outside_the_recipe_are_compared_too(
    tmp_path: Path, card: dict[str, str], made: dict[str, Any], field: str
) -> None:
    filled(tmp_path / "a", planned(seeds="0"))
    filled(tmp_path / "b", planned(seeds="0"), card, made)
    found = compare(f"{tmp_path}/a/pretrain", f"{tmp_path}/b/pretrain", Folder.of(tmp_path))
    assert paths(found) == {field}
    assert not found.noise_alone


def test_equal_stores_do_not_differ_and_a_missing_step_is_named(tmp_path: Path) -> None:
    filled(tmp_path / "a", planned())
    filled(tmp_path / "b", planned())
    same = compare(str(tmp_path / "a"), str(tmp_path / "b"), Folder.of(tmp_path))
    assert same.verdict() == "These two runs do not differ, not even in noise."
    Store(Folder.of(tmp_path / "b")).output(f"noise/{RUN[:16]}/draw=0/level=10").delete()
    less = compare(str(tmp_path / "a"), str(tmp_path / "b"), Folder.of(tmp_path))
    assert less.alone == (f"noise/{RUN[:16]}/draw=0/level=10",)
    assert not less.noise_alone


def test_a_missing_input_does_not_count_as_noise(tmp_path: Path) -> None:
    storage = filled(tmp_path, planned())
    Store(storage).output("noise/digits/symmetric/draw=0/level=10").delete()
    found = compared(storage, "noise=0/seed=0", "noise=10/seed=0")
    assert not found.noise_alone
    assert any(path.startswith("inputs.noise") for path in paths(found))
    assert "no longer in its store" in found.pairs[0].beside[0]


def test_uncommitted_changes_are_reported(tmp_path: Path) -> None:
    storage = filled(tmp_path, planned(), provenance={**MADE, "dirty": True})
    found = compared(storage, "noise=0/seed=0", "noise=10/seed=0")
    assert found.noise_alone
    assert "uncommitted changes" in found.pairs[0].beside[0]


def test_a_mistyped_address_gets_the_nearest_as_a_hint(tmp_path: Path) -> None:
    storage = filled(tmp_path, planned())
    with pytest.raises(UserError, match=r"did you mean .*resnet-small/noise=10"):
        compare(f"pretrain/{RUN}/noise=0", "pretrain/digits/symetric/resnet-smal/noise=1O", storage)


@pytest.mark.parametrize("name", [".", "report", "report/demo"])
def test_an_address_of_no_step_is_not_reported_as_a_broken_step(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = filled(tmp_path / "nml-store", planned())
    (storage / "report/demo").write_json("manifest.json", {"fingerprint": "f"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="has no finished step of this name"):
        compare(name, name, storage)


def test_it_is_quick_and_imports_nothing_heavy(tmp_path: Path) -> None:
    filled(tmp_path / "nml-store", planned())
    words = [f"pretrain/{RUN}/noise=0", f"pretrain/{RUN}/noise=10", "--json"]
    code = (
        "import sys; from orchestrator.cli import _run;"
        f"code = _run({['diff', *words]!r});"
        "print(code, sorted({'torch', 'ray', 'mlflow', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    *lines, last = done.stdout.splitlines()
    assert last == "0 []"
    assert json.loads("\n".join(lines))["noise_alone"] is True


def test_readers_of_encoders_from_other_versions_differ_in_more_than_noise(
    tmp_path: Path,
) -> None:
    made = planned(seeds="0")
    root = filled(tmp_path, made)
    folder = root / f"pretrain/{RUN}/noise=10/seed=0"
    manifest = folder.read_json("manifest.json")
    manifest["provenance"]["versions"] = {"torch": "1.0"}
    folder.write_json("manifest.json", manifest)
    found = compare(f"features/{RUN}/noise=0", f"features/{RUN}/noise=10", root)
    assert paths(found) == {"inputs.encoder.made_with.versions.torch"}

"""What an experiment asks of its extensions is checked when it is planned, and nothing is run."""

from pathlib import Path

import pytest
import yaml

from jobs.extensions.spec import Extension
from jobs.storage.folder import Folder
from jobs.tuning.spec import TuneStep
from orchestrator.errors import UserError
from orchestrator.experiment import last_sweep, load, own_claims
from orchestrator.plan import build, claims
from orchestrator.plan.assess import assess
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepState
from orchestrator.store.store import Store
from tests.synthetic import finish

MINE = """
import nothing_of_this_name

class Mine:
    hyperparameters = {"strength": (0.0, 1.0), "top": (1, 5, 2)}
    def forward(self, features): ...
    def loss(self, batch): ...

class Solved:
    def forward(self, features): ...
    def prepare(self, features, targets, hyper): ...

def confuse(keys, labels, classes, seed): ...

def small(image, width, depth=2): ...

class Trains:
    def forward(self, features): ...
    def loss(self, encoder, batch): ...
"""
CLAIM = '''
def mine_beats_lp(results):
    """Mine beats the probe.

    Source: a hypothesis
    """
    return results.methods("mine", "lp") + results.noise("lp", [10], helps=True)
'''
SPACE = "{lr: {loguniform: [0.001, 0.1]}, strength: {uniform: [0, 0.5]}}"


def planned(folder: Path, *overrides: str, text: str = MINE, space: str = SPACE) -> Plan:
    (folder / "mine.py").write_text(text)
    method = f"tuning.methods.mine={{head: mine:Mine, space: {space}}}"
    return build.build(
        load.load(
            overrides=["tasks=[digits, digits-rotated]", method, *overrides],
            extensions=[str(folder / "mine.py")],
            noise="0,10",
            seeds="0",
        )
    )


def marks(plan: Plan) -> dict[str, str]:
    return {address: step.fingerprint for address, step in plan.steps.items()}


def test_a_plan_has_the_file_with_its_steps_and_changes_no_other_step(tmp_path: Path) -> None:
    found = planned(tmp_path)
    without = build.build(
        load.load(overrides=["tasks=[digits, digits-rotated]"], noise="0,10", seeds="0")
    )
    assert marks(without).items() <= marks(found).items()
    added = [s.spec for a, s in found.steps.items() if a not in without.steps]
    assert added
    for spec in added:
        assert isinstance(spec, TuneStep)
        assert spec.source is not None
        assert spec.source.text == MINE


def test_a_changed_file_is_drift_in_one_sentence(tmp_path: Path) -> None:
    plan, store = planned(tmp_path), Store(Folder.of(tmp_path / "store"))
    store.prepare()
    for step in plan.steps.values():
        finish(store, step)
    found = assess(planned(tmp_path, text=f"{MINE}\n# a remark\n"), store)
    drifted = {a: one.reason for a, one in found.items() if one.state is StepState.DRIFT}
    (address, reason), *_ = drifted.items()
    assert "/mine/" in address
    assert reason == "the source of mine changed"
    assert all("/mine/" in address for address in drifted)


@pytest.mark.parametrize(
    ("head", "space", "fault"),
    [
        ("Mine", "{lr: 0.1, strenght: 0.1}", "does not declare; did you mean strength?"),
        ("Mine", "{lr: 0.1}", "lacks strength, which mine:Mine declares"),
        ("Mine", "{strength: 0.1}", "lacks lr, which every method with a loss needs"),
        ("Mine", "{lr: 0.1, strength: 2}", "mine:Mine declares it at least 0 and at most 1"),
        ("Mine", "{lr: 0.1, strength: 1, top: 1.5}", "top must be whole numbers"),
        ("Mine", "{lr: 0.1, strength: 1, cov: 1}", "has cov, which mine:Mine does not declare"),
        ("Solved", "{lr: 0.1}", "has lr, but mine:Solved has no loss"),
        ("Min", "{lr: 0.1}", "mine.py has no method Min; did you mean Mine?"),
        ("mime:Mine", "{lr: 0.1}", "is in no extension of this experiment; did you mean mine?"),
        ("linaer:", "{lr: 0.1}", "is no name of an extension's part"),
    ],
)
def test_a_space_that_does_not_fit_is_one_sentence(
    tmp_path: Path, head: str, space: str, fault: str
) -> None:
    own = head if ":" in head else f"mine:{head}"
    with pytest.raises(UserError) as error:
        planned(tmp_path, f"tuning.methods.bad={{head: '{own}', space: {space}}}")
    assert fault in str(error.value)


@pytest.mark.parametrize(
    ("method", "fault"),
    [
        ("{head: mine:Trains, space: {lr: 1}}", "takes the encoder; set adapt: ft"),
        ("{adapt: lora, head: mine:Trains, space: {lr: 1}}", "takes the encoder; set adapt: ft"),
        ("{adapt: ft, head: mine:Mine, space: {lr: 1}}", "is a head on frozen features; leave out"),
    ],
)
def test_a_loss_that_takes_the_encoder_goes_with_ft(
    tmp_path: Path, method: str, fault: str
) -> None:
    with pytest.raises(UserError) as error:
        planned(tmp_path, f"tuning.methods.bad={method}")
    assert fault in str(error.value)


RECIPE = ["pretrain.recipe.model=mine:small", "pretrain.recipe.model_options={width: 8}"]
FT = "tuning.methods.ft={adapt: ft, head: linear, space: {lr: 0.001}}"


def test_every_step_that_opens_an_encoder_of_an_extension_has_its_file(tmp_path: Path) -> None:
    encoders = (
        "encoders=[{name: own, kind: extension, model: mine:small, model_options: {width: 4}}]"
    )
    found = planned(tmp_path, *RECIPE, FT, encoders)
    with_source = {
        address
        for address, step in found.steps.items()
        if {"mine": Extension.of("mine", MINE).sha256} in _sources(step.fields["spec"])
    }
    opening = {
        address
        for address, step in found.steps.items()
        if step.kind in ("pretrain", "encoder", "features") or "/ft/" in address
    }
    assert with_source == opening | {address for address in found.steps if "/mine/" in address}
    without = planned(tmp_path, FT)
    assert found.steps.keys() > without.steps.keys()
    kept = [a for a in without.steps if marks(found)[a] == marks(without)[a]]
    assert {without.steps[address].kind for address in kept} == {
        "corpus",
        "hashes",
        "overlap",
        "noise",
    }


def _sources(fields: object) -> list[object]:
    if not isinstance(fields, dict):
        return []
    own = [fields["source"]] if "source" in fields else []
    return own + [one for value in fields.values() for one in _sources(value)]


def test_a_changed_encoder_s_file_is_drift_of_the_steps_that_use_it(tmp_path: Path) -> None:
    plan, store = planned(tmp_path, *RECIPE, FT), Store(Folder.of(tmp_path / "store"))
    store.prepare()
    for step in plan.steps.values():
        finish(store, step)
    found = assess(planned(tmp_path, *RECIPE, FT, text=f"{MINE}\n# a remark\n"), store)
    drifted = {a: one.reason for a, one in found.items() if one.state is StepState.DRIFT}
    (run,) = [a for a in drifted if a.startswith("pretrain/") and "noise=10/" in a]
    assert drifted[run] == "the source of mine changed"
    assert not any(address.startswith(("corpus/", "noise/")) for address in drifted)


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (RECIPE[:1], "pretrain.recipe.model_options has channels, and mine:small has no such; it"),
        ([RECIPE[0], "pretrain.recipe.model_options={widht: 8}"], "did you mean width?"),
        ([RECIPE[0], "pretrain.recipe.model_options={}"], "lacks width, which mine:small needs"),
        ([RECIPE[0] + "s", RECIPE[1]], "model: mine.py has no encoder smalls; did you mean small?"),
        (["pretrain.recipe.model=mien:small"], "is in no extension of this experiment; did you"),
        (["encoders=[{name: own, kind: extension, model: mine:Mine}]"], "encoders: own.model: "),
        (
            ["encoders=[{name: own, kind: text_extension, model: mine:small, tokenizer: x}]"],
            "the first argument of mine:small is image, and this encoder reads texts; name another",
        ),
    ],
)
def test_an_encoder_s_function_and_options_are_checked_when_it_is_planned(
    tmp_path: Path, overrides: list[str], fault: str
) -> None:
    with pytest.raises(UserError) as error:
        planned(tmp_path, *overrides)
    assert fault in str(error.value)


@pytest.mark.parametrize(
    ("method", "fault"),
    [
        ("{head: linaer, space: {lr: 0.1}}", "did you mean linear?"),
        ("{head: linear, space: {lr: 1, top: 1}}", "unknown field tuning.methods.bad.space.top"),
    ],
)
def test_a_built_in_head_takes_no_name_of_an_extension(method: str, fault: str) -> None:
    with pytest.raises(UserError) as error:
        load.load(overrides=[f"tuning.methods.bad={method}"])
    assert fault in str(error.value)


def test_a_file_is_found_beside_the_experiment_and_remembered_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    raw = {
        "name": "mine",
        "extensions": ["mine.py"],
        "encoders": [{"kind": "features", "name": "given", "files": {"own": "own.parquet"}}],
        "tasks": ["own"],
        "tuning": {"methods": {"mine": {"head": "mine:Mine", "space": yaml.safe_load(SPACE)}}},
    }
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(raw))
    experiment = load.load(str(file))
    assert experiment.extensions == (str(tmp_path / "mine.py"),)
    monkeypatch.chdir(tmp_path)
    near = load.load("experiment.yaml")
    assert near.extensions == ("mine.py",)
    last_sweep.remember(near, root := Folder.of(tmp_path / "store"))
    again = load.load("last-sweep.yaml", text=last_sweep.recall(root))
    assert again.tuning == experiment.tuning
    assert again.extensions == experiment.extensions


def test_a_noise_gets_the_file_that_has_its_function(tmp_path: Path) -> None:
    noise = "noise={name: own, kind: extension, function: mine:confuse, levels: [0, 10]}"
    (step, *_) = planned(tmp_path, noise).of_kind("noise")
    assert "mine" in step.fields["spec"]["noise"]["source"]
    with pytest.raises(UserError, match=r"noise\.function: mine\.py has no noise confused; did"):
        planned(tmp_path, noise.replace(":confuse", ":confused"))


def test_own_claims_are_registered_and_run_only_where_a_person_names_the_file(
    tmp_path: Path,
) -> None:
    text = MINE.replace("import nothing_of_this_name", "") + CLAIM
    plan = planned(tmp_path, "claims=[mine-beats-lp]", text=text)
    (found,) = [c for c in claims.candidates(plan) if c.claim.id == "mine-beats-lp"]
    assert (found.claim.sentence, found.claim.source) == ("Mine beats the probe", "a hypothesis")
    assert found.tested
    assert "minus" in found.claim.test
    assert own_claims.of(plan.experiment.as_remembered()) == ()
    with pytest.raises(UserError, match=r"extensions: mine\.py, line \d+: ZeroDivisionError"):
        planned(tmp_path, "claims=[mine-beats-lp]", text=text + "\n1 / 0\n")


def test_a_file_that_is_no_python_is_refused_also_where_nothing_of_it_is_used(
    tmp_path: Path,
) -> None:
    (tmp_path / "unused.py").write_text("def broken(:")
    with pytest.raises(UserError, match=r"^extensions: unused\.py, line 1: invalid syntax"):
        build.build(load.load(extensions=[str(tmp_path / "unused.py")]))

"""Addresses, fingerprints and drift."""

import json
from pathlib import Path

import pytest

from jobs.contract import Outcome
from jobs.storage.folder import Folder
from jobs.tuning.spec import TuneStep
from orchestrator.errors import DriftError, StoreError, UserError
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.plan.assess import assess, refuse_drift
from orchestrator.plan.plan import Plan
from orchestrator.plan.power import power_line
from orchestrator.plan.states import StepState
from orchestrator.step.fingerprint import fingerprint
from orchestrator.step.step import KINDS
from orchestrator.store.store import Store


def planned(*overrides: str, noise: str = "0,10", seeds: str = "0") -> Plan:
    return build.build(load.load(overrides=overrides, noise=noise, seeds=seeds))


def prints(made: Plan) -> dict[str, str]:
    return {address: step.fingerprint for address, step in made.steps.items()}


def commit_all(made: Plan, root: Path) -> Store:
    store = Store(Folder.of(root))
    store.prepare()
    for step in made.steps.values():
        store.begin(step).output.write_bytes("made.txt", b"made")
        store.commit(step, Outcome(), {})
    return store


@pytest.mark.parametrize(
    "override",
    [
        "pretrain.resources.workers=4",
        "pretrain.resources.cpus_per_worker=2",
        "pretrain.checkpoint_minutes=1",
        "features.batch_size=7",
        "features.cpus_per_worker=2",
        "tuning.gpus=1",
        "storage=/elsewhere",
        "tracking.uri=http://127.0.0.1:5000",
        "name=other",
        "title=Other",
    ],
)
def test_fields_of_how_and_where_do_not_affect_identity(override: str) -> None:
    assert prints(planned(override)) == prints(planned())


@pytest.mark.parametrize(
    ("override", "kind"),
    [
        ("corpus.seed=1", "corpus"),
        ("noise.classes=[1, 2]", "noise"),
        ("pretrain.recipe.schedule.epochs=3", "pretrain"),
        ("features.views.count=3", "features"),
        ("tuning.epochs=3", "tune"),
    ],
)
def test_a_semantic_field_affects_its_stage_and_all_later_ones(override: str, kind: str) -> None:
    # The corpus of the demo's tasks is the demo's own, so changing one alone is a conflict.
    if kind == "corpus":
        with pytest.raises(UserError, match="defined twice, differently"):
            planned(override)
        return
    before, after = planned(), planned(override)
    changed = {
        s.kind for a, s in after.steps.items() if s.fingerprint != before.steps[a].fingerprint
    }
    assert changed == set(KINDS[KINDS.index(kind) :]) - {"encoder"}  # pretrained: not trained here


def test_a_replicate_draws_noise_and_tunes_with_a_seed_of_its_own() -> None:
    made = planned(noise="0,10", seeds="0,1,2")
    draws = {step.address: step.spec.noise.seed for step in made.of_kind("noise")}  # type: ignore[attr-defined]
    assert draws == {
        f"noise/digits/symmetric/draw={n}/level={level}": n for n in range(3) for level in (0, 10)
    }
    for step in made.of_kind("pretrain"):
        assert step.inputs["noise"].split("/")[-2] == f"draw={step.labels['seed']}"
    for step in made.of_kind("tune"):
        assert step.labels["tuning_seed"] == step.labels["seed"]
        assert step.address.endswith(f"/seed={step.labels['seed']}")


def test_a_shared_draw_and_given_tuning_seeds_are_those_of_every_replicate() -> None:
    sets = ["noise.seed=shared:7", "tuning.seeds=[4,5]"]
    made = build.build(load.load(noise="0,10", seeds="0,1", overrides=sets))
    assert {step.address for step in made.of_kind("noise")} == {
        f"noise/digits/symmetric/draw=7/level={level}" for level in (0, 10)
    }
    assert len(made.of_kind("pretrain")) == 4
    assert {step.labels["tuning_seed"] for step in made.of_kind("tune")} == {4, 5}


def test_the_first_replicate_is_that_of_a_shared_draw() -> None:
    """So a store made with one draw keeps its encoders of seed 0."""
    own, shared = planned(seeds="0,1"), planned("noise.seed=shared", seeds="0,1")
    differ = {a for a, mark in prints(own).items() if prints(shared).get(a) != mark}
    assert all("draw=1" in a or "seed=1" in a for a in differ)
    assert "pretrain/digits/symmetric/resnet-small/noise=10/seed=0" not in differ


@pytest.mark.parametrize("value", ["-1", "0.5", "shared:", "shared:x", "each", "[1]", "null"])
def test_a_seed_of_noise_is_refused_in_one_sentence(value: str) -> None:
    with pytest.raises(UserError, match=r"noise\.seed") as raised:
        planned(f"noise.seed={value}")
    assert "`shared`" in str(raised.value)
    assert "problem" not in str(raised.value)


def test_levels_and_seeds_do_not_affect_each_other() -> None:
    few, many = prints(planned(noise="10")), prints(planned(noise="0,5,10", seeds="0,1"))
    assert few.items() <= many.items()


def test_an_ood_cell_reads_the_head_of_its_id_cell() -> None:
    made = planned()
    cell = next(s for s in made.of_kind("tune") if s.labels["task"] == "digits-rotated")
    assert made.steps[cell.inputs["head"]].labels["task"] == "digits"


LORA = "tuning.methods.lora={adapt: lora, head: linear, space: {lr: 0.01}}"


def test_a_cell_that_trains_the_encoder_reads_the_encoder_and_the_images() -> None:
    made = planned(LORA)
    assert prints(planned()).items() <= prints(made).items(), "the other methods' cells changed"
    cells = {s.labels["task"]: s for s in made.of_kind("tune") if s.labels["method"] == "lora"}
    for task, roles in (("digits", set()), ("digits-rotated", {"head"})):
        inputs = cells[task].inputs
        assert set(inputs) == {"encoder", "corpus"} | roles
        assert made.steps[inputs["encoder"]].kind == "pretrain"
        assert inputs["corpus"] == "corpus/digits"


def test_an_arithmetic_that_cannot_train_is_refused() -> None:
    assert planned("features.precision=float16")
    with pytest.raises(UserError, match="lora and ft cannot train in it"):
        planned(LORA, "features.precision=float16")


def test_the_views_bear_identity_for_a_cell_that_trains_the_encoder() -> None:
    before, after = planned(LORA), planned(LORA, "features.views.seed=3")
    trains = [a for a, s in after.steps.items() if s.labels.get("method") == "lora"]
    assert trains
    assert all(after.steps[a].fingerprint != before.steps[a].fingerprint for a in trains)


@pytest.mark.parametrize("override", ["tuning.search=optuna", "tuning.patience=2"])
def test_settings_that_cannot_reach_a_fine_tuning_cell_are_refused(override: str) -> None:
    with pytest.raises(UserError, match="lora trains the encoder"):
        planned(LORA, override)


def test_every_step_comes_after_its_inputs() -> None:
    seen: set[str] = set()
    for address, step in planned().steps.items():
        assert set(step.inputs.values()) <= seen
        seen.add(address)


def test_drift_is_refused_with_the_fields_that_differ(tmp_path: Path) -> None:
    store = commit_all(planned(), tmp_path)
    changed = planned("pretrain.recipe.schedule.lr=0.05")
    assessments = assess(changed, store)
    with pytest.raises(DriftError) as caught:
        refuse_drift(assessments)
    message = str(caught.value)
    assert "recipe.schedule.lr: 0.1 -> 0.05" in message
    assert "--force" in message
    assert "name" in message
    assert assessments["corpus/digits"].state is StepState.DONE


def test_a_step_that_reads_drift_is_blocked(tmp_path: Path) -> None:
    store = commit_all(planned(), tmp_path)
    for step in planned().of_kind("tune"):
        store.output(step.address).delete("manifest.json")
    assessments = assess(planned("features.views.count=3"), store)
    assert {assessments[s.address].state for s in planned().of_kind("tune")} == {StepState.BLOCKED}


def test_a_manifest_records_its_files(tmp_path: Path) -> None:
    made = planned()
    store = commit_all(made, tmp_path)
    manifest = store.manifest("corpus/digits")
    assert manifest is not None
    assert manifest.files["made.txt"].bytes == 4
    assert fingerprint(manifest.fields) == manifest.fingerprint
    assert json.loads((tmp_path / "corpus/digits/manifest.json").read_text())["format"] == 1


def test_a_broken_manifest_is_one_sentence_with_the_remedy(tmp_path: Path) -> None:
    made = planned()
    store = commit_all(made, tmp_path)
    (tmp_path / "corpus/digits/manifest.json").write_text("{")
    with pytest.raises(StoreError, match="delete its folder"):
        assess(made, store)


def test_storage_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="--set storage=PATH"):
        Store(Folder.of(tmp_path / "file")).prepare()


def test_label_noise_is_an_axis_of_the_address_and_clean_cells_keep_theirs() -> None:
    clean = build.build(load.load(noise="0", seeds="0"))
    noisy = build.build(load.load(noise="0", seeds="0", overrides=["tuning.label_noise=[0,40]"]))
    before = {step.address: step.fingerprint for step in clean.of_kind("tune")}
    after = {step.address: step.fingerprint for step in noisy.of_kind("tune")}
    added = after.keys() - before.keys()
    assert before.items() <= after.items()
    assert len(added) == len(before)
    assert all("/label_noise=40/seed=" in address for address in added)
    heads = [step.inputs["head"] for step in noisy.of_kind("tune") if "head" in step.inputs]
    assert any("/label_noise=40/" in head for head in heads)


def test_the_ablation_has_each_regulariser_alone_in_pairs_and_together() -> None:
    methods = load.load("ablation").tuning.methods
    weighed = {
        name: frozenset(term for term in ("mse", "cov", "svd") if getattr(method.space, term))
        for name, method in methods.items()
        if method.head == "paper"
    }
    assert len(set(weighed.values())) == len(weighed) == 8


ZERO_SHOT = "tuning.methods.zs={head: zero_shot, templates: ['a drawing of {}']}"


def test_zero_shot_is_one_cell_a_task_that_reads_the_encoder() -> None:
    sets = [ZERO_SHOT, "tuning.fractions=[10, 100]", "tuning.label_noise=[0, 20]"]
    made = build.build(load.load("digits-clip", overrides=[*sets, "tuning.seeds=[0, 1]"]))
    cells = [s for s in made.of_kind("tune") if s.labels["method"] == "zs"]
    encoders, tasks = len(made.of_kind("pretrain")), len(made.experiment.tasks)
    assert len(cells) == encoders * tasks
    for cell in cells:
        wanted = {"head"} if cell.labels["domain"] == "ood" else {"encoder"}
        assert set(cell.inputs) == {"features", *wanted}
        assert isinstance(cell.spec, TuneStep)
        assert cell.spec.settings.configurations == 1


def test_zero_shot_of_an_encoder_without_a_text_tower_is_refused() -> None:
    with pytest.raises(UserError, match="zero_shot needs an encoder with an image and a"):
        planned(ZERO_SHOT)


def test_the_plan_says_what_its_seeds_can_show() -> None:
    def line(seeds: str, noise: str = "0,10") -> str | None:
        return power_line(planned(noise=noise, seeds=seeds))

    three = line("0,1,2")
    assert three is not None
    assert "3 seeds show an effect of 0.4 points" in three
    assert "in 2 % of such experiments, 13 in 80 % (16 claims" in three
    assert "fewer than 3 seeds give no verdict (2 planned); 13 show" in str(line("0,1"))
    assert line("0,1,2", noise="0") is None
    assert power_line(build.build(load.load("encoders-practical"))) is None

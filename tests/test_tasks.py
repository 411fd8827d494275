"""`nml-orch tasks`, and a sweep over tasks shaped like ImageNet and PACS, by the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import stores
from commands import TINY, UNTRACKED, Run
from jobs.tasks import registry
from orchestrator.cli import _run
from orchestrator.errors import UserError
from orchestrator.experiment import load
from orchestrator.results import derived
from tests.jobs.tasks import shape

WIDE = """
name: {name}
title: ImageNet's classes
domain: {domain}
corpus:
  name: {name}
  reader: {{kind: table, path: {name}.csv, label: label}}
  parts: {parts}
{more}
facts:
  homepage: generated
  get: it is generated
  sizes: {{reader: {rows}}}
  classes: {classes}
  class_names: {{file: {table}}}
"""


def write_tasks(folder: Path) -> None:
    """Tasks of the shape of ImageNet and ImageNet-R, each in one table instead of class folders."""
    folder.mkdir()
    for table in ("synsets.tsv", "imagenet-r.tsv"):
        (folder / table).write_bytes((registry.SHIPPED / "imagenet" / table).read_bytes())
    said = [
        ("wide", "id", "{train: 0.9, validation: 0.05, test: 0.05}", "", 3000, 1000, "synsets.tsv"),
        (
            *("wide-r", "ood", "{train: 0, validation: 0, test: 1}"),
            "trained_on: wide\nclasses: {file: imagenet-r.tsv}",
            *(400, 200, "imagenet-r.tsv"),
        ),
    ]
    for name, domain, parts, more, rows, classes, table in said:
        text = WIDE.format(
            name=name,
            domain=domain,
            parts=parts,
            more=more,
            rows=rows,
            classes=classes,
            table=table,
        )
        (folder / f"{name}.yaml").write_text(text)


TASKS = ["wide", "wide-r", "pacs-without-photo", "pacs-to-photo"]


@pytest.fixture(scope="module")
def swept(undisturbed: Path, run_on_ray: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an encoder that is there already."""
    folder = stores.copy(undisturbed, tmp_path_factory.mktemp("swept"), "features", "tune")
    write_tasks(folder / "mine")
    for name in TASKS:
        task = registry.load(name, [folder / "mine"], str(folder / "data"))
        assert task.corpus is not None
        each = 3 if name == "wide" else 2
        shape.write_source(task.corpus.reader, shape.names_of(task), each, name)
    shape.write(registry.load("pacs-without-photo", data=str(folder / "data")), each=20)
    words = [*TINY, *UNTRACKED, "--tasks-path", "mine", "--data", "data", "--noise", "0"]
    for said in (
        f"tasks=[{', '.join(TASKS)}]",
        "features.views.count=0",
        "overlap=allow",  # the generated images of a class are alike
        "tuning={methods: {lp: {head: linear, space: {lr: 0.01}}}, configurations: 1, epochs: 2}",
    ):
        words += ["--set", said]
    code, output = run_on_ray(folder, "sweep", *words)
    assert code == 0, output
    return folder


@pytest.mark.slow
def test_a_thousand_outputs_are_tested_on_the_two_hundred_of_the_subset(swept: Path) -> None:
    cells = {path.parts[-5]: path.parent for path in (swept / "nml-store").rglob("cell.parquet")}
    found = {
        task: pq.read_table(path / "cell.parquet").to_pylist()[0] for task, path in cells.items()
    }
    assert {task: cell["n_classes"] for task, cell in found.items()} == {
        "wide": 1000,
        "wide-r": 200,
        "pacs-without-photo": 7,
        "pacs-to-photo": 7,
    }
    assert found["wide-r"]["n_test"] == 400
    assert all(cell["test_reads"] == 1 for cell in found.values())
    assert len({cell["test_digest"] for cell in found.values()}) == 4
    predicted = pq.read_table(cells["wide-r"] / "predictions.parquet")["predicted"].to_pylist()
    assert max(predicted) < 200
    head = json.loads((cells["wide"] / "head.json").read_text())
    assert len(head["classes"]) == 1000


@pytest.mark.slow
def test_features_of_a_task_that_is_only_tested_are_of_its_test_part(swept: Path) -> None:
    store = swept / "nml-store"
    (folder,) = store.glob("features/*/*/*/*/*/wide-r")
    assert sorted(path.name for path in folder.glob("features-*")) == ["features-test.parquet"]


def test_data_that_is_not_there_is_one_sentence_and_nothing_starts(
    run: Run, tmp_path: Path
) -> None:
    words = ["--set", "tasks=[digits, svhn, dtd]", "--data", "sets"]
    code, output = run(tmp_path, "sweep", *words)
    assert code == 2, output
    assert output.strip().count("\n") == 0
    missing = tmp_path / "sets/svhn/cropped_digits"
    assert f"the data of svhn is not at {missing} (also missing: dtd)" in output
    assert "hf download ufldl-stanford/svhn" in output
    assert "--data FOLDER" in output
    assert not list(tmp_path.rglob("manifest.json"))


def test_folders_of_the_command_line_are_added_to_the_files_own() -> None:
    words = ["task_folders=[first]"]
    found = load.load(overrides=words, task_folders=["second", "third"])
    assert found.task_folders == ("first", "second", "third")


def test_a_plan_needs_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["plan", "--set", "tasks=[imagenet, imagenet-r]", "--storage", str(tmp_path)]) == 0
    assert "tune" in capsys.readouterr().out


def test_one_test_under_two_names_is_refused_before_anything_runs(tmp_path: Path) -> None:
    text = (
        (registry.SHIPPED / "vision" / "svhn.yaml").read_text().replace(": svhn\n", ": patches\n")
    )
    (tmp_path / "patches.yaml").write_text(text)
    overrides = ["tasks=[svhn, patches]", f"task_folders=[{tmp_path}]"]
    with pytest.raises(
        UserError, match="svhn and patches test the same samples by the same labels"
    ):
        load.load(overrides=overrides).load_tasks()


def test_a_report_that_would_count_a_test_twice_is_refused() -> None:
    told = {"domain": "id", "trained_on": None, "method": "lp", "test_digest": "d"}
    found = pa.Table.from_pylist([told | {"task": "svhn"}, told | {"task": "patches"}])
    with pytest.raises(UserError, match="patches and svhn were tested on the same features"):
        derived.refuse_counted_twice(found, [0.0, 0.0], [0, 0])


def test_a_corpus_without_a_training_part_is_not_pretrained_on() -> None:
    parts = "corpus.parts={train: 0, validation: 0.5, test: 0.5}"
    with pytest.raises(UserError, match=r"corpus\.parts\.train is 0"):
        load.load(overrides=[parts])


def test_list_says_what_there_is_and_what_is_at_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape.write(registry.load("eurosat", data=str(tmp_path)))
    assert _run(["tasks", "list", "--data", str(tmp_path), "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(registry.names())
    assert (rows["eurosat"]["data"], rows["svhn"]["data"]) == ("found", "not found")
    assert (rows["objectnet"]["classes"], rows["objectnet"]["trained_on"]) == (113, "imagenet")
    assert _run(["tasks", "list"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in rows)


def test_show_says_where_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["tasks", "show", "objectnet"]) == 0
    printed = capsys.readouterr().out
    assert "https://objectnet.dev" in printed
    assert "tested with the heads of imagenet" in printed
    assert _run(["tasks", "show", "objectnet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trained_on"] == "imagenet"


def test_check_tells_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape.write(registry.load("eurosat", data=str(tmp_path)))
    assert _run(["tasks", "check", "svhn"]) == 0
    assert _run(["tasks", "check", "eurosat", "--data", str(tmp_path)]) == 1
    assert "60 rows, but facts.sizes say 27,000" in capsys.readouterr().out
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ntitle: x\ndomain: ood\ntrained_on: dtdd\n"
        "corpus: {name: digits, reader: {kind: digits}}\n"
    )
    assert _run(["tasks", "check", "mine", "--tasks-path", str(tmp_path), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)["mine"]["faults"]
    assert said == ["trained_on: dtdd is not a task; name an ID task"]


def test_a_users_own_file_passes_without_facts_and_shows_what_its_data_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the tool knows of its own tasks, homepage and sizes, no user has to write down."""
    (tmp_path / "mine.csv").write_text("path,label\na.png,cat\nb.png,dog\nc.png,cat\n")
    for name in "abc":
        Image.new("RGB", (8, 8), (ord(name), 0, 0)).save(tmp_path / f"{name}.png")
    reader = f"{{kind: table, path: {tmp_path}/mine.csv, image: path, label: label}}"
    (tmp_path / "mine.yaml").write_text(
        f"name: mine\ntitle: Meine Prüfung\ndomain: id\ncorpus: {{name: mine, reader: {reader}}}\n"
    )
    words = ["mine", "--tasks-path", str(tmp_path)]
    assert _run(["tasks", "check", *words]) == 0, capsys.readouterr()
    first, *more = capsys.readouterr().out.splitlines()
    assert first.split(maxsplit=2)[:2] == ["ok", "mine"]
    assert first.endswith("Meine Prüfung")
    assert more[0].strip().startswith("reader: 3 rows; 2 classes (cat, dog); ")
    assert _run(["tasks", "list", "--tasks-path", str(tmp_path)]) == 0
    assert "Meine Prüfung" in capsys.readouterr().out


def test_a_name_beyond_ascii_is_refused_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prüfung.yaml"
    file.write_text(
        "name: prüfung\ntitle: Prüfung\ndomain: id\ncorpus: {name: d, reader: {kind: digits}}\n"
    )
    said = "a name begins with a letter from a to z or a digit"
    assert _run(["tasks", "check", "--tasks-path", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert f"{file}: name = 'prüfung': {said}" in printed
    assert "a title may have any letters" in printed
    assert _run(["plan", "--set", "tasks=[prüfung]"]) == 2
    assert f"tasks.0 = 'prüfung': {said}" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["show", "check"])
def test_a_mistyped_name_is_answered_with_the_nearest(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["tasks", verb, "imagnet-r"]) == 2
    assert "no task is named 'imagnet-r'; did you mean imagenet-r" in capsys.readouterr().err


def test_listing_and_checking_pay_for_no_heavy_import() -> None:
    code = (
        "import sys; from orchestrator.cli import _run;"
        "codes = [_run(['tasks', 'list']), _run(['tasks', 'check', 'digits'])];"
        "print(codes, sorted({'torch', 'ray', 'mlflow'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[0, 0] []", result.stderr

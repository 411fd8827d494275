"""The commands of `nml-orch noise`, and how an experiment file plans its noise."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from commands import Run
from orchestrator import EXPERIMENTS
from orchestrator.errors import UserError
from orchestrator.experiment import load
from orchestrator.experiment.model import Sources
from orchestrator.plan import build
from orchestrator.plan.plan import Plan

LEVELS = ["--noise", "0,20", "--seeds", "0"]


@pytest.fixture(scope="module")
def built(run_on_ray: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    code, output = run_on_ray(folder, "noise", "build", *LEVELS)
    assert code == 0, output
    assert "noise/digits/symmetric/draw=0/level=20: 211 rows (20.00 %)" in output
    return folder


def test_building_the_noise_builds_its_inputs_and_nothing_else(built: Path) -> None:
    root = built / "nml-store"
    found = {str(path.parent.relative_to(root)) for path in root.rglob("manifest.json")}
    assert found == {
        "corpus/digits",
        *(f"noise/digits/symmetric/draw=0/level={n}" for n in (0, 20)),
    }
    assert not (root / "report").exists()


def test_an_audit_proves_states_and_keeps_what_was_changed(built: Path, run: Run) -> None:
    code, output = run(built, "noise", "audit", *LEVELS)
    assert code == 0, output
    (row,) = (line.split() for line in output.splitlines() if line.split()[:1] == ["20"])
    assert row == ["20", "0", "20.000", "20.000", "1,055", "211", "211", "0"]
    kept = built / "nml-store/audit/noise/digits/symmetric/draw=0/level=20"
    assert {path.name for path in kept.iterdir()} == {"audit.json", "transition.png"}


def test_without_a_file_the_verbs_look_at_what_the_store_holds(built: Path, run: Run) -> None:
    """No sweep was started here, and the demo has five levels: neither is what is there."""
    code, output = run(built, "noise", "audit")
    assert code == 0, output
    rows = [line.split() for line in output.splitlines()]
    assert [row[0] for row in rows if len(row) == 8 and row[-1] == "0"] == ["0", "20"]
    code, output = run(built, "noise", "audit", "--json")
    assert list(json.loads(output)) == [
        f"noise/digits/symmetric/draw=0/level={level}" for level in (0, 20)
    ]
    code, output = run(built, "corpus", "show")
    assert code == 0, output
    assert re.search("train +1,055 rows", output)
    code, output = run(built, "corpus", "verify")
    assert code == 0, output
    assert "corpus/digits: as built" in output
    assert "its source was not looked at: name the experiment FILE" in output


def test_a_tampered_row_fails_the_audit_and_is_named(built: Path, run: Run) -> None:
    path = built / "nml-store/noise/digits/symmetric/draw=0/level=20/changed.parquet"
    whole = pq.read_table(path)
    pq.write_table(whole.slice(1), path)
    code, output = run(built, "noise", "audit", *LEVELS)
    pq.write_table(whole, path)
    assert code == 1
    key = whole["key"][0].as_py()
    assert f"(key {key!r}) should be changed and is not listed" in output


def test_a_damaged_level_is_named_and_the_others_are_audited(built: Path, run: Run) -> None:
    path = built / "nml-store/noise/digits/symmetric/draw=0/level=20/overlay.json"
    whole = path.read_bytes()
    path.write_bytes(b"{")
    text, machine = (run(built, "noise", "audit", *LEVELS, *more) for more in ([], ["--json"]))
    path.write_bytes(whole)
    assert text[0] == machine[0] == 1
    assert "defect" not in text[1]
    rows = [line.split() for line in text[1].splitlines()]
    assert ["0", "0", "0.000", "0.000", "1,055", "0", "0", "0"] in rows
    assert f"DIFFERS noise/digits/symmetric/draw=0/level=20: {path} cannot be used" in text[1]
    found = json.loads(machine[1][machine[1].index("{") :])
    assert [one["sound"] for one in found.values()] == [True, False]
    kept = built / "nml-store/audit/noise/digits/symmetric/draw=0/level=20"
    assert [path.name for path in kept.iterdir()] == ["audit.json"]
    assert json.loads((kept / "audit.json").read_bytes()) == list(found.values())[1]


def test_a_changed_corpus_is_not_audited_against(built: Path, run: Run) -> None:
    path = built / "nml-store/corpus/digits/train-00000.parquet"
    whole = path.read_bytes()
    rows = pq.read_table(path)
    at = rows.column_names.index("label")
    labels = rows["label"].combine_chunks()[::-1]
    pq.write_table(rows.set_column(at, rows.schema.field("label"), labels), path)
    code, output = run(built, "noise", "audit", *LEVELS)
    path.write_bytes(whole)
    assert code == 2
    assert "train-00000.parquet of corpus/digits is not the file that the step wrote" in output
    assert "--redo corpus/digits" in output
    assert run(built, "noise", "audit", *LEVELS)[0] == 0


def test_other_settings_are_drift_and_an_empty_store_is_said(
    built: Path, tmp_path: Path, run: Run
) -> None:
    code, output = run(built, "noise", "audit", *LEVELS, "--set", "noise.of=subset")
    assert code == 2
    assert "noise.of: corpus -> subset" in output
    code, output = run(tmp_path, "noise", "audit", *LEVELS)
    assert code == 2
    assert "run `nml-orch noise build` first" in output


def test_each_replicates_draw_is_built_and_audited(
    tmp_path: Path, run: Run, run_on_ray: Run
) -> None:
    two = ("demo", "--noise", "0,20", "--seeds", "0,3")
    code, output = run_on_ray(tmp_path, "noise", "build", *two)
    assert code == 0, output
    code, output = run(tmp_path, "noise", "audit", *two)
    assert code == 0, output
    rows = [line.split() for line in output.splitlines()]
    draws = [row[1] for row in rows if row[:1] == ["20"]]
    assert draws == ["0", "3"]
    assert "realised % of each class, draw 3" in output


# -- planning --------------------------------------------------------------------------------------


def test_corpus_and_noise_alone_plan_the_steps_of_the_whole_experiment(tmp_path: Path) -> None:
    file = tmp_path / "part.yaml"
    whole = yaml.safe_load((EXPERIMENTS / "demo.yaml").read_text())
    file.write_text(yaml.safe_dump({name: whole[name] for name in ("name", "corpus", "noise")}))
    part = build.build(load.load(str(file), noise="0,20", seeds="0,3", model=Sources), (0, 3))
    planned = build.build(load.load(noise="0,20", seeds="0,3")).only("noise")
    assert len(part.of_kind("noise")) == 4
    assert {a: s.fingerprint for a, s in part.only("noise").steps.items()} == {
        a: s.fingerprint for a, s in planned.steps.items()
    }
    with pytest.raises(UserError, match="tasks is missing"):
        load.load(str(file))
    file.write_text(yaml.safe_dump({name: whole[name] for name in ("name", "noise")}))
    with pytest.raises(UserError, match="corpus is missing; say which samples it has"):
        load.load(str(file), model=Sources)


def test_a_corpus_alone_is_built_and_has_no_noise_to_build(
    tmp_path: Path, run: Run, run_on_ray: Run
) -> None:
    whole = yaml.safe_load((EXPERIMENTS / "demo.yaml").read_text())
    part = {name: whole[name] for name in ("name", "corpus")}
    (tmp_path / "part.yaml").write_text(yaml.safe_dump(part))
    folders = ["--data", str(tmp_path), "--tasks-path", str(tmp_path)]
    code, output = run_on_ray(tmp_path, "corpus", "build", "part.yaml", *folders)
    assert code == 0, output
    assert "corpus/digits: 1,055 train" in output
    code, output = run(tmp_path, "noise", "build", "part.yaml", *folders)
    assert code == 2
    assert "noise is missing; give kind, name and levels" in output


def planned(*overrides: str, source: str | None = None) -> Plan:
    return build.build(load.load(source, overrides=["noise.levels=[10]", *overrides]))


def prints(of: Plan) -> set[str]:
    return {step.fingerprint for step in of.of_kind("noise")}


@pytest.mark.parametrize(
    "fields",
    [
        "{kind: pair}",
        "{kind: symmetric, of: subset, classes: [one, 2]}",
        "{kind: subset, classes: [one, seven]}",
        "{kind: instance, file: p.parquet}",
        "{kind: given, file: t.csv, column: worse}",
    ],
)
def test_every_kind_of_label_noise_fits_a_supervised_recipe(fields: str) -> None:
    noise = f"noise={fields[:-1]}, name: n, levels: [10]}}"
    assert prints(planned(noise)) != prints(planned())


def test_a_small_files_content_affects_identity_and_its_path_does_not(tmp_path: Path) -> None:
    files = [tmp_path / "one.csv", tmp_path / "other.csv"]
    for file in files:
        file.write_text("class,group\nzero,even\n")
    one, other = (
        prints(planned(f"noise={{name: n, kind: groups, levels: [5], file: {file}}}"))
        for file in files
    )
    assert one == other
    files[0].write_text("class,group\nzero,odd\n")
    changed = prints(planned(f"noise={{name: n, kind: groups, levels: [5], file: {files[0]}}}"))
    assert changed != one


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["noise.kind=nonsense"], "the kind must be one of symmetric, pair, groups"),
        (["noise.rate=5"], "unknown field noise.rate"),
        (["noise.clases=[1, 2]"], "unknown field noise.clases (did you mean classes?)"),
        (["noise.of=everything"], "noise.of = 'everything': must be one of corpus, subset"),
        (["noise.kind=groups"], "noise.file is missing"),
        (["noise={name: n, levels: [5]}"], "noise.kind is missing"),
        (["noise={name: n, kind: groups, levels: [5], file: gone.csv}"], "cannot be read"),
        (["noise.kind=caption_swap_near"], "changes captions and a supervised recipe learns from"),
    ],
)
def test_an_impossible_noise_is_one_sentence(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        planned(*overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_part_of_a_plan_includes_its_inputs() -> None:
    whole = planned()
    part = whole.only("noise")
    assert {step.kind for step in part.steps.values()} == {"corpus", "noise"}
    assert all(address in part.steps for s in part.steps.values() for address in s.inputs.values())
    assert list(whole.only("tune").steps) == list(whole.steps)

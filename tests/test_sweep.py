"""The sweep from end to end, as a person starts it: what it leaves, and that it leaves the same."""

import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from commands import TINY, Run, Start
from stores import manifests, table


@pytest.fixture(scope="module")
def swept(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of these tests' own, its report and MLflow's database with it."""
    folder = tmp_path_factory.mktemp("swept")
    shutil.copytree(undisturbed, folder, dirs_exist_ok=True)
    return folder


def test_it_leaves_a_manifest_for_every_planned_step(swept: Path, run: Run) -> None:
    _, output = run(swept, "plan", "--json", *TINY)
    planned = {step["address"]: step["fingerprint"] for step in json.loads(output)["steps"]}
    left = {address: m["fingerprint"] for address, m in manifests(swept).items()}
    assert left == planned


def test_it_leaves_no_scratch_and_no_lease(swept: Path) -> None:
    root = swept / "nml-store"
    left = [p for name in (".scratch", ".leases") for p in (root / name).rglob("*") if p.is_file()]
    assert left == []


def test_its_report_stands_alone(swept: Path) -> None:
    folder = swept / "nml-store/report/demo"
    html = (folder / "report.html").read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", html)
    assert (folder / "table.csv").read_text().count("\n") == 1 + 2 * 2 * 3
    assert list(folder.rglob("*.png"))


def test_mlflow_shows_it_without_further_settings(swept: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{swept}/mlflow.db")
    experiment = client.get_experiment_by_name("demo")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    kinds = Counter(run.data.tags["nml.kind"] for run in runs)
    assert kinds == {
        "sweep": 1,
        "corpus": 1,
        "hashes": 1,
        "overlap": 2,
        "noise": 2,
        "pretrain": 2,
        "features": 4,
        "tune": 6,
        "method": 3,
    }
    parent = next(run for run in runs if run.data.tags["nml.kind"] == "sweep")
    names = set(parent.data.metrics)
    assert {
        "id_accuracy/lp",
        "ood_accuracy/nmtune-released-control",
        "id_macro_f1/nmtune-released",
        "features/id/sve",
        "features/ood/lsvr",
        "pretrain/val_accuracy",
        "noise/realised_percent",
    } <= names
    for name in names:
        steps = {point.step for point in client.get_metric_history(parent.info.run_id, name)}
        assert steps == {0, 20}


def test_again_it_recomputes_nothing(swept: Path, run: Run) -> None:
    before = manifests(swept)
    code, output = run(swept, "sweep", *TINY)
    assert code == 0, output
    assert f"{len(before)} reused in" in output
    assert manifests(swept) == before


def test_other_workers_and_paths_recompute_nothing(swept: Path, run: Run) -> None:
    before = manifests(swept)
    words = ["--set", "pretrain.resources.cpus_per_worker=2", "--set", "features.batch_size=32"]
    words += ["--storage", str(swept / "nml-store"), "--set", "tracking.enabled=false"]
    code, output = run(swept, "sweep", *TINY, *words)
    assert code == 0, output
    assert manifests(swept) == before


def test_a_changed_recipe_is_refused_field_by_field(swept: Path, run: Run) -> None:
    before = manifests(swept)
    changed = ["--set", "pretrain.recipe.schedule.lr=0.05"]
    code, output = run(swept, "sweep", *TINY, *changed)
    assert code == 2
    assert "recipe.schedule.lr: 0.1 -> 0.05" in output
    assert "--force" in output
    assert "Traceback" not in output
    assert manifests(swept) == before


def test_the_same_command_elsewhere_gives_the_same_numbers(
    undisturbed: Path, planted: Path
) -> None:
    first, second = manifests(undisturbed), manifests(planted)
    assert len(second) == len(set(second) & set(first)) > 8
    for address in second:
        same = {key: first[address][key] for key in ("fingerprint", "counts")}
        assert same == {key: second[address][key] for key in same}, address
        if not address.startswith("pretrain/"):  # its metrics hold a speed, its files do not
            assert first[address]["metrics"] == second[address]["metrics"], address
        files = [
            {
                name: file
                for name, file in each[address]["files"].items()
                if name != "timings.parquet"
            }
            for each in (first, second)
        ]
        assert files[0] == files[1], address
    whole, part = (table(folder).splitlines() for folder in (undisturbed, planted))
    assert len(part) == 1 + 3, "of each method a cell"
    assert set(part) < set(whole)


def test_noise_is_nested_and_listed_row_by_row(swept: Path) -> None:
    folder = swept / "nml-store/noise/digits/symmetric/draw=0"
    clean = pq.read_table(folder / "level=0/changed.parquet")
    noisy = pq.read_table(folder / "level=20/changed.parquet")
    found = json.loads((folder / "level=20/manifest.json").read_text())
    assert clean.num_rows == 0
    assert noisy.num_rows == found["counts"]["changed"]
    assert noisy.num_rows == round(found["counts"]["eligible"] * 0.2)
    assert all(c != n for c, n in zip(noisy["clean"], noisy["noisy"], strict=True))


def test_status_shows_the_matrix_and_its_gaps(swept: Path, run: Run) -> None:
    code, output = run(swept, "status", *TINY, "--noise", "0,5,20")
    assert code == 0
    assert "missing" in output
    row = next(line for line in output.splitlines() if "digits-rotated" in line and " lp" in line)
    assert row.split()[-3:] == ["1/1", "0/1", "1/1"]


def test_its_two_levels_differ_in_noise_alone(swept: Path, run: Run) -> None:
    encoder = "pretrain/digits/symmetric/resnet-small"
    code, output = run(swept, "diff", f"{encoder}/noise=0", f"{encoder}/noise=20")
    assert code == 0, output
    assert "inputs.noise.spec.level: 0.0 -> 20.0" in output
    assert output.splitlines()[-1] == "These two runs differ only in noise."
    code, output = run(swept, "diff", f"{encoder}/noise=0", f"{encoder}/noise=02")
    assert code == 2
    assert f"did you mean {encoder}/noise=0" in output


def test_report_needs_no_ray(swept: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "copied"
    code, output = run(swept, "report", *TINY, "--out", str(out), RAY_ADDRESS="nowhere")
    assert code == 0, output
    assert (out / "report.html").exists()


def test_doctor_finds_nothing_wrong(swept: Path, start: Start) -> None:
    code, output = start(swept, "doctor", *TINY).finish()
    assert code == 0, output
    assert "FAIL" not in output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--noise", "0,200"], "outside 0 <= level < 100"),
        (["--set", "tuning.epoch=1"], "did you mean epochs?"),
        (["--set", "pretrain.recipe.model=resnet81"], "resnet18"),
        (["no-such-file.yaml"], "no such experiment file"),
        (["--set", "tuning.epochs=many"], "tuning.epochs = 'many'"),
        (["--storage", "/proc/nml"], "--set storage=PATH"),
        (["--nois", "5"], "--noise"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    words: list[str], said: str, run: Run, tmp_path: Path
) -> None:
    code, output = run(tmp_path, "sweep", *words)
    assert code == 2, output
    assert said in output
    assert "Traceback" not in output
    assert output.strip().count("\n") == 0
    assert os.listdir(tmp_path) == []

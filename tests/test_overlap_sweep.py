"""Sweeps whose tasks test on images that are trained on, under other names and with other heads."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from commands import TINY, UNTRACKED, Run
from stores import copy, finished, manifests

pytestmark = pytest.mark.slow

DIGITS = "reader: {kind: digits}"
SETS = [
    "tasks=[digits, memorised, recalled, mirrored]",
    "tuning.configurations=1",
    "tuning.epochs=1",
    "tuning.methods={lp: {head: linear, space: {lr: 0.1}}}",
    "task_folders=[tasks]",
]
WORDS = [*TINY, *UNTRACKED, "--noise", "0", *(w for value in SETS for w in ("--set", value))]


def put_tasks(folder: Path) -> None:
    """An ID task over the pre-training images by another corpus name, and OOD tasks."""
    (folder / "tasks").mkdir()
    of = {
        # Other parts of the same images: most of its test images are pre-trained on.
        "memorised": f"domain: id\ncorpus: {{name: copy, {DIGITS}, seed: 5}}",
        # Its test part is all images, so it has the training rows of the task of its heads.
        "recalled": "domain: ood\ntrained_on: digits\n"
        f"corpus: {{name: whole, {DIGITS}, parts: {{train: 0, validation: 0, test: 1}}}}",
        # The test images of `digits`: nobody trains on them.
        "mirrored": "domain: ood\ntrained_on: digits\nshift: {kind: invert}\n"
        f"corpus: {{name: digits, {DIGITS}, "
        "parts: {train: 0.6, validation: 0.15, test: 0.25}, rows_per_shard: 512}",
    }
    for name, fields in of.items():
        (folder / "tasks" / f"{name}.yaml").write_text(f"name: {name}\ntitle: x\n{fields}\n")


def test_a_task_on_training_images_is_refused_and_the_others_go_on(
    undisturbed: Path, run_on_ray: Run, tmp_path: Path
) -> None:
    """With an encoder that is there already."""
    copy(undisturbed, tmp_path, "features", "tune")
    put_tasks(tmp_path)
    code, output = run_on_ray(tmp_path, "sweep", *WORDS)
    assert code == 1, output
    for task in ("memorised", "recalled"):
        line = next(one for one in output.splitlines() if f"/{task}/limit=1: " in one)
        assert f"task {task}: " in line
        assert "are trained on: " in line
        assert "in the pre-training samples" in line
        assert "in the training rows of digits" in line or task == "memorised"
        assert "overlap: drop" in line
    tested = {a.split("/")[6] for a in finished(tmp_path) if a.startswith("tune/")}
    assert tested == {"digits", "mirrored"}

    # `drop` tests the rows that nobody trains on: for `recalled`, those of `digits` itself.
    words = [*WORDS, "--set", "overlap=drop", "--force"]
    code, output = run_on_ray(tmp_path, "sweep", *words)
    assert code == 0, output
    store = tmp_path / "nml-store"
    cells = "tune/digits/symmetric/resnet-small/noise=0/seed=0"
    test = store / "corpus/digits/test-00000.parquet"
    assert keys(store / cells / "recalled/lp/fraction=100/seed=0/predictions.parquet") == keys(test)
    made = manifests(tmp_path)
    whole = made["overlap/pretrain/digits/memorised/limit=100"]["counts"]
    own = made[f"{cells}/memorised/lp/fraction=100/seed=0"]["counts"]
    assert own["test_dropped"] == whole["overlap"]
    assert own["n_test"] == whole["test_images"] - whole["overlap"]
    assert made["overlap/pretrain/digits/mirrored/limit=100"]["counts"]["overlap"] == 0


def keys(file: Path) -> list[str]:
    """The keys of a Parquet file's rows, sorted."""
    return sorted(pq.read_table(file, columns=["key"])["key"].to_pylist())

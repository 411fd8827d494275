"""What a sweep says of a step that fails, and what it does of the rest."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from commands import TINY, UNTRACKED, Run
from stores import copy, finished

pytestmark = pytest.mark.slow


def test_a_step_that_cannot_be_done_is_named_and_the_rest_goes_on(
    undisturbed: Path, run_on_ray: Run, tmp_path: Path
) -> None:
    """With a corpus that is there already."""
    copy(undisturbed, tmp_path, "noise", "pretrain", "features", "tune")
    broken = ["--set", "pretrain.recipe.model_options={no_such_option: 1}"]
    code, output = run_on_ray(tmp_path, "sweep", *TINY, *UNTRACKED, "--noise", "0", *broken)
    assert code == 1, output
    assert "pretrain/digits/symmetric/resnet-small/noise=0/seed=0" in output
    assert "no_such_option" in output
    assert "Traceback" not in output
    assert any(address.startswith("noise/") for address in finished(tmp_path))


def test_a_sweep_whose_first_step_fails_says_why_and_no_more(
    run_on_ray: Run, tmp_path: Path
) -> None:
    broken = pa.table({"image": [b"no image"] * 8, "label": [0, 1] * 4})
    pq.write_table(broken, tmp_path / "broken.parquet")
    corpus = "{name: mine, reader: {kind: parquet, path: broken.parquet, label: label}}"
    task = f"name: mine\ntitle: Mine\ndomain: id\ncorpus: {corpus}\n"
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/mine.yaml").write_text(task)
    sets = [f"corpus={corpus}", "tasks=[mine]", "task_folders=[tasks]"]
    words = [word for value in sets for word in ("--set", value)]
    code, output = run_on_ray(tmp_path, "sweep", "--noise", "0", "--seeds", "0", *UNTRACKED, *words)
    assert code == 1, output
    assert "failed   corpus/mine: " in output
    assert "nothing to report" not in output
    assert "Traceback" not in output

"""A sweep over captions: swapped, trained on contrastively, tested zero-shot."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from commands import UNTRACKED, Run
from stores import manifests


@pytest.mark.slow
def test_captions_are_swapped_and_trained_contrastively(run_on_ray: Run, tmp_path: Path) -> None:
    words = ["pretrain.recipe.schedule.epochs=8", "tuning.configurations=1", "tuning.epochs=1"]
    words += ["tasks=[digits]", "tuning.methods={lp: {head: linear, space: {lr: 0.01}}}"]
    sets = [*UNTRACKED, *(word for value in words for word in ("--set", value))]
    code, output = run_on_ray(tmp_path, "sweep", "digits-clip", "--noise", "30", *sets)
    assert code == 0, output
    found = manifests(tmp_path)
    encoder = found["pretrain/digits/swap/clip-small/noise=30/seed=0"]
    assert encoder["metrics"]["pretrain/val_accuracy"] > 20  # zero-shot; chance is 10
    # A caption is one of four sentences on one of ten digits, drawn apart from the image: chance
    # is 2.5, and 25 the most that an encoder can expect.
    assert 7 < encoder["metrics"]["pretrain/val_image_to_text_r1"] < 50
    assert 7 < encoder["metrics"]["pretrain/val_text_to_image_r1"] < 50
    changed = pq.read_table(
        tmp_path / "nml-store/noise/digits/swap/draw=0/level=30/changed.parquet"
    ).to_pylist()
    assert len(changed) == found["noise/digits/swap/draw=0/level=30"]["counts"]["changed"]
    assert sorted(r["clean"] for r in changed) == sorted(r["noisy"] for r in changed)

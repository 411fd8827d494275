"""What held-out samples say of an encoder: accuracy where they have labels, R@1 where captions."""

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from analysis.figures import encoder
from analysis.readout import Readout
from analysis.report import tables
from analysis.report.findings import findings
from analysis.schemas import PRETRAINING_SCHEMA
from analysis.summary import summary
from tests.analysis.conftest import Make

RECALL = ("val_image_to_text_r1", "val_text_to_image_r1")


@pytest.fixture
def captioned(make: Make) -> Readout:
    """Runs on captions without labels; recall falls by half a point for each percent of noise."""
    readout = make(jitter=0.0)
    rows = readout.pretraining.to_pylist()
    for row in rows:
        row.update(dict.fromkeys(RECALL, 50 - row["noise"] / 2), val_accuracy=None)
    runs = pa.Table.from_pylist(rows, schema=PRETRAINING_SCHEMA)
    question = replace(readout.question, noise_kind="caption_swap", objective="contrastive")
    return replace(readout, pretraining=runs, question=question)


def held_out(readout: Readout) -> Any:
    return encoder.pretraining(readout).axes[0]


def labels(axes: Any) -> list[str]:
    return [line.get_label() for line in axes.lines if not line.get_label().startswith("_")]


def test_recall_takes_the_place_of_scores(captioned: Readout) -> None:
    metrics = summary(captioned).to_pylist()
    for measure in RECALL:
        found = {r["noise"]: r["mean"] for r in metrics if r["metric"] == f"pretrain/{measure}"}
        assert found == {0: 50, 5: 47.5, 10: 45, 20: 40, 30: 35}
    assert not [row for row in metrics if row["metric"] == "pretrain/val_accuracy"]
    page = tables.pretraining(captioned)
    assert "Validation R@1, image to text (%)" in page
    assert "Validation accuracy" not in page
    told = " ".join(found.text for found in findings(captioned))
    assert "held-out samples nearest to their own clean caption is 50.0 %" in told
    assert "Accuracy on held-out samples" not in told
    assert labels(held_out(captioned)) == ["Image to text", "Text to image"]


def test_a_labelled_corpus_shows_no_recall(make: Make) -> None:
    readout = make()
    assert "R@1" not in tables.pretraining(readout)
    assert "Validation accuracy (%)" in tables.pretraining(readout)
    assert labels(held_out(readout)) == ["Validation"]
    assert not [m for m in summary(readout)["metric"].to_pylist() if m.endswith("_r1")]

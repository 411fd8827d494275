"""A whole sweep on texts: one encoder, an ID and an OOD task, heads, LoRA, report and MLflow."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from tokenizers import Tokenizer

from commands import Run
from stores import copy, finished, manifests
from tests.jobs.text.models import put_model

pytestmark = pytest.mark.slow

FILE = """
name: remarks
title: Do heads on sentence features move to other words?
encoders:
  - {{name: small, kind: transformers, model: {model}, pooling: mean, max_length: 12}}
tasks: [remarks-films, remarks-kitchen]
tuning:
  configurations: 1
  epochs: 2
  seeds: [0]
  fractions: [50]
  schedule: linear
  methods:
    lp: {{head: linear, space: {{lr: 0.01}}}}
    nmtune: {{head: released, space: {{lr: 0.001, mse: 1.0, cov: 0.04, svd: 0.001}}}}
    lora: {{head: linear, adapt: lora, space: {{lr: 0.01}}}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
"""


@pytest.fixture(scope="module")
def swept(run_on_ray: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the sweep, and what it printed."""
    folder = tmp_path_factory.mktemp("texts")
    model = put_model(folder / "model", "bert")
    (folder / "my.yaml").write_text(FILE.format(model=model, folder=folder))
    code, output = run_on_ray(folder, "sweep", "my.yaml")
    assert code == 0, output
    return folder, output


def test_every_step_of_texts_is_done(swept: tuple[Path, str]) -> None:
    folder, _ = swept
    steps = sorted(address for address in finished(folder) if not address.startswith("tune/"))
    assert steps == [
        "corpus/remarks-films",
        "corpus/remarks-kitchen",
        "encoder/small",
        "features/encoder/small/remarks-films",
        "features/encoder/small/remarks-kitchen",
        "hashes/remarks-films",
        "hashes/remarks-kitchen",
        "overlap/encoder/remarks-films/limit=1",
        "overlap/encoder/remarks-kitchen/limit=1",
    ]
    cells = [address for address in finished(folder) if address.startswith("tune/")]
    assert len(cells) == 2 * 4, "an ID and an OOD cell of each method and of NMTune's control"


def test_texts_that_are_cut_are_counted(swept: tuple[Path, str]) -> None:
    folder, _ = swept
    counts = manifests(folder)["features/encoder/small/remarks-films"]["counts"]
    assert counts["rows_truncated"] > 0
    assert counts["rows_train"] + counts["rows_validation"] + counts["rows_test"] == 800


def test_plan_tells_the_tokens_that_are_left(
    swept: tuple[Path, str], tmp_path: Path, run: Run
) -> None:
    folder, _ = swept
    left = "features/encoder/small/remarks-films"
    copy(folder, tmp_path, left)
    code, output = run(tmp_path, "plan", str(folder / "my.yaml"))
    assert code == 0, output
    (told,) = re.findall(r"To encode with small: about ([\d,]+) tokens", output)
    tokenizer = Tokenizer.from_file(str(folder / "model/tokenizer.json"))
    shards = sorted((folder / "nml-store/corpus/remarks-films").glob("*-0*.parquet"))
    texts = [text for shard in shards for text in pq.read_table(shard)["text"].to_pylist()]
    counts = [min(len(tokenizer.encode(text)), 12) for text in texts]
    assert len(texts) == 800
    assert int(told.replace(",", "")) == pytest.approx(sum(counts), rel=0.05)
    assert "To encode" not in run(folder, "plan", "my.yaml")[1]


def test_features_of_texts_have_no_views(swept: tuple[Path, str]) -> None:
    folder, _ = swept
    path = folder / "nml-store/features/encoder/small/remarks-films/features-train.parquet"
    assert pq.read_table(path, columns=["view"])["view"].unique().to_pylist() == [0]


def test_nobody_reads_of_images(swept: tuple[Path, str]) -> None:
    folder, output = swept
    report = folder / "nml-store/report/remarks/report.md"
    page = report.with_name("report.html").read_text()
    words = re.sub(r"<(style|script|svg)\b.*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL)
    for text in (output, report.read_text(), words):
        assert "image" not in text.lower()


def test_mlflow_has_the_runs_and_no_images(swept: tuple[Path, str]) -> None:
    folder, _ = swept
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("remarks")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    addresses = {run.data.tags["nml.address"] for run in runs}
    assert "features/encoder/small/remarks-films" in addresses
    for run in runs:
        named = (*run.data.params, *run.data.metrics, *run.data.params.values())
        assert not [name for name in named if "image" in name.lower()], run.info.run_name

"""The commands of `nml-orch corpus`."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from commands import Run
from orchestrator.experiment import load
from orchestrator.plan import build

Picture = Callable[..., bytes]


@pytest.fixture
def folder(tmp_path: Path, picture: Picture) -> Path:
    for number in range(60):
        path = tmp_path / f"tree/{'abc'[number % 3]}/{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    (tmp_path / "tree/a/broken.jpg").write_bytes(picture(0)[:-50])
    return tmp_path


def words(verb: str, *more: str) -> tuple[str, ...]:
    reader = "corpus.reader={kind: imagefolder, path: tree}"
    chosen = ("--set", reader, "--set", "corpus.name=letters", "--storage", "store")
    return ("corpus", verb, "demo", *chosen, *more)


@pytest.mark.slow
def test_a_corpus_is_built_shown_and_verified(folder: Path, run_on_ray: Run) -> None:
    code, output = run_on_ray(folder, *words("build"))
    assert code == 1
    assert "1 truncated (first: a/broken.jpg)" in output
    assert "Traceback" not in output

    code, output = run_on_ray(folder, *words("build", "--set", "corpus.max_bad_share=0.1"))
    assert code == 0
    assert "1 rows in quarantine" in output

    _, output = run_on_ray(folder, *words("show", "--json"))
    summary = json.loads(output)["corpus/letters"]
    assert summary["quarantined"] == {"truncated": 1}
    assert sum(part["rows"] for part in summary["parts"].values()) == 60
    assert [entry["name"] for entry in summary["classes"]] == ["a", "b", "c"]
    assert (
        sum(entry["train_rows"] for entry in summary["classes"])
        == (summary["parts"]["train"]["rows"])
    )

    assert run_on_ray(folder, *words("verify"))[0] == 0
    shard = folder / "store/corpus/letters/train-00000.parquet"
    shard.unlink()
    code, output = run_on_ray(folder, *words("verify"))
    assert code == 1
    assert "missing train-00000.parquet" in output
    *_, option, address = re.findall(r"[\w/-]+", output.partition(" builds it again")[0])
    bad_share = ("--set", "corpus.max_bad_share=0.1")
    assert run_on_ray(folder, *words("build", *bad_share, option, address))[0] == 0
    assert shard.exists()
    assert run_on_ray(folder, *words("verify"))[0] == 0

    (folder / "tree/a/0.jpg").unlink()
    for verb, expected in (("verify", 1), ("build", 0)):
        code, output = run_on_ray(folder, *words(verb))
        assert code == expected
        assert "source changed" in output
        assert "give the reader another `version` and build with --force" in output
    version = ("--set", "corpus.reader.version='2'")
    assert run_on_ray(folder, *words("build", *bad_share, *version, "--force"))[0] == 0
    assert run_on_ray(folder, *words("verify", *version))[0] == 0


@pytest.mark.slow
def test_a_corpus_that_is_damaged_is_said_in_one_sentence(folder: Path, run_on_ray: Run) -> None:
    (folder / "tree/a/broken.jpg").unlink()
    assert run_on_ray(folder, *words("build"))[0] == 0
    store = folder / "store/corpus/letters"
    shard = store / "train-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    code, output = run_on_ray(folder, *words("show"))
    assert code == 2
    altered = "is not the file that the step wrote"
    assert f"train-00000.parquet of corpus/letters {altered}" in output
    assert "--redo corpus/letters" in output
    (store / "quarantine.parquet").unlink()
    code, output = run_on_ray(folder, *words("verify"))
    assert code == 1
    assert "missing quarantine.parquet" in output
    assert "--redo corpus/letters builds it again" in output
    for fault in ("broken", "missing"):
        if fault == "broken":
            (store / "_index.json").write_text("{")
        else:
            (store / "_index.json").unlink()
        for verb, expected in (("show", 2), ("verify", 1), ("build", 2)):
            code, output = run_on_ray(folder, *words(verb))
            assert code == expected
            assert "_index.json" in output
            assert f"_index.json of corpus/letters {altered}" in output or verb == "verify"
            assert fault in output or verb == "verify" or fault == "broken"
            assert "defect" not in output
    code, output = run_on_ray(folder, *words("build", "--redo", "corpus/letters"))
    assert code == 0, output
    assert run_on_ray(folder, *words("verify"))[0] == 0


@pytest.mark.slow
def test_an_index_that_fits_altered_shards_is_not_as_built(folder: Path, run_on_ray: Run) -> None:
    (folder / "tree/a/broken.jpg").unlink()
    assert run_on_ray(folder, *words("build"))[0] == 0
    store = folder / "store/corpus/letters"
    shard = store / "train-00000.parquet"
    rows = pq.read_table(shard)
    at = rows.column_names.index("label")
    labels = rows["label"].combine_chunks()[::-1]
    pq.write_table(rows.set_column(at, rows.schema.field("label"), labels), shard)
    index = json.loads((store / "_index.json").read_text())
    index["parts"]["train"][0] |= {
        "bytes": shard.stat().st_size,
        "sha256": hashlib.sha256(shard.read_bytes()).hexdigest(),
    }
    (store / "_index.json").write_text(json.dumps(index))
    code, output = run_on_ray(folder, *words("verify"))
    assert code == 1
    assert "altered _index.json" in output
    code, output = run_on_ray(folder, *words("show"))
    assert code == 2
    assert "_index.json of corpus/letters is not the file that the step wrote" in output


def test_what_is_not_built_is_said(tmp_path: Path, run_on_ray: Run) -> None:
    code, output = run_on_ray(tmp_path, "corpus", "verify")
    assert code == 2
    assert "run `nml-orch corpus build` first" in output
    code, output = run_on_ray(tmp_path, "corpus", "show")
    assert code == 2  # the demo was not asked for
    assert "nml-store has no corpus step" in output
    code, output = run_on_ray(tmp_path, "corpus", "show", "demo")
    assert code == 0
    assert "corpus/digits is not built; its source:" in output


def test_building_corpora_runs_no_other_step() -> None:
    part = build.build(load.load()).only("corpus")
    assert {step.kind for step in part.steps.values()} == {"corpus"}

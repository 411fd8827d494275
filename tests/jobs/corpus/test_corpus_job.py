"""The corpus stage on a real Ray."""

import hashlib
import io
import itertools
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from commands import Command
from jobs.contract import Hooks, Outcome, Spec, StageError, Work
from jobs.corpus import build as building
from jobs.corpus import job
from jobs.corpus.form import IMAGES
from jobs.corpus.layout import lay_out
from jobs.corpus.reader_spec import DigitsReader
from jobs.corpus.readers import Digits, Unit
from jobs.corpus.shards import PARTS, Index, read_part, write_shard
from jobs.corpus.spec import Corpus
from jobs.corpus.verify import compare_source, verify
from jobs.storage.folder import Folder

DIGITS = Corpus(name="digits", reader=DigitsReader())

Build = Callable[[Corpus, Path], tuple[Folder, Outcome]]


@dataclass
class Results:
    of: dict[str, Outcome | BaseException] = field(default_factory=dict)
    stop: Callable[[], bool] = lambda: False

    def hooks(self) -> Hooks:
        def done(address: str, result: Outcome | BaseException) -> None:
            assert address not in self.of
            self.of[address] = result

        return Hooks(done=done, say=lambda *_: None, stopping=lambda: self.stop())

    def outcome(self, address: str) -> Outcome:
        result = self.of[address]
        assert isinstance(result, Outcome), result
        return result


def work(root: Path, address: str, spec: Spec, **inputs: Folder) -> Work:
    folder = Folder.of(root / address)
    return Work(address, "f", spec, inputs, folder, Folder.of(root / "scratch" / address))


def on_ray(root: Path, spec: Corpus = DIGITS) -> Folder:
    step = work(root, f"corpus/{spec.name}", spec)
    results = Results()
    job.run_corpus([step], results.hooks())
    counts = results.outcome(step.address).counts
    assert counts["rows_read"] == sum(counts[f"rows_{part}"] for part in PARTS)
    return step.output


def bytes_of(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read_bytes(name) for name, _ in folder.files()}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Folder:
    return on_ray(tmp_path_factory.mktemp("store"))


def test_the_index_describes_the_files(digits: Folder) -> None:
    index = Index.read(digits)
    listed = {file.file: file for files in index.parts.values() for file in files}
    assert {*listed, "_index.json", "quarantine.parquet"} == {name for name, _ in digits.files()}
    for name, file in listed.items():
        data = digits.read_bytes(name)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)
        table = digits.read_table(name)
        assert table.schema.equals(IMAGES)
        assert len(table) == file.rows <= DIGITS.rows_per_shard
    keys = [key for part in PARTS for key in read_part(digits, part, ["key"])["key"].to_pylist()]
    assert sorted(keys) == [f"digits/{i:04d}" for i in range(1797)]


def test_classes_are_mixed_within_a_shard(digits: Folder) -> None:
    labels = digits.read_table("train-00000.parquet", ["label"])["label"].to_pylist()
    assert len(set(labels[:50])) == 10


def test_units_runs_and_workers_do_not_affect_the_files(
    digits: Folder, tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Finely(Digits):
        def units(self) -> Sequence[Unit]:
            cuts = [1797, 1300, 1299, 700, 350, 0]
            return [Unit("digits", b, a) for a, b in itertools.pairwise(cuts)]

    monkeypatch.setattr(building, "reader_of", lambda spec, known=None: Finely(spec))
    monkeypatch.setattr(building, "RUN_ROWS", 100)
    folder, _ = build(DIGITS, tmp_path)  # in this process, without Ray
    assert bytes_of(folder) == bytes_of(digits)


@pytest.fixture
def source(tmp_path: Path) -> Corpus:
    """Forty Parquet files, each a unit of its own, of images as large as photographs."""
    rng = np.random.default_rng(0)
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (120, 160, 3), np.uint8)).save(stream, "JPEG", quality=95)
    for number in range(40):
        keys = [f"{number}/{row}" for row in range(60)]
        columns = {"image": [stream.getvalue()] * 60, "label": list(range(60)), "key": keys}
        (tmp_path / "source").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), tmp_path / f"source/{number:02d}.parquet")
    reader = {"kind": "parquet", "path": str(tmp_path / "source"), "label": "label", "key": ["key"]}
    return Corpus.model_validate({"name": "photos", "reader": reader, "shard_mb": 10})


def test_a_bad_corpus_fails_alone(tmp_path: Path, source: Corpus, ray_session: None) -> None:
    again = pq.read_table(tmp_path / "source/07.parquet")
    pq.write_table(again.slice(5, 1), tmp_path / "source/again.parquet")
    results = Results()
    works = [work(tmp_path, f"corpus/{spec.name}", spec) for spec in (source, DIGITS)]
    job.run_corpus(works, results.hooks())
    assert isinstance(results.of["corpus/photos"], StageError)
    assert "7/5" in str(results.of["corpus/photos"])
    assert results.outcome("corpus/digits").counts["rows_read"] == 1797


def test_a_stopped_build_resumes_without_reading_again(
    tmp_path: Path, source: Corpus, build: Build, ray_session: None
) -> None:
    expected, _ = build(source, tmp_path / "whole")
    step, scratch = work(tmp_path, "corpus/photos", source), tmp_path / "scratch/corpus/photos"

    def records() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in scratch.glob("unit-*.json")}

    stopped = Results(stop=lambda: len(records()) >= 5)
    job.run_corpus([step], stopped.hooks())
    assert stopped.of == {}
    before = records()
    assert 5 <= len(before) <= 40
    assert bytes_of(on_ray(tmp_path, source)) == bytes_of(expected)
    after = records()
    assert {name: after[name] for name in before} == before


def test_a_source_that_changed_meanwhile_is_read_again(
    tmp_path: Path, source: Corpus, build: Build
) -> None:
    build(source, tmp_path / "a")
    first = tmp_path / "source/00.parquet"
    pq.write_table(pq.read_table(first).slice(1), first)
    _, outcome = build(source, tmp_path / "a")
    assert outcome.counts["rows_read"] == 40 * 60 - 1


def test_an_object_store_is_read_and_written_like_a_disk(
    tmp_path: Path, source: Corpus, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = build(source, tmp_path / "local")
    scratch, output = Folder.of(tmp_path / "scratch"), Folder.of(tmp_path / "output")
    for folder in (scratch, output):
        folder.local_path().mkdir()  # an object store needs no folders
    monkeypatch.setattr(Folder, "is_local", False)
    found = building.survey(source)
    scans = [building.scan(source, found, piece, scratch) for piece in found.pieces]
    runs = [run for scan in scans for run in scan.runs]
    cuts = lay_out(source, scratch, runs)
    files = [(cut.part, write_shard(scratch, runs, cut, output, source.form)) for cut in cuts]
    building.finish(source, found, scans, files, scratch, output)
    assert bytes_of(output) == bytes_of(expected)


KILLED = """
import sys
from pathlib import Path
from jobs.corpus.spec import Corpus
from jobs.contract import Hooks, Work
from jobs.corpus.job import run_corpus
from jobs.storage.folder import Folder
from orchestrator import cluster
root, spec = Path(sys.argv[1]), Corpus.model_validate_json(sys.argv[2])
hooks = Hooks(done=lambda *_: None, say=lambda *words: print(*words, flush=True), stopping=bool)
folder = lambda name: Folder.of(root / name)
with cluster.session(cpus=1):
    run_corpus([Work("c", "f", spec, {}, folder("out"), folder("scratch"))], hooks)
"""


@pytest.mark.slow
@pytest.mark.faults
def test_a_build_killed_again_and_again_ends_in_the_same_bytes(
    tmp_path: Path, source: Corpus, build: Build, ray_session: None
) -> None:
    """While it reads the source and, begun again, while it writes shards."""
    expected, _ = build(source, tmp_path / "whole")
    root = tmp_path / "killed"
    for phase in ("units of the source read", "shards written"):
        killed_in(phase, root, source)
        Folder.of(root / "out").delete()  # as the store does before a step is begun again
    folder, scratch = Folder.of(root / "out"), Folder.of(root / "scratch")
    results = Results()
    job.run_corpus([Work("c", "f", source, {}, folder, scratch)], results.hooks())
    assert results.outcome("c").counts["rows_read"] == 40 * 60
    assert bytes_of(folder) == bytes_of(expected)


def killed_in(phase: str, root: Path, source: Corpus) -> None:
    """Begin a build in a process of its own, and kill that and all it started in a phase."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(root), source.model_dump_json()],
        stdout=subprocess.PIPE,
        text=True,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PYTHONPATH": str(Path(__file__).resolve().parents[3]),
            "RAY_worker_niceness": "0",
            "NML_TEST_MARK": mark,
        },
        start_new_session=True,
    )
    assert process.stdout is not None
    assert any(phase in line and " 0 of " not in line for line in process.stdout), phase
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert Command(process, mark, root).left() == []


def test_verification_finds_lost_altered_and_added_files(tmp_path: Path, build: Build) -> None:
    folder, _ = build(DIGITS, tmp_path)
    assert list(verify(folder)) == []
    data = folder.read_bytes("train-00000.parquet")
    folder.write_bytes("train-00000.parquet", data[:500] + b"!" + data[501:])
    folder.write_bytes("train-00001.parquet", data[:-1])
    folder.delete("test-00000.parquet")
    folder.write_bytes("train-00009.parquet", data)
    assert {(finding.file, finding.what) for finding in verify(folder)} == {
        ("train-00000.parquet", "altered"),
        ("train-00001.parquet", "altered"),
        ("test-00000.parquet", "missing"),
        ("train-00009.parquet", "unlisted"),
    }


def test_verification_finds_a_source_that_changed(
    tmp_path: Path, source: Corpus, build: Build
) -> None:
    folder, _ = build(source, tmp_path)
    assert list(compare_source(source, folder)) == []
    moved = (tmp_path / "source").rename(tmp_path / "moved")
    (gone,) = compare_source(source, folder)
    assert (gone.what, gone.harmless) == ("source not here", True)
    elsewhere = source.model_dump() | {"reader": {**source.reader.model_dump(), "path": str(moved)}}
    again = Corpus.model_validate(elsewhere)
    assert again.semantic() == source.semantic()
    assert list(compare_source(again, folder)) == []
    (moved / "39.parquet").unlink()
    (changed,) = compare_source(again, folder)
    assert (changed.what, changed.harmless) == ("source changed", False)

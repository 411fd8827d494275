"""Verifying a corpus: a missing or altered file is a finding, never a crash."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.contract import Outcome, StageError
from jobs.corpus.shards import Index
from jobs.corpus.spec import Corpus
from jobs.corpus.verify import compare_source, verify
from jobs.storage.folder import Folder

Picture = Callable[..., bytes]
Build = Callable[[Corpus, Path], tuple[Folder, Outcome]]

FIELDS = {"name": "c", "parts": {"train": 1, "validation": 0, "test": 0}, "max_bad_share": 1}


@pytest.fixture
def built(tmp_path: Path, picture: Picture, build: Build) -> tuple[Corpus, Folder]:
    (tmp_path / "tree/a").mkdir(parents=True)
    (tmp_path / "tree/a/1.jpg").write_bytes(picture(0))
    (tmp_path / "tree/a/2.jpg").write_bytes(b"")
    reader = {"kind": "imagefolder", "path": str(tmp_path / "tree")}
    corpus = Corpus.model_validate(FIELDS | {"reader": reader})
    return corpus, build(corpus, tmp_path)[0]


def findings(built: tuple[Corpus, Folder]) -> set[tuple[str, str]]:
    found = [*verify(built[1]), *compare_source(*built)]
    assert all("\n" not in finding.detail for finding in found)
    return {(finding.file, finding.what) for finding in found}


def test_an_unchanged_corpus_has_no_finding(built: tuple[Corpus, Folder]) -> None:
    assert findings(built) == set()


def test_a_missing_index_is_a_finding(built: tuple[Corpus, Folder]) -> None:
    (built[1].local_path() / "_index.json").unlink()
    assert findings(built) == {("_index.json", "missing")}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"name": 1, "classes": 3}', "\ufeff", "[" * 100_000]
)
def test_a_broken_index_is_a_finding(built: tuple[Corpus, Folder], text: str) -> None:
    (built[1].local_path() / "_index.json").write_text(text)
    assert findings(built) == {("_index.json", "altered")}
    with pytest.raises(
        StageError, match=r"_index\.json of .* is broken .*; build the corpus again"
    ):
        Index.read(built[1])


def test_a_missing_or_altered_quarantine_is_a_finding(built: tuple[Corpus, Folder]) -> None:
    folder, path = built[1], built[1].local_path() / "quarantine.parquet"
    table = folder.read_table(path.name)
    for data in (b"", path.read_bytes()[:-9]):
        path.write_bytes(data)
        assert findings(built) == {(path.name, "altered")}
    for other in (table.slice(1), table.select(["key"])):
        folder.write_table(path.name, other)
        assert findings(built) == {(path.name, "altered")}
    path.unlink()
    assert findings(built) == {(path.name, "missing")}


def test_a_source_file_that_is_newer_than_the_build_is_a_harmless_finding(
    built: tuple[Corpus, Folder], picture: Picture
) -> None:
    path = Path(str(built[0].reader.path)) / "a/1.jpg"  # type: ignore[union-attr]
    size = path.stat().st_size
    path.write_bytes(picture(0)[:-2] + b"\xff\xd9")
    assert path.stat().st_size == size
    later = (built[1].local_path() / "_index.json").stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))
    (finding,) = compare_source(*built)
    assert finding.harmless
    assert finding.what == "source newer"
    assert "1 files were written after the build (the first: a/1.jpg)" in finding.detail
    path.unlink()
    assert [one.what for one in compare_source(*built)] == ["source changed"]

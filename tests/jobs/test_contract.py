"""What every spec promises: which fields are paths, and which bear identity, are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import pytest
from pydantic import Field, TypeAdapter

from jobs.contract import NOT_SEMANTIC, PATH, Spec
from jobs.corpus.reader_spec import AnyReader
from jobs.corpus.spec import Corpus
from jobs.encoders.spec import PretrainedEncoder
from jobs.noise.spec import Noise
from jobs.storage.folder import Folder
from orchestrator.experiment.model import Experiment


class Inner(Spec):
    file: Annotated[str, PATH, NOT_SEMANTIC]
    workers: Annotated[str, NOT_SEMANTIC] = "two"  # bears no identity, and is no path
    version: Annotated[str, PATH] = "v1"  # a path that does


class Outer(Spec):
    inner: Inner
    several: tuple[Inner, ...] = ()
    by_name: dict[str, Inner] = Field(default_factory=dict)
    files: Annotated[dict[str, str], PATH, NOT_SEMANTIC] = Field(default_factory=dict)
    folders: Annotated[tuple[str, ...], PATH, NOT_SEMANTIC] = ()
    absent: Annotated[str | None, PATH, NOT_SEMANTIC] = None
    name: str = "a/b"


def outer(path: str) -> Outer:
    inner = Inner(file=path)
    return Outer(
        inner=inner, several=(inner,), by_name={"x": inner}, files={"y": path}, folders=(path,)
    )


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("a/b", "{here}/a/b"),
        ("/a/b", "/a/b"),
        ("~/a", "{home}/a"),
        ("s3://bucket/a?region=x", "s3://bucket/a?region=x"),
        ("file:///a/b", "/a/b"),
    ],
)
def test_paths_are_made_absolute_wherever_they_stand_and_nothing_else_is(
    written: str, read: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = read.format(here=tmp_path, home=Path.home())
    made = outer(written).with_absolute_paths()
    assert {p for p in made.paths() if not p.endswith("v1")} == {path}
    assert len(list(made.paths())) == 8
    assert (made.inner.workers, made.name, made.absent) == ("two", "a/b", None)
    assert made.inner.version == str(tmp_path / "v1")
    assert made.with_absolute_paths() == made


@pytest.mark.parametrize(
    ("folder", "read"),
    [
        ("/data", "/data/a"),
        ("s3://b/sets", "s3://b/sets/a"),
        ("s3://b?region=x", "s3://b/a?region=x"),
    ],
)
def test_relative_paths_start_from_the_folder_that_is_given(folder: str, read: str) -> None:
    made = outer("a").with_absolute_paths(Folder.of(folder))
    assert made.inner.file == made.files["y"] == made.folders[0] == read
    assert outer("/b").with_absolute_paths(Folder.of(folder)).inner.file == "/b"


def test_identity_does_not_follow_from_being_a_path() -> None:
    assert Inner(file="a").semantic() == {"version": "v1"}


def test_every_reader_names_its_paths() -> None:
    """A field that is not identity is a path in all readers today; its marker says so."""
    for reader in get_args(AnyReader):
        for name, info in reader.model_fields.items():
            assert (PATH in info.metadata) == (NOT_SEMANTIC in info.metadata), (reader, name)
    assert PATH not in Corpus.model_fields["max_bad_share"].metadata


def test_the_files_of_an_experiment_are_its_paths() -> None:
    noise = TypeAdapter(Noise).validate_python(
        {"kind": "groups", "name": "g", "levels": [0], "file": "groups.csv"}
    )
    encoder = TypeAdapter(PretrainedEncoder).validate_python(
        {"kind": "features", "name": "e", "files": {"t": "t.parquet"}}
    )
    assert list(noise.paths()) == ["groups.csv"]
    assert list(encoder.paths()) == ["t.parquet"]
    assert {"storage", "data", "task_folders"} == {
        name for name, info in Experiment.model_fields.items() if PATH in info.metadata
    }

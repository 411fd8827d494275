"""Files appear whole or not at all, and only the wanted row groups are read."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.storage import s3
from jobs.storage.folder import Folder


def test_a_new_file_appears_when_its_block_ends_and_not_when_it_fails(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)
    with folder.new_file("deep/file") as path:
        path.write_bytes(b"whole")
        assert not folder.exists("deep/file")
    assert folder.read_bytes("deep/file") == b"whole"

    def fail() -> None:
        with folder.new_file("deep/file") as path:
            path.write_bytes(b"half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert [name for name, _ in folder.files()] == ["deep/file"]
    assert folder.read_bytes("deep/file") == b"whole"


def test_row_groups_without_a_wanted_row_are_not_read(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)
    folder.write_table("t.parquet", pa.table({"v": range(10)}), row_group_size=4)
    wanted = np.isin(np.arange(10), [1, 3, 8, 9])
    found = [piece.to_pylist() for piece in folder.read_some("t.parquet", "v", wanted)]
    assert found == [[1, 3], [8, 9]]


def test_a_compressed_file_is_not_decompressed(tmp_path: Path) -> None:
    packed = gzip.compress(b"key,label\n")
    for folder in (Folder.of(tmp_path), Folder(f"file://{tmp_path}")):  # by path, and by URI
        folder.write_bytes("t.csv.gz", packed)
        assert (tmp_path / "t.csv.gz").read_bytes() == packed
        assert folder.read_bytes("t.csv.gz") == packed
        assert folder.sha256("t.csv.gz") == hashlib.sha256(packed).hexdigest()


NAMES = st.text("ab %#?&'\":;=+\\~\u00e9\u6570{}[]*$", min_size=1, max_size=30)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, min_size=1, max_size=3))
def test_a_local_folder_may_have_any_name(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path.joinpath(*names)
    for folder in (
        Folder.of(path),
        Folder.of(path.as_uri()),
        Folder.of(tmp_path) / "/".join(names),
    ):
        folder.write_json("a %20?.json", [1])
        assert (path / "a %20?.json").is_file()
        assert dict(folder.files()).keys() == {"a %20?.json"}
        folder.write_table("t#.parquet", pa.table({"x": [1]}))
        assert folder.read_table("t#.parquet").num_rows == 1
        assert Folder.holding(f"{path}/t#.parquet") == (Folder(str(path)), "t#.parquet")
        folder.delete()
        assert not path.exists()


def test_a_local_path_may_look_like_a_uri_further_on(tmp_path: Path) -> None:
    folder = Folder(f"{tmp_path}/a://b")
    assert folder.is_local
    folder.write_bytes("x", b"1")
    assert (tmp_path / "a:" / "b" / "x").read_bytes() == b"1"


def test_a_bucket_path_may_have_any_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = {}
    monkeypatch.setattr(s3, "_client", lambda bucket, query: opened.update({bucket: query}))
    _, path = s3.open_s3("s3://bucket/a %20#b/c\u00e9/?region=x")
    assert (path, opened) == ("bucket/a %20#b/c\u00e9", {"bucket": "region=x"})

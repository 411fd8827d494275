"""Files appear whole or not at all, and only the wanted row groups are read."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

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

"""Files appear whole or not at all, and are read no further than they are wanted."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.storage.folder import Place


def test_a_new_file_appears_as_its_block_ends_and_not_at_all_when_it_fails(tmp_path: Path) -> None:
    place = Place.of(tmp_path)
    with place.new_file("deep/file") as path:
        path.write_bytes(b"whole")
        assert not place.exists("deep/file")
    assert place.read_bytes("deep/file") == b"whole"

    def fail() -> None:
        with place.new_file("deep/file") as path:
            path.write_bytes(b"half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert [name for name, _ in place.files()] == ["deep/file"]
    assert place.read_bytes("deep/file") == b"whole"


def test_row_groups_of_which_nothing_is_wanted_are_not_read(tmp_path: Path) -> None:
    place = Place.of(tmp_path)
    place.write_table("t.parquet", pa.table({"v": range(10)}), row_group_size=4)
    wanted = np.isin(np.arange(10), [1, 3, 8, 9])
    found = [piece.to_pylist() for piece in place.read_some("t.parquet", "v", wanted)]
    assert found == [[1, 3], [8, 9]]


def test_a_compressed_file_is_bytes_like_any_other(tmp_path: Path) -> None:
    packed = gzip.compress(b"key,label\n")
    for place in (Place.of(tmp_path), Place(f"file://{tmp_path}")):  # a folder, and by a URI
        place.write_bytes("t.csv.gz", packed)
        assert (tmp_path / "t.csv.gz").read_bytes() == packed
        assert place.read_bytes("t.csv.gz") == packed
        assert place.sha256("t.csv.gz") == hashlib.sha256(packed).hexdigest()

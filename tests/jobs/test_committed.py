"""A finished step's files: read as they were written, or not at all, in every way of reading."""

import json
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.committed import MANIFEST, Committed
from jobs.contract import StageError
from jobs.storage.folder import Folder
from tests.jobs.committing import seal

ADDRESS = "features/e/images"
TABLE, RECORD = "features-test.parquet", "card.json"
ROWS = pa.table({"key": [f"k{n}" for n in range(64)], "label": list(range(64))})


@pytest.fixture
def step(tmp_path: Path) -> Committed:
    Folder.of(tmp_path).write_table(TABLE, ROWS)
    Folder.of(tmp_path).write_json(RECORD, {"dim": 64})
    return seal(tmp_path, ADDRESS)


def read_mapped(folder: Folder, name: str) -> bytes:
    with folder.opening(name) as source:
        return bytes(source.read())


def read_random(folder: Folder, name: str) -> bytes:
    with folder.input_file(name) as source:
        return bytes(source.read())


READERS: dict[str, Callable[[Folder], object]] = {
    "bytes": lambda folder: folder.read_bytes(TABLE),
    "expected": lambda folder: folder.read_expected(TABLE, folder.sha256(TABLE)),
    "table": lambda folder: folder.read_table(TABLE),
    "column": lambda folder: folder.read_table(TABLE, ["label"]),
    "some rows": lambda folder: list(folder.read_some(TABLE, "label", np.arange(64) < 3)),
    "mapped": lambda folder: read_mapped(folder, TABLE),
    "random access": lambda folder: read_random(folder, TABLE),
}


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def swap_rows(data: bytes, at: int) -> bytes:
    """A valid table of other rows, of another size or not."""
    sink = pa.BufferOutputStream()
    pq.write_table(ROWS.take([*range(1, 64), 0]), sink)
    return bytes(sink.getvalue().to_pybytes())


CHANGES: dict[str, Callable[[bytes, int], bytes]] = {
    "a bit": flip,
    "cut": lambda data, at: data[:at],
    "longer": lambda data, at: data + data[at:] + b"0",
    "zeros": lambda data, at: data[:at] + bytes(len(data) - at),
    "other rows": swap_rows,
}


@pytest.mark.parametrize("how", READERS)
def test_what_was_written_is_read(how: str, step: Committed) -> None:
    plain = READERS[how](Folder(step.uri))
    assert READERS[how](step) == plain
    assert READERS[how](pickle.loads(pickle.dumps(step))) == plain
    assert step.read_json(RECORD) == {"dim": 64}


@given(
    how=st.sampled_from(sorted(READERS)),
    change=st.sampled_from(sorted(CHANGES)),
    where=st.floats(0, 1, exclude_max=True),
    read_before=st.booleans(),
)
def test_a_changed_file_is_never_read(
    how: str, change: str, where: float, read_before: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        _refuse_changed(Path(name), how, change, where, read_before)


def _refuse_changed(folder: Path, how: str, change: str, where: float, read_before: bool) -> None:
    Folder.of(folder).write_table(TABLE, ROWS)
    step, path = seal(folder, ADDRESS), folder / TABLE
    if read_before:
        READERS[how](step)
    stat, data = path.stat(), path.read_bytes()
    path.write_bytes(CHANGES[change](data, int(where * len(data))))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a bad disk leaves it
    with pytest.raises(StageError, match=f"^{TABLE} of {ADDRESS} is not the file that the step"):
        READERS[how](step)
    path.write_bytes(data)  # the file is put back
    assert READERS[how](step) == READERS[how](Folder(step.uri))


@pytest.mark.parametrize("how", READERS)
def test_a_file_that_is_gone_is_said_with_the_way_out(how: str, step: Committed) -> None:
    wanted = Path(step.uri) / TABLE
    read = READERS[how]
    if how == "expected":
        known = step.sha256(TABLE)

        def read(folder: Folder) -> object:
            return folder.read_expected(TABLE, known)

    wanted.unlink()
    with pytest.raises(StageError, match=rf"\(it is missing\); .* --redo {ADDRESS}$"):
        read(step)


def test_a_file_that_the_step_never_had_is_absent(step: Committed) -> None:
    (Path(step.uri) / "classes.json").write_text("[]")  # put there by someone else
    assert not step.exists("classes.json")
    assert step.exists(TABLE)
    for read in (step.read_json, step.check, step.read_table):
        with pytest.raises(FileNotFoundError):
            read("classes.json")


@pytest.mark.parametrize("read_before", [False, True])
def test_a_step_that_was_done_again_is_not_called_damaged(
    read_before: bool, step: Committed
) -> None:
    if read_before:
        step.read_table(TABLE)
    other = step.read_table(TABLE).slice(1) if read_before else ROWS.slice(1)
    Folder(step.uri).write_table(TABLE, other)
    seal(Path(step.uri), ADDRESS)
    with pytest.raises(StageError, match=f"^{ADDRESS} was done again or removed while"):
        step.read_table(TABLE)


def test_a_file_is_hashed_once(step: Committed, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    real = Folder.sha256

    def counted(self: Folder, name: str) -> str:
        hashed.append(name)
        return real(self, name)

    monkeypatch.setattr(Folder, "sha256", counted)
    for _ in range(3):
        step.read_table(TABLE)
        read_mapped(step, TABLE)
        step.expect(
            TABLE, json.loads((Path(step.uri) / MANIFEST).read_text())["files"][TABLE]["sha256"]
        )
    assert hashed == [TABLE]

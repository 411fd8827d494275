"""The ledger: what is paid for is never lost, and never used if it was changed."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mutations
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedding_server import serving, vector
from jobs.contract import StageError
from jobs.embeddings import ledger as ledgers
from jobs.embeddings.ask import buy
from jobs.embeddings.ledger import Drift, Ledger, Paid
from jobs.embeddings.texts import key_of
from jobs.encoders.api import ApiEncoder
from jobs.storage.folder import Folder

OWN = ApiEncoder(name="ada", base_url="http://127.0.0.1:1/v1", model="text-embedding-ada-002")
TEXTS = [f"text {n}" for n in range(100)]
KEYS = [key_of(text) for text in TEXTS]
VECTORS = np.stack([vector(text) for text in TEXTS])
TEN = Paid(requests=1, counted=10, usage=11, counted_with_usage=10, price=0.5)


def filled(root: Path, pieces: int = 10) -> Ledger:
    found = Ledger.of(Folder.of(root), OWN)
    found.begin(OWN)
    for rows in np.array_split(np.arange(len(TEXTS)), pieces):
        found.add([KEYS[n] for n in rows], VECTORS[rows], TEN)
    return found


def again(root: Path) -> Ledger:
    return Ledger.of(Folder.of(root), OWN)


def test_vectors_come_back_bit_for_bit_in_any_order(tmp_path: Path) -> None:
    filled(tmp_path)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    found = again(tmp_path).vectors([KEYS[n] for n in order])
    assert found.dtype == np.float32
    assert np.array_equal(found, VECTORS[order])


def test_a_ledger_is_named_by_all_that_decides_a_vector() -> None:
    changes = {
        "base_url": "http://127.0.0.1:2/v1",
        "model": "other",
        "dimensions": 8,
        "extra": {"input_type": "query"},
        "prompt": "query: ",
        "max_length": 100,
        "truncate": "refuse",
        "tokens": "o200k_base",
    }
    others = {OWN.model_copy(update={name: value}).ledger for name, value in changes.items()}
    assert len(others | {OWN.ledger}) == len(changes) + 1
    same = {
        "name": "other",
        "key_env": "KEY",
        "batch_rows": 1,
        "batch_tokens": 1,
        "concurrency": 1,
        "price_per_million": 1.0,
        "max_price": 1.0,
        "timeout": 1.0,
        "pair": "join",  # decides which texts are sent, not what they give
        "base_url": "https://127.0.0.1:1/v1",
    }
    for name, value in same.items():
        assert OWN.model_copy(update={name: value}).ledger == OWN.ledger, name


def test_compacting_keeps_every_vector_and_what_was_paid(tmp_path: Path) -> None:
    filled(tmp_path).compact()
    found = again(tmp_path)
    assert np.array_equal(found.vectors(KEYS), VECTORS)
    assert found.paid == Paid(10, 100, 110, 100, 5.0)
    assert found.files == 1
    assert len(list((found.folder / "answers").files())) == 1
    found.compact()
    assert again(tmp_path).files == 1


def test_a_kill_within_compacting_counts_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = filled(tmp_path)
    monkeypatch.setattr(Ledger, "_delete_replaced", lambda self: None)
    found.compact()
    assert len(list((found.folder / "answers").files())) == 11
    monkeypatch.undo()
    read = again(tmp_path)
    assert (read.paid, len(read)) == (Paid(10, 100, 110, 100, 5.0), 100)
    read.compact()
    assert len(list((found.folder / "answers").files())) == 1
    assert np.array_equal(again(tmp_path).vectors(KEYS), VECTORS)


def test_what_a_killed_writer_has_half_written_counts_nothing_and_goes(tmp_path: Path) -> None:
    found = filled(tmp_path)
    half = Path(found.folder.uri) / "answers" / f"{0:020d}-{'a' * 64}.arrow.0a1b2c3d.partial"
    half.write_bytes(b"half")
    assert len(again(tmp_path)) == 100
    again(tmp_path).begin(OWN)
    assert not half.exists()


def test_large_files_are_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "COMPACT_ROWS", 30)
    found = filled(tmp_path)
    found.compact()
    names = [name for name, _ in (found.folder / "answers").files()]
    found.add([key_of("new")], vector("new")[None], TEN)
    found.compact()
    after = [name for name, _ in (found.folder / "answers").files()]
    assert set(names[1:]) <= set(after)  # the first has ten rows, and takes in the new one
    assert len(after) == len(names) == 4
    assert len(again(tmp_path)) == 101


def test_a_reader_goes_on_while_the_ledger_is_compacted(tmp_path: Path) -> None:
    filled(tmp_path)
    reader = again(tmp_path)
    again(tmp_path).compact()
    assert np.array_equal(reader.vectors(KEYS), VECTORS)


def test_the_older_of_two_vectors_of_a_text_is_right(tmp_path: Path) -> None:
    found = filled(tmp_path)
    found.add(KEYS[:5], VECTORS[5:10], TEN)
    assert np.array_equal(found.vectors(KEYS), VECTORS)
    found.compact()
    assert np.array_equal(again(tmp_path).vectors(KEYS), VECTORS)


def test_a_changed_file_is_named_and_never_used(tmp_path: Path) -> None:
    found = filled(tmp_path, pieces=1)
    name, _ = next((found.folder / "answers").files())
    path = Path(found.folder.uri) / "answers" / name
    data = bytearray(path.read_bytes())
    at = data.index(VECTORS[50].tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(StageError, match=name):
        again(tmp_path).vectors(KEYS)
    assert len(list(again(tmp_path).faults())) == 1


def test_a_file_that_is_no_answer_is_named(tmp_path: Path) -> None:
    found = filled(tmp_path)
    (Path(found.folder.uri) / "answers" / f"{0:020d}-{'a' * 64}.arrow").write_bytes(b"no")
    with pytest.raises(StageError, match="is not what an API's answer wrote"):
        again(tmp_path)


FACTS = {"paid": vars(Paid()), "replaces": ["a.arrow"]}


def answers_with(path: Path, facts: bytes, table: pa.Table | None = None) -> None:
    """A file of answers with other facts, or other columns, under the digest of its bytes."""
    path.mkdir(parents=True, exist_ok=True)
    kind = pa.list_(pa.field("element", pa.float32(), nullable=False), 2)
    found = pa.table(
        [pa.array([KEYS[0]], pa.binary(32)), pa.array([[1.0, 2.0]], kind)],
        schema=ledgers._schema(kind),
    )
    found = (found if table is None else table).replace_schema_metadata({b"paid": facts})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, found.schema) as writer:
        writer.write_table(found)
    data = sink.getvalue().to_pybytes()
    name = f"{1:020d}-{hashlib.sha256(data).hexdigest()}.arrow"
    (path / name).write_bytes(data)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_facts_that_are_not_what_they_should_be_are_told_in_one_sentence(
    tmp_path: Path, data: st.DataObject
) -> None:
    answers = tmp_path / ledgers.LEDGERS / OWN.ledger / "answers"
    shutil.rmtree(answers, ignore_errors=True)
    damage = data.draw(mutations.of(json.dumps(FACTS).encode()).filter(lambda made: made))
    answers_with(answers, damage or b"")
    (path,) = answers.iterdir()
    found = ""
    try:
        total = again(tmp_path).paid
    except StageError as error:
        found = str(error)
    assert mutations.is_a_sentence(found, path) if found else isinstance(total, Paid)


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"x": [1]}),
        pa.table({"text": ["a"], "vector": [[1.0]]}),
        pa.table({"text": pa.array([KEYS[0]], pa.binary(32)), "vector": [1.0]}),
    ],
)
def test_columns_that_are_not_what_they_should_be_are_told_in_one_sentence(
    tmp_path: Path, table: pa.Table
) -> None:
    answers = tmp_path / ledgers.LEDGERS / OWN.ledger / "answers"
    answers_with(answers, json.dumps(FACTS).encode(), table)
    with pytest.raises(StageError, match=r"\(its columns are others\); restore it"):
        again(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"ARROW1", None])
def test_a_damaged_file_of_answers_is_told_in_one_sentence(
    tmp_path: Path, damage: bytes | None
) -> None:
    found = filled(tmp_path, pieces=1)
    (path,) = (Path(found.folder.uri) / "answers").iterdir()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    with pytest.raises(StageError, match="is not what an API's answer wrote"):
        again(tmp_path)


def test_a_changed_file_never_has_others_deleted(tmp_path: Path) -> None:
    found = filled(tmp_path, pieces=2)
    answers = Path(found.folder.uri) / "answers"
    (kept, *_) = sorted(path.name for path in answers.iterdir())
    facts = {"paid": vars(Paid()), "replaces": [kept]}
    answers_with(answers, json.dumps(facts).encode(), pa.table(*_columns_of(found)))
    (changed,) = answers.glob(f"{1:020d}-*")
    changed.rename(answers / f"{1:020d}-{'a' * 64}.arrow")
    with pytest.raises(StageError, match="is not what an API's answer wrote"):
        again(tmp_path).compact()
    assert (answers / kept).exists()


def _columns_of(found: Ledger) -> tuple[list[pa.Array], list[str]]:
    kind = pa.list_(pa.field("element", pa.float32(), nullable=False), found.dim or 0)
    zeros = pa.array([[0.0] * (found.dim or 0)], kind)
    return [pa.array([b"x" * 32], pa.binary(32)), zeros], ["text", "vector"]


def test_an_accepted_vector_of_another_length_is_told(tmp_path: Path) -> None:
    found = filled(tmp_path)
    found.accept(Drift("2024-01-01", 0.5, (1.0, 2.0)))
    (Path(found.folder.uri) / "drift/.DS_Store").write_bytes(b"x")
    with pytest.raises(StageError, match=r"has 2 numbers instead of .*; restore it"):
        again(tmp_path).canary(KEYS[0])


def test_an_accepted_change_of_the_model_is_what_counts_from_then_on(tmp_path: Path) -> None:
    found = filled(tmp_path)
    assert np.array_equal(found.canary(KEYS[0]), VECTORS[0])
    found.accept(Drift("2024-01-01", 0.5, tuple(map(float, VECTORS[1]))))
    assert np.array_equal(again(tmp_path).canary(KEYS[0]), VECTORS[1])


def test_threads_may_add_at_once(tmp_path: Path) -> None:
    found = Ledger.of(Folder.of(tmp_path), OWN)
    found.begin(OWN)
    with ThreadPoolExecutor(8) as pool:
        pool.map(lambda n: found.add([KEYS[n]], VECTORS[[n]], TEN), range(len(KEYS)))
    assert np.array_equal(found.vectors(KEYS), VECTORS)
    assert found.paid == again(tmp_path).paid


def buy_all(url: str, folder: str) -> None:
    """Buy 600 texts, ten in a request and three requests at once."""
    own = ApiEncoder(
        name="ada", base_url=url, model="text-embedding-ada-002", batch_rows=10, concurrency=3
    )
    ledger = Ledger.of(Folder.of(folder), own)
    texts = {key_of(f"text {n}"): f"text {n}" for n in range(600)}
    ledger.begin(own)
    buy({key: text for key, text in texts.items() if key not in ledger}, own, ledger)
    ledger.compact()


CHILD = f"""
import sys
from jobs.embeddings.ask import buy
from jobs.embeddings.ledger import Ledger
from jobs.embeddings.texts import key_of
from jobs.encoders.api import ApiEncoder
from jobs.storage.folder import Folder
{inspect.getsource(buy_all)}
buy_all(*sys.argv[1:])
"""


@pytest.mark.faults
def test_a_kill_pays_again_only_for_what_was_in_flight(tmp_path: Path) -> None:
    with serving() as stub:
        stub.delay = 0.05
        child = subprocess.Popen([sys.executable, "-c", CHILD, stub.url, str(tmp_path)])
        while len(stub.sold) < 0.5 * 600:
            assert child.poll() is None
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        stub.delay = 0
        buy_all(stub.url, str(tmp_path))
        texts = {text: count for text, count in stub.sold.items() if text.startswith("text ")}
        in_flight = 3 * 10  # three slots of ten texts
        assert len(texts) == 600
        assert sum(texts.values()) <= 600 + in_flight
        requests = len(stub.requests)
        buy_all(stub.url, str(tmp_path))
        assert len(stub.requests) == requests + 1  # `buy` of nothing asks the canary alone
    own = OWN.model_copy(update={"base_url": stub.url})
    found = Ledger.of(Folder.of(tmp_path), own)
    keys = [key_of(f"text {n}") for n in range(600)]
    assert np.array_equal(found.vectors(keys), np.stack([vector(f"text {n}") for n in range(600)]))
    assert found.files == 1

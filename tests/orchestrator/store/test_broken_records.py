"""Records of a store, damaged in every way: rebuilt, or told in one sentence with the way out."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import mutations
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import synthetic
from jobs import strict_yaml
from jobs.storage.folder import Folder
from orchestrator.cli import _run
from orchestrator.errors import StoreError
from orchestrator.experiment import last_sweep, load
from orchestrator.plan import build
from orchestrator.plan.plan import Plan
from orchestrator.results import collect
from orchestrator.store import index
from orchestrator.store.lease import Leases, living
from orchestrator.store.manifest import Manifest
from orchestrator.store.store import Store

FAST = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
STEP = "corpus/digits"


@pytest.fixture
def small() -> Plan:
    return build.build(
        load.load(noise="0,10", seeds="0", overrides=["name=mine", "tasks=[digits]"])
    )


@pytest.fixture
def store(small: Plan, tmp_path: Path) -> Store:
    made = Store(Folder.of(tmp_path / "nml-store"))
    synthetic.fill(small, made)
    last_sweep.remember(small.experiment, made.root)
    return made


def told(read: Callable[[], object], kind: type, path: Path) -> None:
    """`read` gives a `kind`, or raises one sentence that names the file and what to do."""
    found: object
    try:
        found = read()
    except StoreError as error:
        found = error
    assert type(found) is kind or mutations.is_a_sentence(str(found), path), found


@FAST
@given(data=st.data())
def test_a_damaged_manifest_is_told_in_one_sentence(store: Store, data: st.DataObject) -> None:
    path = store.output(STEP).local_path() / "manifest.json"
    kept = path.with_name("kept")
    if not kept.exists():
        path.rename(kept)
    mutations.put(path, data.draw(mutations.of(kept.read_bytes())))
    told(lambda: store.manifest(STEP), Manifest, path)
    told(lambda: store.records([STEP], verify=True), dict, path)


def test_no_typed_field_of_a_manifest_may_have_another_type(store: Store) -> None:
    path = store.output(STEP).local_path() / "manifest.json"
    value = json.loads(path.read_bytes())
    for at in mutations.paths(value):
        free = at[:1] in [("fields",), ("provenance",)] and at not in [
            ("fields",),
            ("fields", "spec"),
            ("provenance",),
            ("provenance", "started"),
            ("provenance", "finished"),
            ("provenance", "seconds"),
        ]
        for other in () if free else mutations.OTHER[:1]:
            path.write_bytes(mutations.changed(value, at, other))
            with pytest.raises(StoreError, match="delete its folder to have the step redone"):
                store.manifest(STEP)


def test_a_manifest_of_another_step_is_not_this_steps(store: Store) -> None:
    other = store.root.local_path() / "noise/digits/symmetric/draw=0/level=10/manifest.json"
    path = store.output(STEP).local_path() / "manifest.json"
    path.write_bytes(other.read_bytes())
    with pytest.raises(
        StoreError, match="is the manifest of noise/digits/symmetric/draw=0/level=10"
    ):
        store.manifest(STEP)


@FAST
@given(data=st.data())
def test_a_damaged_identity_is_told_in_one_sentence(tmp_path: Path, data: st.DataObject) -> None:
    store, path = Store(Folder.of(tmp_path)), tmp_path / "store.json"
    damage = data.draw(mutations.of(b'{"format": 1, "id": "0123456789abcdef"}'))
    mutations.put(path, damage)
    told(lambda: store.identity, str, path)
    told(store.prepare, type(None), tmp_path)


@FAST
@given(data=st.data())
def test_a_damaged_claim_is_a_claim_until_it_expires(tmp_path: Path, data: st.DataObject) -> None:
    holder, other = Leases(Folder.of(tmp_path)), Leases(Folder.of(tmp_path))
    try:
        assert holder.acquire(STEP)
        (path,) = (tmp_path / ".leases/claims").rglob("*.*")
        damage = data.draw(mutations.of(path.read_bytes()).filter(lambda made: made is not None))
        mutations.put(path, damage)
        assert other.acquire(STEP) in (False, True)  # true for a process id that nobody has
        other.release(STEP)
        assert living(Folder.of(tmp_path)) <= {STEP, "text", "", "2026-13-45"}
    finally:
        holder.close()
        other.close()


@pytest.mark.parametrize("content", ["[1]", "{}", "null", "", "\x00", '{"pid": true}', "[" * 10**5])
def test_a_claim_without_a_process_is_respected(tmp_path: Path, content: str) -> None:
    holder, other = Leases(Folder.of(tmp_path)), Leases(Folder.of(tmp_path))
    assert holder.acquire(STEP)
    (path,) = (tmp_path / ".leases/claims").rglob("*.*")
    path.write_text(content)
    assert not other.acquire(STEP)
    assert living(Folder.of(tmp_path)) == set()
    holder.close()
    assert other.acquire(STEP)
    other.close()


def _altered(table: pa.Table, name: str, new: pa.Array | None) -> pa.Table:
    at = table.schema.get_field_index(name)
    return table.remove_column(at) if new is None else table.set_column(at, name, new)


def _segments(path: Path) -> list[bytes | pa.Table | None]:
    """Damaged forms of a segment: bytes, tables, and None for a folder."""
    content, table = path.read_bytes(), pq.read_table(path)
    names = [n for n in table.column_names if path.suffix == ".steps" or n in index._STAMPED.names]
    junk: list[bytes | pa.Table | None] = [None, b"", b"PAR1", content[: len(content) // 2]]
    junk += [content[:-40] + bytes(32) + content[-8:], pa.table({"x": [1]}), table.slice(0, 0)]
    junk += [table.append_column("address", table["address"])]
    junk += [_altered(table, name, None) for name in names]
    junk += [_altered(table, name, pa.array([[1]] * len(table))) for name in names]
    junk += [_altered(table, name, pa.nulls(len(table), table[name].type)) for name in names]
    if path.suffix == ".steps":
        for facts in ("", "[]", "{", '{"counts": []}', '{"counts":{},"metrics":{},"files":[1]}'):
            junk.append(_altered(table, "facts", pa.array([facts] * len(table))))
    else:
        junk.append(_altered(table, "test_accuracy", pa.array(["9"] * len(table))))
    return junk


@pytest.mark.parametrize("family", ["steps", "cells"])
def test_a_segment_of_the_index_with_anything_in_it_costs_only_time(
    small: Plan, store: Store, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    monkeypatch.setattr(index, "KEEP_ROWS", 1)
    cells = sorted(step.address for step in small.of_kind("tune"))
    before, rows = store.records(small.steps), store.cells(cells)
    assert rows is not None
    folder = store.root.local_path() / index.FOLDER
    (path,) = folder.glob(f"*.{family}")
    monkeypatch.setattr(index, "KEEP_ROWS", 10**6)
    for junk in _segments(path):
        if isinstance(junk, pa.Table):
            mutations.put(path, b"")
            pq.write_table(junk, path)
        else:
            mutations.put(path, junk)
        assert store.records(small.steps) == before, junk
        found = store.cells(cells)
        assert found is not None, junk
        ordered = found.select(rows.column_names).sort_by("address")
        assert ordered.equals(rows.sort_by("address")), junk


def test_a_file_in_place_of_the_index_costs_only_time(small: Plan, store: Store) -> None:
    before = store.records(small.steps)
    (store.root.local_path() / index.FOLDER).write_text("not a folder")
    assert store.records(small.steps) == before
    assert store.cells([step.address for step in small.of_kind("tune")]) is not None


def test_a_damaged_report_is_written_again(small: Plan, store: Store) -> None:
    before = collect.refresh(small, store)
    folder = before.folder.local_path()
    written = (folder / "manifest.json").stat().st_mtime_ns
    collect.refresh(small, store)
    assert (folder / "manifest.json").stat().st_mtime_ns == written
    damages = [("manifest.json", b"[]"), ("summary.parquet", b"PAR1"), ("encoders.parquet", None)]
    for name, damage in [("manifest.json", None), *damages]:
        mutations.put(folder / name, damage)
        assert collect.refresh(small, store).summary.equals(before.summary)
        assert (folder / name).is_file()


JUNK = [
    "name: [",
    "name: 2026-13-01",
    "x: 2026-02-30 25:00:00",
    "x: !!int ''",
    "x: !!float abc",
    "x: !!bool maybe",
    "x: !!timestamp soon",
    "x: !!python/name:os.system",
    "- a",
    "",
    "null",
    "\x00",
    "{a: 1, a: 2}",
    "? [a, b]\n: 1",
    "? {a: b}\n: 1",
    "&a [*a]",
    "[" * 700,
    "x: " + "9" * 5000,
    "<<: 1",
    "name: mine\nnoise: 3",
]


@pytest.mark.parametrize("text", JUNK)
def test_a_damaged_last_sweep_is_told_in_one_sentence(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nml-store").mkdir()
    (tmp_path / "nml-store/last-sweep.yaml").write_text(text)
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/a.yaml").write_text(text)
    for words in (["status"], ["plan", "mine.yaml"], ["tasks", "check", "--tasks-path", "tasks"]):
        assert _run(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("nml-orch: ")
        assert said.count("\n") == 1, said
        assert "bug" not in said
        if words == ["status"]:
            assert "last-sweep.yaml: " in said
            assert said.endswith(f"; {last_sweep.REMEDY}\n")


@pytest.mark.parametrize("damage", [None, b"\xff\xfe"])
def test_a_last_sweep_that_is_no_text_is_told_in_one_sentence(
    damage: bytes | None,
    small: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "nml-store/last-sweep.yaml"
    path.parent.mkdir()
    mutations.put(path, damage)
    assert _run(["status"]) == 2
    said = capsys.readouterr().err
    assert str(path) in said
    assert said.endswith(f"; {last_sweep.REMEDY}\n")
    if damage is None:
        with pytest.raises(StoreError, match="cannot be written"):
            last_sweep.remember(small.experiment, Folder.of(path.parent))


@given(st.lists(st.sampled_from([*"{}[]:,&*!?|>-#%@`'\"\n 0129a~", "!!int", "<<", "2026-13-01"])))
def test_any_text_is_yaml_or_a_yaml_error(words: list[str]) -> None:
    with suppress(yaml.YAMLError):
        strict_yaml.parse("".join(words))

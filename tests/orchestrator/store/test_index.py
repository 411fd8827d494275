"""The index: it gives the same records as the manifests, even if it is damaged or lost."""

import os
import time
from pathlib import Path

import pyarrow as pa
import pytest

import synthetic
from jobs.storage.folder import Folder
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.plan.assess import assess
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepState
from orchestrator.results import collect
from orchestrator.store import index
from orchestrator.store.index import Index, Journal
from orchestrator.store.manifest import Manifest, Record, Stamp
from orchestrator.store.store import Store


@pytest.fixture
def small() -> Plan:
    overrides = ["tuning.fractions=[100]", "tasks=[digits]"]
    return build.build(load.load(noise="0,10", seeds="0", overrides=overrides))


@pytest.fixture
def store(small: Plan, tmp_path: Path) -> Store:
    made = Store(Folder.of(tmp_path))
    synthetic.fill(small, made)
    return made


@pytest.fixture
def kept(small: Plan, store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store, with an index that a reader left."""
    monkeypatch.setattr(index, "KEEP_ROWS", 1)
    store.records(small.steps)
    store.cells([step.address for step in small.of_kind("tune")])
    assert segments(store) == {"steps": 1, "cells": 1}
    return store


def segments(store: Store) -> dict[str, int]:
    names = [name for name, _ in (store.root / index.FOLDER).files()]
    return {family: sum(n.endswith(family) for n in names) for family in ("steps", "cells")}


def by_manifests(small: Plan, store: Store) -> dict[str, Record]:
    return {a: Record.of(m) for a in small.steps if (m := store.manifest(a)) is not None}


def no_manifest(self: Store, address: str) -> Manifest | None:
    raise AssertionError(f"the manifest of {address} was opened")


def test_it_has_the_records_of_the_manifests(small: Plan, kept: Store) -> None:
    assert kept.records(small.steps) == by_manifests(small, kept)


def test_reading_it_opens_no_manifest(
    small: Plan, kept: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "manifest", no_manifest)
    assert {found.state for found in assess(small, kept).values()} == {StepState.DONE}
    with pytest.raises(AssertionError, match="was opened"):
        assess(small, kept, verify=True)


def test_a_deleted_step_is_missing_although_the_index_has_it(small: Plan, kept: Store) -> None:
    address = small.of_kind("tune")[0].address
    kept.output(address).delete()
    assert assess(small, kept)[address].state is StepState.MISSING


def test_a_redone_step_has_its_new_record(small: Plan, kept: Store) -> None:
    address = small.of_kind("pretrain")[0].address
    manifest = kept.manifest(address)
    assert manifest is not None
    redone = manifest.model_copy(update={"metrics": {"pretrain/val_accuracy": 12.5}})
    kept.output(address).write_json("manifest.json", redone.model_dump(mode="json"))
    assert kept.records(small.steps)[address].metrics == {"pretrain/val_accuracy": 12.5}


def test_settings_that_changed_are_drift_through_the_index_too(small: Plan, kept: Store) -> None:
    overrides = ["tuning.fractions=[100]", "tasks=[digits]", "pretrain.recipe.schedule.lr=0.05"]
    changed = build.build(load.load(noise="0,10", seeds="0", overrides=overrides))
    found = assess(changed, kept)
    reasons = {found[s.address].reason for s in changed.of_kind("pretrain")}
    assert reasons == {"recipe.schedule.lr: 0.1 -> 0.05"}


@pytest.mark.parametrize("damage", ["lost", "cut short", "not ours"])
def test_a_damaged_segment_costs_only_time(small: Plan, kept: Store, damage: str) -> None:
    before = kept.records(small.steps)
    folder = kept.root / index.FOLDER
    for name, size in list(folder.files()):
        if damage == "lost":
            folder.delete(name)
        else:
            content = folder.read_bytes(name)[: size // 2] if damage == "cut short" else b"?"
            folder.write_bytes(name, content)
    cells = [step.address for step in small.of_kind("tune")]
    assert kept.records(small.steps) == before
    found = kept.cells(cells)
    assert found is not None
    assert sorted(found["address"].to_pylist()) == sorted(cells)


def test_numbers_that_were_changed_in_a_segment_are_not_believed(small: Plan, kept: Store) -> None:
    cells = [step.address for step in small.of_kind("tune")]
    before = kept.cells(cells)
    folder = kept.root / index.FOLDER
    (name,) = (name for name, _ in folder.files() if name.endswith(index.CELLS))
    rows = folder.read_table(name)
    at = rows.column_names.index("test_accuracy")
    folder.write_table(name, rows.set_column(at, "test_accuracy", pa.array([99.0] * len(rows))))
    found = kept.cells(cells)
    assert before is not None
    assert found is not None
    assert found.sort_by("address").equals(before.sort_by("address"))


def test_cells_are_the_same_rows_with_and_without_it(small: Plan, kept: Store) -> None:
    cells = sorted(step.address for step in small.of_kind("tune"))
    indexed = kept.cells(cells)
    (kept.root / index.FOLDER).delete()
    direct = kept.cells(cells)
    assert indexed is not None
    assert direct is not None
    assert indexed.sort_by("address").equals(direct.sort_by("address"))


def test_a_store_that_may_not_be_written_is_still_read(
    small: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Folder, name: str, data: bytes, *, durable: bool = True) -> None:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(index, "KEEP_ROWS", 1)
    monkeypatch.setattr(Folder, "write_bytes", refuse)
    assert store.records(small.steps) == by_manifests(small, store)
    assert segments(store) == {"steps": 0, "cells": 0}


def stamp(store: Store, address: str) -> Stamp:
    found = store.stamp(address)
    assert found is not None
    return found


def test_many_segments_become_one_and_no_step_is_lost(small: Plan, store: Store) -> None:
    for _ in range(3):
        for address in small.steps:
            manifest = store.manifest(address)
            assert manifest is not None
            journal = Journal(Index(store.root))
            row = pa.table({"test_accuracy": [50.0]}) if manifest.kind == "tune" else None
            journal.add(manifest, stamp(store, address), row)
            journal.flush(force=True)
    assert max(segments(store).values()) <= index.SEGMENTS + 1
    stamps = store.stamps(small.steps)
    assert Index(store.root).records(stamps) == by_manifests(small, store)
    cells = [a for table in Index(store.root).cells(stamps) for a in table["address"].to_pylist()]
    assert sorted(cells) == sorted(step.address for step in small.of_kind("tune"))


def test_two_drivers_may_write_many_segments_into_one_at_once(
    small: Plan, kept: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One lists the segments, the other has replaced all of them before the first reads any."""
    own, other = Index(kept.root), Index(kept.root)
    stamps = kept.stamps(small.steps)
    monkeypatch.setattr(index, "SEGMENTS", 1)
    listed = own._segments

    def overtaken(family: str) -> list[str]:
        names = listed(family)
        other._compact(family, names)
        return names

    monkeypatch.setattr(own, "_segments", overtaken)
    own.keep(by_manifests(small, kept), stamps)
    assert segments(kept)["steps"] == 1
    assert other.records(stamps) == by_manifests(small, kept)


def test_a_journal_waits_until_there_is_much_to_write(
    small: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(Index(store.root))
    for address in small.steps:
        manifest = store.manifest(address)
        assert manifest is not None
        journal.add(manifest, stamp(store, address), None)
        journal.flush()
    assert segments(store)["steps"] == 0
    monkeypatch.setattr(index, "FLUSH_SECONDS", 0.01)
    time.sleep(0.02)
    journal.flush()
    assert segments(store)["steps"] == 1


def test_a_manifest_of_the_same_size_written_later_is_read_anew(small: Plan, kept: Store) -> None:
    address = small.of_kind("pretrain")[0].address
    path = Path(kept.root.uri) / address / "manifest.json"
    text = path.read_text().replace('"rows": 1000', '"rows": 2000')
    path.write_text(text)
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 1))
    assert kept.records(small.steps)[address].counts == {"rows": 2000}


def test_cells_of_pretrained_encoders_go_through_it_like_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["tuning.label_noise=[0, 20]", "tuning.fractions=[100]"]
    made = build.build(load.load("encoders-practical", overrides=overrides))
    store = Store(Folder.of(tmp_path))
    synthetic.fill(made, store)
    monkeypatch.setattr(index, "KEEP_ROWS", 1)
    before = collect.collect(made, store)
    of_encoders = [s for s in made.of_kind("tune") if not s.labels["label_noise"]]
    assert [row["address"] for row in before.pretrained_cells.to_pylist()] == [
        s.address for s in of_encoders
    ]
    assert before.label_noise_cells.num_rows == len(of_encoders)
    assert all(s.labels["encoder"] for s in of_encoders)

    def refuse(self: Store, address: str) -> pa.Table:
        raise AssertionError(f"the rows of {address} were read from its folder")

    monkeypatch.setattr(Store, "cell", refuse)
    after = collect.collect(made, store)
    assert after.pretrained_cells.equals(before.pretrained_cells)
    assert after.label_noise_cells.equals(before.label_noise_cells)

"""The audit finds every difference from what seed and keys give, and measures the true rates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.contract import Outcome, StageError, Work
from jobs.noise.audit import Auditor
from jobs.noise.job import build_levels
from jobs.noise.spec import NoiseStep
from jobs.storage.folder import Folder
from tests.jobs.noise.conftest import Write

CLASSES = ("cat", "dog", "fox")
N = 300
KEYS = [f"k{i:03d}" for i in range(N)]
LABELS = [i % 3 for i in range(N)]
CAPTIONS = [f"caption {i % 50}" for i in range(N)]

Edit = Callable[[pa.Table], pa.Table]


def step(level: float = 20, kind: str = "symmetric", **fields: object) -> NoiseStep:
    noise = {"name": "n", "kind": kind, "levels": [level], **fields}
    return NoiseStep.model_validate({"corpus": "c", "noise": noise, "level": level})


def built(root: Path, corpus: Folder, spec: NoiseStep) -> Folder:
    folder = Folder.of(root / "noise")
    (outcome,) = build_levels([Work("a", "f", spec, {"corpus": corpus}, folder, folder)])
    assert isinstance(outcome, Outcome), outcome
    return folder


def edit(folder: Folder, change: Edit) -> None:
    folder.write_table("changed.parquet", change(folder.read_table("changed.parquet")))


def replaced(name: str, row: int, value: object) -> Edit:
    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[row] = value
        at = table.column_names.index(name)
        return table.set_column(at, name, pa.array(values, table[name].type))

    return change


@pytest.mark.parametrize("kind", ["symmetric", "pair", "caption_swap", "caption_swap_near"])
def test_what_the_stage_wrote_is_sound(corpus: Write, tmp_path: Path, kind: str) -> None:
    folder = corpus(KEYS, LABELS, CAPTIONS, classes=CLASSES)
    spec = step(kind=kind)
    found = Auditor(spec.noise, folder).audit(built(tmp_path, folder, spec))
    assert found.sound
    assert found.first_fault == ""
    assert found.rederived == found.overlay.changed == found.present_changed == 60
    assert found.nominal_percent == found.written_percent == found.realised_percent == 20
    assert sum(rate.changed for rate in found.classes) == 60
    assert [rate.rows for rate in found.classes] == [100, 100, 100]


FAULTS: dict[str, tuple[Edit, str]] = {
    "missing": (lambda t: t.slice(1), "should be changed and is not listed"),
    "altered": (replaced("noisy", 3, 99), "has noisy 99, not"),
    "unexpected": (
        lambda t: pa.concat_tables([t, t.slice(0, 1).set_column(0, "row", pa.array([N + 5]))]),
        f"row {N + 5} (beyond the corpus) is listed and should not be changed",
    ),
    "out_of_order": (lambda t: t.take(pa.array(range(len(t) - 1, -1, -1))), "numbers do not rise"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tampered_row_is_found_counted_and_named(
    corpus: Write, tmp_path: Path, fault: str
) -> None:
    folder = corpus(KEYS, LABELS, CAPTIONS, classes=CLASSES)
    spec = step(kind="pair")
    level = built(tmp_path, folder, spec)
    change, message = FAULTS[fault]
    edit(level, change)
    found = Auditor(spec.noise, folder).audit(level)
    assert not found.sound
    assert found.faults[fault] > 0
    assert [name for name, count in found.faults.items() if count] == [fault]
    assert message in found.first_fault


@pytest.mark.parametrize("name", ["key", "clean"])
def test_a_row_of_another_sample_is_found(corpus: Write, tmp_path: Path, name: str) -> None:
    folder = corpus(KEYS, LABELS, CAPTIONS, classes=CLASSES)
    spec = step(kind="caption_swap")
    level = built(tmp_path, folder, spec)
    edit(level, replaced(name, 7, "another"))
    found = Auditor(spec.noise, folder).audit(level)
    assert found.faults["altered"] == 1
    assert f"has {name} 'another', not" in found.first_fault


def test_a_false_description_is_found(corpus: Write, tmp_path: Path) -> None:
    folder = corpus(KEYS, LABELS, classes=CLASSES)
    spec = step()
    level = built(tmp_path, folder, spec)
    stored: dict[str, Any] = level.read_json("overlay.json")
    level.write_json("overlay.json", {**stored, "eligible": 299})
    found = Auditor(spec.noise, folder).audit(level)
    assert found.faults["misdescribed"] == 1
    assert found.first_fault == "overlay.json says eligible = 299, not 300"


def test_a_level_in_the_folder_of_another_is_found(corpus: Write, tmp_path: Path) -> None:
    folder = corpus(KEYS, LABELS, classes=CLASSES)
    spec = step(20)
    level = built(tmp_path, folder, spec)
    assert Auditor(spec.noise, folder).audit(level, 20).sound
    found = Auditor(spec.noise, folder).audit(level, 10)
    assert found.faults["unexpected"] == 30
    assert found.faults["misdescribed"] > 0


def truncated(folder: Folder, name: str) -> None:
    folder.write_bytes(name, folder.read_bytes(name)[:-40])


def overwritten(folder: Folder, **fields: object) -> None:
    stored: dict[str, Any] = folder.read_json("overlay.json")
    folder.write_json("overlay.json", {**stored, **fields})


def without(folder: Folder, field: str) -> None:
    stored: dict[str, Any] = folder.read_json("overlay.json")
    folder.write_json("overlay.json", {name: stored[name] for name in stored if name != field})


def cast(folder: Folder, column: str, kind: pa.DataType) -> None:
    edit(
        folder,
        lambda t: t.set_column(t.schema.get_field_index(column), column, t[column].cast(kind)),
    )


DAMAGE: dict[str, tuple[Callable[[Folder], None], str]] = {
    "a truncated table": (lambda p: truncated(p, "changed.parquet"), "changed.parquet"),
    "no table": (lambda p: p.delete("changed.parquet"), "changed.parquet"),
    "no description": (lambda p: p.delete("overlay.json"), "overlay.json"),
    "a missing column": (lambda p: edit(p, lambda t: t.drop_columns("key")), "changed.parquet"),
    "numbers as text": (lambda p: cast(p, "noisy", pa.string()), "changed.parquet"),
    "a row without number": (lambda p: edit(p, replaced("row", 0, None)), "changed.parquet"),
    "half a description": (lambda p: p.write_bytes("overlay.json", b"{"), "overlay.json"),
    "no object": (lambda p: p.write_bytes("overlay.json", b"[]"), "overlay.json"),
    "a missing field": (lambda p: without(p, "kind"), "overlay.json"),
    "an extra field": (lambda p: overwritten(p, colour="red"), "overlay.json"),
    "a field of another type": (lambda p: overwritten(p, level="20"), "overlay.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_level_is_one_sentence(corpus: Write, tmp_path: Path, damage: str) -> None:
    folder = corpus(KEYS, LABELS, classes=CLASSES)
    spec = step()
    level = built(tmp_path, folder, spec)
    harm, file = DAMAGE[damage]
    harm(level)
    with pytest.raises(StageError) as caught:
        Auditor(spec.noise, folder).audit(level)
    assert str(caught.value).startswith(f"{level.uri}/{file} cannot be used (")
    assert str(caught.value).endswith("; delete its folder and build the noise again")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["key", "clean", "noisy"])
@pytest.mark.filterwarnings("error")
def test_a_missing_value_is_an_altered_row(corpus: Write, tmp_path: Path, name: str) -> None:
    folder = corpus(KEYS, LABELS, classes=CLASSES)
    spec = step()
    level = built(tmp_path, folder, spec)
    edit(level, replaced(name, 3, None))
    found = Auditor(spec.noise, folder).audit(level)
    assert [name for name, count in found.faults.items() if count] == ["altered"]
    assert f"has {name} None, not" in found.first_fault


def test_a_description_of_another_field_is_found(corpus: Write, tmp_path: Path) -> None:
    folder = corpus(KEYS, LABELS, CAPTIONS, classes=CLASSES)
    spec = step(kind="caption_swap")
    level = built(tmp_path, folder, spec)
    overwritten(level, field="label")
    found = Auditor(spec.noise, folder).audit(level)
    assert found.first_fault == "overlay.json says field = 'label', not 'caption'"
    assert found.transition is None


def test_another_seed_is_another_noise(corpus: Write, tmp_path: Path) -> None:
    folder = corpus(KEYS, LABELS, classes=CLASSES)
    level = built(tmp_path, folder, step())
    found = Auditor(step(seed=1).noise, folder).audit(level)
    assert found.faults["missing"] == found.faults["unexpected"] > 30


def test_rates_are_those_of_the_rows_in_the_shards(corpus: Write, tmp_path: Path) -> None:
    folder = corpus(KEYS, LABELS, classes=CLASSES)
    spec = step()
    level = built(tmp_path, folder, spec)
    # A refused row may repeat the key of one that was kept.
    refused = {"source": ["s"] * 41, "key": ["", *KEYS[:40]], "reason": ["truncated"] * 41}
    folder.write_table("quarantine.parquet", pa.table(refused))
    found = Auditor(spec.noise, folder).audit(level)
    assert found.sound
    assert (found.present, found.present_changed) == (300, 60)
    assert found.realised_percent == found.written_percent == 20
    assert sum(rate.rows for rate in found.classes) == 300
    assert found.transition is not None
    assert found.transition.sum() == 300
    assert found.transition.sum() - np.trace(found.transition) == 60


def test_the_transition_matrix_is_that_of_the_written_labels(corpus: Write, tmp_path: Path) -> None:
    folder = corpus(KEYS, LABELS, classes=CLASSES)
    spec = step(30, kind="pair")
    found = Auditor(spec.noise, folder).audit(built(tmp_path, folder, spec))
    assert found.transition is not None
    hit = [rate.changed for rate in found.classes]
    expected = np.diag([100 - k for k in hit]) + np.roll(np.diag(hit), 1, axis=1)
    assert found.transition.tolist() == expected.tolist()
    assert found.as_dict()["transition"] == expected.tolist()


def test_a_corpus_that_changed_after_its_noise_is_found(corpus: Write, tmp_path: Path) -> None:
    spec = step()
    level = built(tmp_path, corpus(KEYS, LABELS, classes=CLASSES), spec)
    other = corpus(KEYS[:-30], LABELS[:-30], classes=CLASSES, folder="other")
    found = Auditor(spec.noise, other).audit(level)
    assert not found.sound
    assert found.faults["misdescribed"] >= 3
    unlabelled = corpus(KEYS, captions=CAPTIONS, folder="third")
    with pytest.raises(StageError, match="have no label"):
        Auditor(spec.noise, unlabelled)


def test_a_caption_audit_needs_no_labels(corpus: Write, tmp_path: Path) -> None:
    folder = corpus(KEYS, captions=CAPTIONS)
    spec = step(kind="caption_swap")
    found = Auditor(spec.noise, folder).audit(built(tmp_path, folder, spec))
    assert found.sound
    assert found.classes == ()
    assert found.transition is None

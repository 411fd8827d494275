"""Promises of what the report reads beyond the cells: bounded, paired by key, measured once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.features.spec import FeaturesStep
from jobs.features.spectrum import Dtypes, spectra, to_table
from jobs.storage.folder import Folder
from orchestrator.results import derived
from orchestrator.step.address import FeaturesAddress, RunAddress
from orchestrator.step.step import Step
from orchestrator.store.manifest import MANIFEST, FileRecord, Manifest, Record
from orchestrator.store.store import Store


def step(address: str, kind: str, **labels: Any) -> Step:
    return Step(address, kind, None, {}, {}, f"print of {address}", labels)  # type: ignore[arg-type]


def commit(store: Store, one: Step, counts: dict[str, int] | None = None) -> Record:
    """Make the files in the step's folder those of a finished step."""
    output = store.output(one.address)
    files = {
        name: FileRecord(bytes=size, sha256=output.sha256(name)) for name, size in output.files()
    }
    made = Manifest(
        address=one.address,
        kind=one.kind,
        fingerprint=one.fingerprint,
        fields={},
        files=files,
        counts=counts or {},
        metrics={},
        provenance={},
    )
    output.write_json(MANIFEST, made.model_dump(mode="json"))
    return Record.of(made)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Folder(str(tmp_path)))


def cell(store: Store, right: list[bool], keys: list[str]) -> tuple[Step, Record]:
    one = step(
        "tune/c", "tune", noise=0.0, seed=0, task="t", method="lp", fraction=100.0, tuning_seed=0
    )
    table = pa.table({"key": keys, "label": [1] * len(keys), "predicted": [int(x) for x in right]})
    output = store.output(one.address)
    output.delete()
    output.write_table("predictions.parquet", table)
    return one, commit(store, one, {"n_test": len(keys)})


def test_predictions_are_in_the_order_of_their_keys(store: Store) -> None:
    remarks: list[dict[str, str]] = []
    done = [cell(store, [True, False, True], ["c", "a", "b"])]
    (row,) = derived.predictions(done, store, 100.0, remarks)
    assert row["correct"].to_pylist() == [False, True, True]
    again = [cell(store, [False, True, True], ["a", "b", "c"])]
    (same,) = derived.predictions(again, store, 100.0, remarks)
    assert same["samples"] == row["samples"]
    assert not list(derived.predictions(again, store, 10.0, remarks))
    assert remarks == []


def test_too_many_predictions_are_left_out_with_a_remark(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derived, "MOST_PREDICTIONS", 2)
    remarks: list[dict[str, str]] = []
    assert not list(
        derived.predictions([cell(store, [True] * 3, ["a", "b", "c"])], store, 100.0, remarks)
    )
    assert remarks[0]["status"] == "skipped"
    assert "3 predictions in 1 cells are more than the report reads (2)" in remarks[0]["reason"]


def test_quarantined_rows_are_counted_with_their_reasons(store: Store) -> None:
    one = step("corpus/c", "corpus")
    counts = {"quarantined": 3, "rows_read": 1000, "bad_decode": 2, "bad_too_small": 1}
    (remark,) = derived.quarantined([(one, commit(store, one, counts))])
    assert remark["reason"] == "3 of 1,000 rows: 2 decode, 1 too small"
    assert not list(derived.quarantined([(one, commit(store, one, {"quarantined": 0}))]))


def test_damaged_images_of_a_run_are_counted(store: Store) -> None:
    run = step(str(RunAddress("c", "n", "r", 10, 0)), "pretrain")
    (remark,) = derived.damaged([(run, commit(store, run, {"damaged_images": 4}))])
    assert remark["reason"].startswith("4 images cannot be decoded")
    assert remark["address"] == run.address
    assert not list(derived.damaged([(run, commit(store, run))]))


def features(
    store: Store, noise: float, keys: list[str], vectors: np.ndarray
) -> tuple[Step, Record]:
    address = str(FeaturesAddress(RunAddress("c", "symmetric", "r", noise, 0), "i"))
    one = step(address, "features", noise=noise, seed=0, images="i", domain="id")
    flat = pa.array(vectors.astype(np.float32).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    table = pa.table({"key": keys, "vector": column})
    store.output(one.address).write_table("features-test.parquet", table)
    return one, commit(store, one)


def test_rotations_are_measured_on_request_and_stored(store: Store) -> None:
    keys = [f"k{i}" for i in range(60)]
    clean = np.random.default_rng(0).standard_normal((60, 8))
    done = [features(store, 0.0, keys, clean), features(store, 10.0, keys, 2 * clean[:, ::-1])]
    assert list(derived.rotations(done, store, measure=False)) == []
    (row,) = derived.rotations(done, store, measure=True)
    assert (row["noise"], row["rows"], row["k"]) == (10.0, 60, 8)
    assert row["overlap"] == pytest.approx(
        1.0, abs=1e-5
    )  # another order of dimensions is no rotation
    assert list(derived.rotations(done, store, measure=False)) == [row]


def test_a_stored_rotation_that_was_changed_is_not_believed(store: Store) -> None:
    keys = [f"k{i}" for i in range(60)]
    clean = np.random.default_rng(0).standard_normal((60, 8))
    done = [features(store, 0.0, keys, clean), features(store, 10.0, keys, clean)]
    (row,) = derived.rotations(done, store, measure=True)
    (name,) = (name for name, _ in store.root.files() if name.endswith("rotation.json"))
    whole = store.root.read_bytes(name)
    for text in (whole.replace(b'"rows": 60', b'"rows": 61'), whole[:-9], b"[]", b""):
        assert text != whole
        store.root.write_bytes(name, text)
        assert list(derived.rotations(done, store, measure=False)) == []
    assert list(derived.rotations(done, store, measure=True)) == [row]


def test_rotations_of_redone_features_are_measured_again(store: Store) -> None:
    keys = [f"k{i}" for i in range(60)]
    clean = np.random.default_rng(0).standard_normal((60, 8))
    done = [features(store, 0.0, keys, clean), features(store, 10.0, keys, clean)]
    assert list(derived.rotations(done, store, measure=True))
    other = replace(done[1][0], fingerprint="new")
    assert not list(derived.rotations([done[0], (other, done[1][1])], store, measure=False))


def test_features_of_other_samples_are_not_compared(store: Store) -> None:
    vectors = np.random.default_rng(0).standard_normal((60, 8))
    first, second = ([f"{name}{i}" for i in range(60)] for name in "ab")
    done = [features(store, 0.0, first, vectors), features(store, 10.0, second, vectors)]
    assert list(derived.rotations(done, store, measure=True)) == []


def test_without_shards_the_report_lacks_only_the_matrix(store: Store) -> None:
    one = Step("noise/10", "noise", None, {"corpus": "corpus/c"}, {}, "p", {"noise": 10.0})  # type: ignore[arg-type]
    changed = pa.table({"row": [0], "key": ["k"], "clean": [0], "noisy": [1]})
    store.output(one.address).write_table("changed.parquet", changed)
    remarks: list[dict[str, str]] = []
    assert list(derived.transition([(one, commit(store, one))], store, remarks)) == []
    assert "no transition matrix" in remarks[0]["reason"]


def test_a_spectrum_that_is_partly_rounding_is_reported_and_no_other(store: Store) -> None:
    """bfloat16 arithmetic: a flat spectrum is above its rounding, a collapsed one is not."""
    random = np.random.default_rng(2)
    half = FeaturesStep(images="t", parts=("test",), precision="bfloat16")

    def features(name: str, tail: float, dtype: str, spec: FeaturesStep) -> tuple[Step, Record]:
        one = replace(step(f"features/{name}", "features"), spec=spec)
        rows = random.standard_normal((400, 16)) * np.r_[1.0, np.full(15, tail)]
        found = to_table("test", spectra([rows]), Dtypes(dtype, "float32"))
        store.output(one.address).write_table("spectrum.parquet", found)
        return one, commit(store, one)

    exact = FeaturesStep(images="t", parts=("test",))
    done = [
        features("flat", 1.0, "bfloat16", half),
        features("steep", 1e-5, "bfloat16", half),
        features("exact", 1e-5, "float32", exact),
    ]
    (remark,) = derived.coarse(done, store)
    assert remark["address"] == "features/steep"
    assert "partly rounding" in remark["reason"]
    assert "bfloat16" in remark["reason"]

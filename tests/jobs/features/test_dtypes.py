"""Promises of the types of features: storing them as float16 does not move their SVE and LSVR."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.contract import Work
from jobs.features.given import import_features
from jobs.features.parts import write_part
from jobs.features.spec import FeaturesStep, GivenStep
from jobs.features.spectrum import Dtypes, spectra
from jobs.features.unit_table import view_table
from jobs.storage.folder import Folder
from tests.jobs.features.test_spectrum import direct

ROWS, DIM = 600, 32


def collapsed() -> np.ndarray[Any, np.dtype[np.float32]]:
    """One dominant direction; the others are 1e-5 as large. float32, [ROWS, DIM]."""
    random = np.random.default_rng(8)
    turned = np.linalg.qr(random.standard_normal((DIM, DIM)))[0]
    scores = random.standard_normal((ROWS, DIM)) * np.r_[1.0, np.full(DIM - 1, 1e-5)]
    scores[:, 0] = 1 + 0.1 * scores[:, 0]
    found: np.ndarray[Any, np.dtype[np.float32]] = (scores @ turned).astype(np.float32)
    return found


def test_the_spectrum_of_collapsed_features_is_that_before_they_become_float16(
    tmp_path: Path,
) -> None:
    features = collapsed()
    keys = pa.array([f"{at:05d}" for at in range(ROWS)])
    output = Folder.of(tmp_path)
    rows = view_table(keys, pa.array([0] * ROWS, pa.int32()), 0, features)
    outcome = write_part(output, "test", [rows], Dtypes("float32", "float16"))
    stored = output.read_table("features-test.parquet")["vector"].combine_chunks()
    assert pa.types.is_float16(stored.type.value_type)
    halves = stored.flatten().to_numpy().reshape(ROWS, DIM)
    assert (halves == features.astype(np.float16)).all()
    table = output.read_table("spectrum.parquet")
    off = 0.0
    for found, after in zip(table.to_pylist(), spectra([halves]), strict=True):
        _, sve, lsvr = direct(features, found["preprocessing"])
        assert found["sve"] == pytest.approx(sve, abs=1e-4)
        assert found["lsvr"] == pytest.approx(lsvr, abs=1e-4)
        assert (found["dtype"], found["stored"]) == ("float32", "float16")
        off = max(off, abs(after.sve - sve))
    assert off > 0.05  # what the stored features would give
    assert outcome.metrics["features/sve"] == table["sve"][1].as_py()


def imported(root: Path, kind: pa.DataType, dtype: str) -> Folder:
    """Given features of a file of one type, imported as another."""
    root.mkdir()
    values = collapsed()
    rows = [row.astype(np.float16) if pa.types.is_float16(kind) else row for row in values]
    table = pa.table(
        {
            "key": [f"{at:05d}" for at in range(ROWS)],
            "vector": pa.array(rows, pa.list_(kind)),
            "label": [at % 2 for at in range(ROWS)],
        }
    )
    pq.write_table(table, root / "given.parquet")
    digest = hashlib.sha256((root / "given.parquet").read_bytes()).hexdigest()
    step = GivenStep(
        images="t",
        parts=("test",),
        file=str(root / "given.parquet"),
        sha256=digest,
        dtype=dtype,  # type: ignore[arg-type]
    )
    output = Folder.of(root / "out")
    import_features(Work("a", "f", step, {}, output, Folder.of(root / "scratch")))
    return output


def test_given_features_are_measured_in_the_type_of_their_file(tmp_path: Path) -> None:
    exact, halves, coarse = (
        imported(tmp_path / name, kind, dtype).read_table("spectrum.parquet").to_pylist()
        for name, kind, dtype in (
            ("exact", pa.float64(), "float32"),
            ("halves", pa.float64(), "float16"),
            ("coarse", pa.float16(), "float32"),
        )
    )
    assert [row["sve"] for row in halves] == [row["sve"] for row in exact]
    assert max(abs(a["sve"] - b["sve"]) for a, b in zip(exact, coarse, strict=True)) > 0.05
    named = [(rows[0]["dtype"], rows[0]["stored"]) for rows in (exact, halves, coarse)]
    assert named == [("float32", "float32"), ("float32", "float16"), ("float16", "float32")]


def test_only_float16_features_have_another_fingerprint_than_before() -> None:
    step = FeaturesStep(images="digits", parts=("test",))
    half = step.model_copy(update={"dtype": "float16"})
    assert (step.protocol, half.protocol) == (1, 2)
    given = GivenStep(images="t", parts=("test",), file="f", sha256="0")
    assert (given.protocol, given.model_copy(update={"dtype": "float16"}).protocol) == (1, 2)

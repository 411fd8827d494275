"""Promises of the spectrum: exact, streamed, the same whatever the batches."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from jobs.features.spectrum import (
    PREPROCESSINGS,
    SPECTRUM_SCHEMA,
    Dtypes,
    Spectrum,
    spectra,
    to_table,
)

Features = NDArray[Any]


def prepared(features: Features, preprocessing: str) -> Features:
    """The definition, on the whole matrix at once."""
    x = features.astype(np.float64)
    if preprocessing == "raw":
        return x
    if preprocessing == "centred":
        return x - x.mean(axis=0)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    unit = np.divide(x, length, out=np.zeros_like(x), where=length > 0)
    return unit - unit.mean(axis=1, keepdims=True)


def direct(features: Features, preprocessing: str) -> tuple[Features, float, float]:
    """Singular values, SVE and LSVR by a full SVD."""
    sigma = np.linalg.svd(prepared(features, preprocessing), compute_uv=False)
    p = sigma / sigma.sum()
    held = p[p > 0]
    return sigma, float(-(held * np.log(held)).sum()), float(-np.log(p[0]))


def batches(features: Features, size: int) -> list[Features]:
    return [features[at : at + size] for at in range(0, len(features), size)]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(2, 70),
    dim=st.integers(2, 24),
    shift=st.floats(-50, 50),
    scale=st.floats(1e-3, 1e3),
    size=st.integers(1, 80),
    seed=st.integers(0, 2**32 - 1),
)
def test_streaming_equals_a_full_svd(
    rows: int, dim: int, shift: float, scale: float, size: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    features = (random.standard_normal((rows, dim)) + shift) * scale
    for found in spectra(iter(batches(features, size))):
        sigma, sve, lsvr = direct(features, found.preprocessing)
        assert found.rows == rows
        assert found.dim == dim
        assert len(found.singular_values) == len(sigma) == min(rows, dim)
        np.testing.assert_allclose(found.singular_values, sigma, rtol=0, atol=1e-6 * sigma[0])
        # A D of 2 leaves one direction after the row means are taken: SVE is 0 up to rounding.
        assert found.sve == pytest.approx(sve, rel=1e-6, abs=1e-12)
        assert found.lsvr == pytest.approx(lsvr, rel=1e-6, abs=1e-12)
        assert 0 <= found.sve <= math.log(dim)
        assert found.effective_rank == pytest.approx(math.exp(sve), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 900), min_size=1, max_size=12))
def test_batch_sizes_do_not_change_a_single_bit(sizes: list[int]) -> None:
    features = np.random.default_rng(3).standard_normal((2500, 6)).astype(np.float32)
    cuts = [min(int(cut), 2500) for cut in np.cumsum(sizes)]
    assert spectra(np.split(features, cuts)) == spectra([features])


def test_a_large_common_offset_does_not_cancel() -> None:
    features = np.random.default_rng(0).standard_normal((3000, 8)) + 1e6
    centred = spectra(batches(features, 7))[2]
    sigma, sve, _ = direct(features, "centred")
    np.testing.assert_allclose(centred.singular_values, sigma, rtol=1e-6)
    assert centred.sve == pytest.approx(sve, rel=1e-6)


def test_rank_deficient_features_have_exact_zeros() -> None:
    random = np.random.default_rng(1)
    features = random.standard_normal((400, 3)) @ random.standard_normal((3, 64))
    for found in spectra([features])[::2]:
        assert sum(value > 0 for value in found.singular_values) == 3
        _, sve, _ = direct(features, found.preprocessing)
        assert found.sve == pytest.approx(sve, rel=1e-6)


def test_fewer_rows_than_dimensions_give_one_value_a_row() -> None:
    features = np.random.default_rng(2).standard_normal((5, 40))
    raw, released, centred = spectra([features])
    assert [sum(v > 0 for v in one.singular_values) for one in (raw, released, centred)] == [
        5,
        5,
        4,
    ]


def test_even_directions_reach_the_bounds() -> None:
    even = spectra([np.eye(16)])[0]
    assert even.sve == pytest.approx(math.log(16))
    assert even.lsvr == pytest.approx(math.log(16))
    assert even.effective_rank == pytest.approx(16)
    single = spectra([np.outer(np.arange(1, 9), np.ones(4))])[0]
    assert (single.sve, single.lsvr) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    assert single.effective_rank == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, 0.1, 3.7e8])
def test_constant_features_have_no_spread(value: float) -> None:
    features = np.full((1500, 12), value)
    for found in spectra(batches(features, 11)):
        assert math.isfinite(found.sve)
        if found.preprocessing != "raw" or value == 0:
            assert set(found.singular_values) == {0.0}
            assert (found.sve, found.lsvr, found.effective_rank) == (0.0, 0.0, 0.0)


def test_zero_rows_stay_zero_and_extreme_scales_stay_finite() -> None:
    features = np.random.default_rng(4).standard_normal((30, 6))
    with_zeros = np.concatenate([features, np.zeros((5, 6))])
    kept, padded = spectra([features])[1], spectra([with_zeros])[1]
    np.testing.assert_allclose(padded.singular_values, kept.singular_values, rtol=1e-9)
    tiny = spectra([features * 1e-200])[1]
    assert tiny.sve == pytest.approx(kept.sve, rel=1e-9)


def test_half_precision_is_accumulated_in_double() -> None:
    features = (np.random.default_rng(5).standard_normal((4000, 5)) * 100).astype(np.float16)
    _, sve, _ = direct(features, "raw")
    assert spectra(batches(features, 64))[0].sve == pytest.approx(sve, rel=1e-9)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "at least one feature row"),
        ([np.zeros((0, 3))], "at least one feature row"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], "4 dimensions after batches of 3"),
        ([np.array([[1.0, np.nan]])], "1 feature rows"),
        ([np.zeros(3)], r"shape \(3,\)"),
    ],
)
def test_what_has_no_spectrum_is_refused(given: list[Features], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spectra(given)


def test_memory_does_not_grow_with_the_rows() -> None:
    def peak(rows: int) -> int:
        random = np.random.default_rng(0)
        tracemalloc.start()
        spectra(random.standard_normal((500, 64)) for _ in range(rows // 500))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(500)
    assert peak(40_000) < 1.2 * peak(4_000)


def test_the_table_holds_the_schema_and_every_value() -> None:
    found: list[Spectrum] = spectra([np.random.default_rng(6).standard_normal((20, 4))])
    table = to_table("test", found, Dtypes("bfloat16", "float16"))
    assert isinstance(table, pa.Table)
    assert table.schema.equals(SPECTRUM_SCHEMA)
    assert table["preprocessing"].to_pylist() == list(PREPROCESSINGS)
    assert table["singular_values"].to_pylist() == [list(one.singular_values) for one in found]
    assert table["sve"].to_pylist() == [one.sve for one in found]
    assert table.select(["dtype", "stored"]).to_pylist()[0] == {
        "dtype": "bfloat16",
        "stored": "float16",
    }

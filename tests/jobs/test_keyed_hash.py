"""Keyed hashing: fixed values, a scalar reference, and the statistics that the noise relies on."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.keyed_hash import expand, hash64, unit

MASK = (1 << 64) - 1
FIXED = [
    "b10c40c9983e537d",
    "e607d483de1f382f",
    "acc97239675acb89",
    "1acb505319f15a90",
    "52e6ad682a014fcd",
]


def _fmix(h: int) -> int:
    h ^= h >> 33
    h = h * 0xFF51AFD7ED558CCD & MASK
    h ^= h >> 33
    h = h * 0xC4CEB9FE1A85EC53 & MASK
    return h ^ h >> 33


def reference(key: str, seed: int, scope: str, stream: str) -> int:
    text = json.dumps([seed, scope, stream], separators=(",", ":")).encode()
    digest = hashlib.blake2b(text, digest_size=16).digest()
    h, last = (int.from_bytes(digest[i : i + 8], "little") for i in (0, 8))
    data = key.encode()
    for at in range(0, len(data), 8):
        h = _fmix(h ^ int.from_bytes(data[at : at + 8], "little"))
    return _fmix(h ^ last ^ (len(data) * 0x9E3779B97F4A7C15 & MASK))


def test_values_never_change_between_releases() -> None:
    keys = ["", "a", "12345678", "digits/0042", "n01440764/n01440764_10026.JPEG"]
    assert [f"{h:016x}" for h in hash64(keys, seed=0, scope="digits", stream="part")] == FIXED


@given(
    st.lists(st.text(max_size=40), max_size=30),
    st.integers(0, 2**63),
    st.text(max_size=8),
    st.integers(0, 5),
)
def test_equals_the_scalar_reference(keys: list[str], seed: int, scope: str, skip: int) -> None:
    expected = [reference(k, seed, scope, "s") for k in keys]
    assert hash64(keys, seed=seed, scope=scope, stream="s").tolist() == expected
    sliced = pa.array(keys, type=pa.string())[skip:]
    assert hash64(sliced, seed=seed, scope=scope, stream="s").tolist() == expected[skip:]


@given(st.lists(st.text(max_size=20), max_size=20), st.integers(0, 20))
def test_chunks_do_not_affect_the_values(keys: list[str], cut: int) -> None:
    whole = hash64(keys, seed=1, scope="c", stream="s")
    parts = pa.chunked_array([keys[:cut], keys[cut:]], type=pa.string())
    assert np.array_equal(hash64(parts, seed=1, scope="c", stream="s"), whole)


def test_long_inputs_cross_block_borders_unchanged() -> None:
    keys = [f"k{i}" * (i % 7) for i in range(70_000)]
    hashes = hash64(keys, seed=3, scope="c", stream="s")
    for i in (0, 1, 32_767, 32_768, 65_535, 65_536, 69_999):
        assert int(hashes[i]) == reference(keys[i], 3, "c", "s")


def test_a_null_key_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 keys are null"):
        hash64(pa.array(["a", None]), seed=0, scope="c", stream="s")


@pytest.mark.parametrize("change", [{"seed": 1}, {"scope": "d"}, {"stream": "t"}])
def test_seed_scope_and_stream_are_unrelated(change: dict[str, object]) -> None:
    keys = [f"digits/{i:06d}" for i in range(50_000)]
    named = {"seed": 0, "scope": "c", "stream": "s"}
    one = unit(hash64(keys, **named))  # type: ignore[arg-type]
    other = unit(hash64(keys, **(named | change)))  # type: ignore[arg-type]
    assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(len(keys))


def test_sequential_keys_hash_uniformly() -> None:
    keys = [f"digits/{i:06d}" for i in range(200_000)]
    hashes = hash64(keys, seed=0, scope="c", stream="s")
    assert len(np.unique(hashes)) == len(keys)
    u = unit(hashes)
    assert u.min() >= 0
    assert u.max() < 1
    observed = np.histogram(u, bins=256, range=(0, 1))[0]
    expected = len(keys) / 256
    chi2 = float(((observed - expected) ** 2 / expected).sum())
    assert abs(chi2 - 255) < 5 * np.sqrt(2 * 255)
    bits = (hashes[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(len(keys))
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / np.sqrt(len(keys))


def test_unit_never_reaches_one() -> None:
    extreme = unit(np.array([0, 2**64 - 1], dtype=np.uint64))
    assert extreme[0] == 0
    assert extreme[1] < 1


def test_a_hash_expands_to_unrelated_numbers_and_a_larger_count_only_appends() -> None:
    hashes = hash64([f"k{i}" for i in range(20_000)], seed=0, scope="c", stream="s")
    many = expand(hashes, 4)
    assert np.array_equal(many[:, :2], expand(hashes, 2))
    assert int(many[7, 1]) == _fmix((int(hashes[7]) + 2 * 0x9E3779B97F4A7C15) & MASK)
    u = np.column_stack([unit(hashes), unit(many)])
    off = np.corrcoef(u, rowvar=False) - np.eye(5)
    assert np.abs(off).max() < 4.5 / np.sqrt(len(u))

"""Keyed hashing: every random choice about a sample is a pure function of its key.

Takes sample keys (strings) and a name for the choice: a seed, a scope (the corpus) and a stream
(which of the choices about a sample). Gives one 64-bit number for each key. Parts, shuffles,
noise, views and shifts all draw from here, so none of them can depend on row order, shard count,
workers or the version of a random generator.

The definition, for a key of L bytes of UTF-8 read as little-endian 64-bit words w0, w1, ... (the
last one padded with zeros), with (a, b) = the two words of blake2b-128 over the JSON text of
[seed, scope, stream] and `fmix` the 64-bit finaliser of MurmurHash3:

    h = a;  for each w:  h = fmix(h ^ w);  hash = fmix(h ^ b ^ (L * 0x9E3779B97F4A7C15 mod 2^64))

Own code, because hashing each key by `hashlib` takes 8 times as long (`benchmarks/own_code.py`),
and because the numbers must never change with a library's version: they are part of results.

The hash is not cryptographic: nobody gains by choosing keys that collide. Nothing here decodes,
sorts or deduplicates keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Hashes = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 1 << 15  # rows hashed at a time: their words and temporaries stay in the cache


def hash64(
    keys: pa.Array | pa.ChunkedArray | Sequence[str], *, seed: int, scope: str, stream: str
) -> Hashes:
    """One uniform 64-bit number for each key, shape [N], in the keys' order.

    `scope` is usually the corpus's name; `stream` names the choice ("part", "order", ...).
    Different seeds, scopes or streams give unrelated numbers. Raises ValueError on a null key.
    """
    first, last = _state(seed, scope, stream)
    if isinstance(keys, pa.ChunkedArray):
        chunks = keys.chunks
    else:
        chunks = [keys if isinstance(keys, pa.Array) else pa.array(keys, type=pa.large_string())]
    hashes = [_hash_chunk(chunk, first, last) for chunk in chunks]
    return np.concatenate(hashes) if hashes else np.empty(0, np.uint64)


def unit(hashes: Hashes) -> npt.NDArray[np.float64]:
    """The hashes as float64 in [0, 1): their upper 53 bits, exactly."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def expand(hashes: Hashes, count: int) -> Hashes:
    """`count` numbers from each hash, [N, count]: outputs of SplitMix64-like counters.

    Number i is fmix(hash + (i + 1) * 0x9E3779B97F4A7C15), so a larger `count` only appends numbers.
    """
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return _fmix(hashes[:, None] + steps)


def _state(seed: int, scope: str, stream: str) -> tuple[np.uint64, np.uint64]:
    text = json.dumps([seed, scope, stream], separators=(",", ":"))
    digest = hashlib.blake2b(text.encode("ascii"), digest_size=16).digest()
    first, last = np.frombuffer(digest, dtype="<u8")
    return np.uint64(first), np.uint64(last)


def _hash_chunk(chunk: pa.Array, first: np.uint64, last: np.uint64) -> Hashes:
    if chunk.null_count:
        raise ValueError(f"{chunk.null_count} of {len(chunk)} keys are null; every row needs one")
    if len(chunk) == 0:
        return np.empty(0, np.uint64)
    texts = chunk.cast(pa.large_string())
    _, offsets_buffer, data_buffer = texts.buffers()
    offsets = np.frombuffer(
        offsets_buffer, dtype=np.int64, count=len(texts) + 1, offset=8 * texts.offset
    )
    data = np.frombuffer(data_buffer or b"", dtype=np.uint8)
    hashes = np.empty(len(texts), np.uint64)
    for start in range(0, len(texts), _BLOCK):
        ends = offsets[start : start + _BLOCK + 1]
        hashes[start : start + _BLOCK] = _hash_block(ends, data, first, last)
    return hashes


def _hash_block(
    ends: npt.NDArray[np.int64],
    data: npt.NDArray[np.uint8],
    first: np.uint64,
    last: np.uint64,
) -> Hashes:
    starts, lengths = ends[:-1] - ends[0], np.diff(ends)
    words = _aligned_words(data[ends[0] : ends[-1]])
    state = np.full(len(lengths), first)
    for position in range(0, int(lengths.max()), 8):
        if position + 8 <= lengths.min():
            state = _fmix(state ^ _load(words, starts + position))
            continue
        rows = np.flatnonzero(lengths > position)
        word = _load(words, starts[rows] + position)
        spare = np.maximum(8 - (lengths[rows] - position), 0).astype(np.uint64) * np.uint64(8)
        state[rows] = _fmix(state[rows] ^ (word << spare >> spare))
    return _fmix(state ^ last ^ (lengths.astype(np.uint64) * _GOLDEN))


def _aligned_words(data: npt.NDArray[np.uint8]) -> Hashes:
    """The bytes as little-endian words, with at least one word of zeros at the end."""
    padded = np.zeros((len(data) // 8 + 2) * 8, np.uint8)
    padded[: len(data)] = data
    return padded.view("<u8").astype(np.uint64, copy=False)


def _load(words: Hashes, at: npt.NDArray[np.int64]) -> Hashes:
    """The eight bytes that start at each (unaligned) byte position."""
    index, shift = at >> 3, (at & 7).astype(np.uint64) * np.uint64(8)
    low, high = words[index], words[index + 1]
    # Two shifts: at an aligned position one shift would be by 64 bits, which is undefined.
    loaded: Hashes = (low >> shift) | (high << (np.uint64(63) - shift) << np.uint64(1))
    return loaded


def _fmix(h: Hashes) -> Hashes:
    h = h ^ (h >> np.uint64(33))
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    h ^= h >> np.uint64(33)
    return h

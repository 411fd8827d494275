"""What it costs to look for test images among training images, and what it finds.

Run: python benchmarks/overlap.py TRAIN.parquet TEST.parquet   (a column `image` of encoded bytes)
     python benchmarks/overlap.py                              (random hashes: 1,281,167 and 50,000)

Prints the time of decoding alone and of hashing (decode, digest, thumbnail, hash) for one image on
one core, the time of the join, and how many test images have an exact or a near copy.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import pyarrow.parquet as pq

from jobs.images.decode import open_image
from jobs.images.likeness import THUMBNAIL, likeness, perceptual, thumbnails
from jobs.overlap.match import Finder, Images

PIECE = 1 << 16


def main() -> None:
    if len(sys.argv) == 3:
        train, test = (_hashed(path) for path in sys.argv[1:])
    else:
        train, test = _random(1_281_167, 1), _random(50_000, 2)
    start = time.perf_counter()
    finder = Finder(test)
    for first in range(0, len(train), PIECE):
        rows = slice(first, first + PIECE)
        finder.add(Images(train.digests[rows], train.hashes[rows], train.thumbnails[rows]))
    seconds = time.perf_counter() - start
    exact, near = finder.exact >= 0, (finder.near >= 0) & (finder.exact < 0)
    print(
        f"join of {len(test):,} test and {len(train):,} training images: {seconds:.1f} s; "
        f"{exact.sum():,} exact, {near.sum():,} near"
    )


def _hashed(path: str) -> Images:
    stored = pq.read_table(path)["image"].to_pylist()
    data = [one["bytes"] if isinstance(one, dict) else one for one in stored]
    sample = data[:2000]
    start = time.perf_counter()
    for one in sample:
        open_image(one).convert("RGB")
    decoding = (time.perf_counter() - start) / len(sample)
    start = time.perf_counter()
    found = [likeness(one, path) for one in data]
    small = np.stack([one.small for one in found])
    hashes, marks = perceptual(small), thumbnails(small)
    hashing = (time.perf_counter() - start) / len(data)
    print(
        f"{path}: {len(data):,} images; decoding {1e3 * decoding:.3f} ms, hashing "
        f"{1e3 * hashing:.3f} ms an image ({hashing / decoding:.2f} times)"
    )
    digests = np.frombuffer(b"".join(one.digest for one in found), np.uint64).reshape(-1, 2)
    return Images(digests, hashes, marks)


def _random(rows: int, seed: int) -> Images:
    rng = np.random.default_rng(seed)
    return Images(
        rng.integers(0, 2**63, (rows, 2), dtype=np.uint64),
        rng.integers(0, 2**63, rows, dtype=np.uint64),
        rng.integers(0, 256, (rows, THUMBNAIL), dtype=np.uint8),
    )


if __name__ == "__main__":
    main()

"""The three spectra of a stream of features: seconds, peak memory, error against a full SVD.

    python benchmarks/spectrum.py --rows 200000 --dim 2048 --check 20000

Features are generated in chunks and not kept: the peak is what `jobs.features.spectrum` needs. It
does not grow with the number of rows. Nothing is written to disk. `--check` compares the singular
values of so many rows with those of `numpy.linalg.svd`. This needs all of them in memory, so it
runs after the peak is measured.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator

import numpy as np

from jobs.features.spectrum import spectra

CHUNK = 4096


def batches(rows: int, dim: int, spent: list[float]) -> Iterator[np.ndarray]:
    random = np.random.default_rng(0)
    scale = np.geomspace(10, 0.01, dim).astype(np.float32)
    for start in range(0, rows, CHUNK):
        began = time.perf_counter()
        chunk = random.standard_normal((min(CHUNK, rows - start), dim), np.float32) * scale + 1
        spent.append(time.perf_counter() - began)
        yield chunk


def error(rows: int, dim: int) -> dict[str, float]:
    """The largest error of a singular value against a full SVD, relative to the largest value."""
    chunks = list(batches(rows, dim, []))
    x = np.concatenate(chunks).astype(np.float64)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    prepared = {
        "raw": x,
        "released": unit - unit.mean(axis=1, keepdims=True),
        "centred": x - x.mean(axis=0),
    }
    found = {one.preprocessing: np.array(one.singular_values) for one in spectra(iter(chunks))}
    apart = {}
    for name, whole in prepared.items():
        exact = np.linalg.svd(whole, compute_uv=False)
        apart[name] = float(np.abs(found[name] - exact).max() / exact[0])
    return apart


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--check", type=int, default=0, help="rows to compare with a full SVD")
    asked = parser.parse_args()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    making: list[float] = []
    began = time.perf_counter()
    found = spectra(batches(asked.rows, asked.dim, making))
    spent = time.perf_counter() - began - sum(making)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{asked.rows:,} x {asked.dim}: {spent:.1f} s ({asked.rows / spent:,.0f} rows/s)")
    print(f"peak memory {peak / 1024:,.0f} MiB, of it {before / 1024:,.0f} MiB before it began")
    for one in found:
        print(f"{one.preprocessing:9} SVE {one.sve:.4f}  LSVR {one.lsvr:.4f}")
    if asked.check:
        for name, apart in error(asked.check, asked.dim).items():
            print(
                f"{name:9} against a full SVD of {asked.check:,} rows: {apart:.1e} of the largest"
            )


if __name__ == "__main__":
    main()

"""The project's own code against a library that does the same, in one run.

Run it with the project installed: `python benchmarks/own_code.py` (a minute). Ends with one line of
JSON. Every figure is a ratio of rates, own code over library: the median of several rounds in
which the two alternate:

- tar: files a second out of a WebDataset shard in memory; against `tarfile` in stream mode.
- headers: photographs a second whose size, notes and structure are read; against decoding them.
- keyed_hash: keys a second; against `hashlib.blake2b` of each key.
- order: rows of an epoch a second; against torch's `randperm` over all rows, which needs no keys.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from jobs.corpus.readers.tar import members
from jobs.corpus.shards import File
from jobs.images.headers import read_header
from jobs.keyed_hash import hash64
from jobs.pretrain.data.order import Order

ROUNDS = 9


def jpegs(count: int) -> list[bytes]:
    """Distinct JPEGs of about 4 kB."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (80, 96, 3), np.uint8)).save(stream, "JPEG")
        found.append(stream.getvalue())
    return found


def seconds(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(own: Callable[[], object], library: Callable[[], object]) -> float:
    """How many times as fast `own` is."""
    own(), library()
    rounds = [seconds(library) / seconds(own) for _ in range(ROUNDS)]
    return round(median(rounds), 2)


def tar() -> float:
    """A shard of 2,000 images with their labels."""
    images, stream = jpegs(200), io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for number in range(2_000):
            for end, data in (("jpg", images[number % 200]), ("cls", b"7")):
                info = tarfile.TarInfo(f"{number:06d}.{end}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    shard = stream.getvalue()

    def own() -> int:
        return sum(len(one.data) for one in members(io.BytesIO(shard), "shard"))

    def library() -> int:
        total = 0
        with tarfile.open(fileobj=io.BytesIO(shard), mode="r|") as archive:
            for info in archive:
                file = archive.extractfile(info)
                total += len(file.read()) if file else 0
        return total

    assert own() == library()
    return ratio(own, library)


def headers() -> float:
    """JPEGs of 500 x 375 pixels and 80 kB."""
    images, rng = [], np.random.default_rng(0)
    for _ in range(50):
        stream = io.BytesIO()
        pixels = Image.fromarray(rng.integers(0, 256, (75, 100, 3), np.uint8))
        pixels.resize((500, 375), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        images.append(stream.getvalue())

    def own() -> list[tuple[int, int]]:
        return [(header.width, header.height) for header in map(read_header, images)]

    def library() -> list[tuple[int, int]]:
        sizes = []
        for data in images:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                sizes.append(image.size)
        return sizes

    assert own() == library()
    return ratio(own, library)


def keyed_hash() -> float:
    """A million keys in the form of a corpus's keys."""
    keys = pa.array([f"n01440764/n01440764_{number}.JPEG" for number in range(1_000_000)])
    texts = keys.to_pylist()

    def library() -> list[bytes]:
        return [hashlib.blake2b(text.encode(), digest_size=8, key=b"0").digest() for text in texts]

    return ratio(lambda: hash64(keys, seed=0, scope="c", stream="order"), library)


def order() -> float:
    """A million rows; hashing their keys, once a run, is not measured here."""
    files = [File(f"train-{number:05d}.parquet", 50_000, "", 0) for number in range(20)]
    made = Order("c", files, seed=0, batch_size=1_000)
    keys = made.key_hashes(pa.array([str(number) for number in range(1_000_000)]))
    return ratio(lambda: made.epoch_rows(1, keys), lambda: torch.randperm(1_000_000))


if __name__ == "__main__":
    found = {each.__name__: each() for each in (tar, headers, keyed_hash, order)}
    print(json.dumps(found))

"""Building a corpus: speed against a simple single-process program, and memory at two sizes.

Run it with the project installed: `python benchmarks/corpus.py` (some minutes, 12 GB of free disk).
Ends with one line of JSON:

- build_vs_pyarrow: rows a second of the corpus stage over those of a single-process pyarrow program
  that reads the whole Parquet source, gets each image's size with Pillow, and writes the same
  shards (same rows, order and schema), on 200,000 JPEGs of about 4 kB. `_large`: the same on 20,000
  of about 110 kB. `_given_sizes`: the program reads the sizes from the source, without Pillow.
  Ray's start-up is excluded and reported separately (ray_start_s: with the first, tiny build).
- rss_growth: peak memory of the largest worker for the large corpus over that for a quarter of it.
- what `corpus_noise.py` measures.

The stage also lists the source, checks every header, hashes shards, and records what it needs to
continue a killed build; the program does none of this.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.contract import Hooks, Outcome, Work
from jobs.corpus.form import IMAGES
from jobs.corpus.shards import PARTS, Index
from jobs.corpus.spec import Corpus
from jobs.storage.folder import Folder

SMALL = (200_000, 4_000)  # images, bytes of one
LARGE = (20_000, 110_000)
DISTINCT = 300
ROW_GROUP = 1_000
FILES = 16
SHARD_MB = 128
REPEATS = 3


def encodings(size: int) -> list[bytes]:
    """Distinct JPEGs of about `size` bytes."""
    rng = np.random.default_rng(size)
    side = round(((size - 670) / 0.43) ** 0.5)
    found = []
    for _ in range(DISTINCT):
        pixels = rng.integers(0, 256, (side, side + 2, 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=50)
        found.append(stream.getvalue())
    return found


def numbered(image: bytes, number: int) -> bytes:
    """The JPEG with a number in a comment, so that no two are the same bytes."""
    return image[:2] + b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big") + image[2:]


def write_source(folder: Path, rows: int, size: int) -> float:
    """Write Parquet files in Hugging Face's layout; return the mean bytes of an image."""
    images = encodings(size)
    shapes = [Image.open(io.BytesIO(image)).size for image in images]
    names = ["image", "label", "key", "width", "height"]
    folder.mkdir()
    total = 0
    for file in range(FILES):
        writer = None
        first, last = rows * file // FILES, rows * (file + 1) // FILES
        for start in range(first, last, ROW_GROUP):
            numbers = range(start, min(start + ROW_GROUP, last))
            data = [numbered(images[n % DISTINCT], n) for n in numbers]
            total += sum(map(len, data))
            columns = [
                data,
                [n % 1000 for n in numbers],
                [f"n{n % 1000:08d}/{n:09d}.JPEG" for n in numbers],
                [shapes[n % DISTINCT][0] for n in numbers],
                [shapes[n % DISTINCT][1] for n in numbers],
            ]
            table = pa.table([pa.array(column) for column in columns], names)
            path = folder / f"train-{file:05d}.parquet"
            writer = writer or pq.ParquetWriter(path, table.schema, use_dictionary=["label"])
            writer.write_table(table)
        assert writer is not None
        writer.close()
    return total / rows


def corpus_of(folder: Path, files: str = "*.parquet") -> Corpus:
    reader = {"kind": "parquet", "path": str(folder), "label": "label", "key": ["key"]}
    fields = {"reader": reader | {"files": files}, "shard_mb": SHARD_MB}
    return Corpus.model_validate({"name": "bench"} | fields)


# -- the simple program ----------------------------------------------------------------------------


def plain(source: Path, output: Path, sizes_given: bool) -> float:
    """Read all, get the sizes, shuffle by key, write; return the seconds."""
    from jobs.keyed_hash import hash64, unit

    begun = time.perf_counter()
    corpus = corpus_of(source)
    table = pq.read_table(source)
    images = table["image"].cast(pa.large_binary())
    if sizes_given:
        shapes = [table["width"], table["height"]]
    else:
        found = [Image.open(io.BytesIO(image.as_py())).size for image in images]
        shapes = [pa.array(side, pa.int32()) for side in zip(*found, strict=True)]
    none = pa.nulls(len(table), pa.string())
    rows = pa.table([table["key"], images, table["label"], none, *shapes], IMAGES.names)
    u = unit(hash64(rows["key"], seed=0, scope="bench", stream="part"))
    part_of = np.searchsorted(np.cumsum(corpus.parts.shares)[:2], u, side="right")
    order = np.argsort(hash64(rows["key"], seed=0, scope="bench", stream="order"))
    sizes = np.diff(np.concatenate([[0], np.cumsum(pa.compute.binary_length(images).to_numpy())]))
    output.mkdir()
    for number, part in enumerate(PARTS):
        chosen = order[part_of[order] == number]
        total = int(sizes[chosen].sum())
        before = np.cumsum(sizes[chosen]) - sizes[chosen]
        shard_of = before * max(1, round(total / SHARD_MB / 1e6)) // total
        for shard in range(int(shard_of[-1]) + 1):
            taken = rows.take(pa.array(chosen[shard_of == shard])).cast(IMAGES).combine_chunks()
            pq.write_table(
                taken,
                output / f"{part}-{shard:05d}.parquet",
                row_group_size=ROW_GROUP,
                compression={n: "NONE" if n == "image" else "ZSTD" for n in IMAGES.names},
                use_dictionary=["label", "width", "height"],
                write_statistics=["key", "label"],
            )
    return time.perf_counter() - begun


def plain_apart(source: Path, output: Path, sizes_given: bool) -> float:
    """`plain` in a process of its own."""
    words = [sys.executable, __file__, "plain", str(source), str(output), str(int(sizes_given))]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    printed = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return float(printed.stdout.splitlines()[-1])


# -- ours ------------------------------------------------------------------------------------------


def stage(corpus: Corpus, folder: Path) -> float:
    """Seconds of the corpus stage, into `folder`/corpus."""
    from jobs.corpus.job import run_corpus

    ended: list[Outcome | BaseException] = []
    hooks = Hooks(lambda _, result: ended.append(result), lambda *_: None, lambda: False)
    output, scratch = Folder.of(folder / "corpus"), Folder.of(folder / "scratch")
    begun = time.perf_counter()
    run_corpus([Work("c", "f", corpus, {}, output, scratch)], hooks)
    seconds = time.perf_counter() - begun
    if isinstance(ended[0], BaseException):
        raise ended[0]
    shutil.rmtree(folder / "scratch")
    return seconds


@contextlib.contextmanager
def peak_of_workers() -> Iterator[list[float]]:
    """Measure the memory of the largest worker while the block runs, in MB."""
    peak, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.name().startswith("ray::"):
                        peak[0] = max(peak[0], process.memory_info().rss / 1e6)

    thread = threading.Thread(target=watch)
    thread.start()
    yield peak
    over.set()
    thread.join()


def compare(folder: Path, rows: int, size: int) -> dict[str, float]:
    """Seconds of both sides on one corpus, alternating."""
    mean = write_source(folder / "source", rows, size)
    seconds: dict[str, list[float]] = {"ours": [], "plain": [], "plain_given_sizes": []}
    for _ in range(REPEATS):
        for name, times in seconds.items():
            if name == "ours":
                times.append(stage(corpus_of(folder / "source"), folder))
            else:
                given = name == "plain_given_sizes"
                times.append(plain_apart(folder / "source", folder / "plain", given))
                assert_same(folder / "corpus", folder / "plain")
                shutil.rmtree(folder / "plain")
            print(f"  {rows:,} of {mean:,.0f} bytes, {name}: {times[-1]:.2f} s", flush=True)
        shutil.rmtree(folder / "corpus")
    return {name: median(times) for name, times in seconds.items()}


def assert_same(ours: Path, theirs: Path) -> None:
    """Check that both sides have written the same shards."""
    listed = Index.read(Folder.of(ours)).parts
    assert {f.file for files in listed.values() for f in files} == {
        p.name for p in theirs.iterdir()
    }
    for part in PARTS:
        name = listed[part][0].file
        assert pq.read_table(ours / name).equals(pq.read_table(theirs / name))


def main() -> None:
    from corpus_noise import measure

    from orchestrator import cluster

    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        begun = time.perf_counter()
        with cluster.session(cpus=os.cpu_count()):
            folder = Path(name)
            stage(Corpus.model_validate({"name": "d", "reader": {"kind": "digits"}}), folder / "d")
            result["ray_start_s"] = time.perf_counter() - begun
            for tail, (rows, size) in (("", SMALL), ("_large", LARGE)):
                (folder / f"c{tail}").mkdir()
                seconds = compare(folder / f"c{tail}", rows, size)
                result[f"build_rows_per_s{tail}"] = rows / seconds["ours"]
                result[f"build_vs_pyarrow{tail}"] = seconds["plain"] / seconds["ours"]
                given = seconds["plain_given_sizes"] / seconds["ours"]
                result[f"build_vs_pyarrow{tail}_given_sizes"] = given
            result |= memory(folder / "c_large")
    result |= measure()
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))


def memory(folder: Path) -> dict[str, float]:
    """Peak memory of the largest worker, building the whole source and a quarter of its files."""
    found = {}
    for name, files in (("quarter", "train-0000[0-3].parquet"), ("whole", "*.parquet")):
        with peak_of_workers() as peak:
            stage(corpus_of(folder / "source", files), folder)
        shutil.rmtree(folder / "corpus")
        found[name] = peak[0]
    return {"peak_worker_mb": found["whole"], "rss_growth": found["whole"] / found["quarter"]}


if __name__ == "__main__":
    if sys.argv[1:2] == ["plain"]:
        print(plain(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "1"))
    else:
        main()

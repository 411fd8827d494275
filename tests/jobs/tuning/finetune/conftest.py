"""One corpus of digits for all fine-tuning tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.corpus.form import IMAGES
from jobs.corpus.reader_spec import DigitsReader
from jobs.corpus.readers.digits import NAMES, Digits
from jobs.corpus.shards import Index, write_rows
from jobs.storage.folder import Folder
from tests.jobs.tuning.finetune.digits import put_encoder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The digits in shards, as the corpus stage writes them, not in the order of their keys."""
    folder = Folder.of(tmp_path_factory.mktemp("corpus"))
    reader = Digits(DigitsReader())
    (raw,) = reader.read(reader.units()[0], Counter())
    rows = raw.select(["key", "image", "label", "caption"])
    sizes = pa.array([8] * len(rows), pa.int32())
    rows = rows.append_column("width", sizes).append_column("height", sizes).cast(IMAGES)
    rows = rows.take(pa.array(np.random.default_rng(0).permutation(len(rows))))
    cuts = {"train": [(0, 300), (300, 900)], "validation": [(900, 1200)], "test": [(1200, 1797)]}
    parts = {
        part: tuple(
            write_rows(folder, f"{part}-{number:05d}.parquet", rows.slice(start, stop - start))
            for number, (start, stop) in enumerate(spans)
        )
        for part, spans in cuts.items()
    }
    Index("digits", NAMES, parts, rows_read=len(rows)).write(folder)
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return put_encoder(Folder.of(tmp_path_factory.mktemp("encoder")))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in a trial of one CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

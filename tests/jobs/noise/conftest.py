"""A corpus folder with rows that a test gives; the images are placeholders."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.corpus.form import IMAGES
from jobs.corpus.shards import Index, write_rows
from jobs.storage.folder import Folder

Write = Callable[..., Folder]


@pytest.fixture
def corpus(tmp_path: Path) -> Write:
    """Write a corpus whose training part has these rows, in shards of `shard` rows."""

    def write(
        keys: Sequence[str],
        labels: Sequence[int | None] | None = None,
        captions: Sequence[str | None] | None = None,
        *,
        classes: Sequence[str] = (),
        class_ids: Sequence[str] = (),
        shard: int = 64,
        name: str = "c",
        folder: str = "corpus",
    ) -> Folder:
        output = Folder.of(tmp_path / folder)
        files = []
        for number, start in enumerate(range(0, len(keys), shard)):
            rows = slice(start, start + shard)
            table = pa.table(
                {
                    "key": keys[rows],
                    "image": [b"-"] * len(keys[rows]),
                    "label": labels[rows] if labels else [None] * len(keys[rows]),
                    "caption": captions[rows] if captions else [None] * len(keys[rows]),
                    "width": [1] * len(keys[rows]),
                    "height": [1] * len(keys[rows]),
                },
                schema=IMAGES,
            )
            files.append(write_rows(output, f"train-{number:05d}.parquet", table))
        parts = {"train": tuple(files), "validation": (), "test": ()}
        Index(name, tuple(classes), parts, tuple(class_ids)).write(output)
        return output

    return write

"""Shards: the one copy of a corpus's pixels, and the index that lists it.

Takes rows with keys; gives, for each part, Parquet files `<part>-00000.parquet`, ... in the order
of a seeded global shuffle, and `_index.json`. Part and place in the shuffle are functions of the
key, so the files' bytes do not depend on how the source was cut, read or spread over workers.
Nothing here decodes an image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.contract import StageError
from jobs.corpus.keyed import hash64, unit
from jobs.corpus.spec import Corpus
from jobs.place import Place

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # stable, unique, from the source's naming
        pa.field("image", pa.binary(), nullable=False),  # encoded bytes, untouched
        pa.field("label", pa.int32()),  # index into the corpus's classes
        pa.field("caption", pa.string()),
        pa.field("width", pa.int32(), nullable=False),  # pixels
        pa.field("height", pa.int32(), nullable=False),
    ]
)
"""A shard's row."""

PARTS = ("train", "validation", "test")
INDEX = "_index.json"
ROW_GROUP = 1_000


@dataclass(frozen=True)
class File:
    """One shard as the index lists it."""

    file: str  # name within the corpus's folder
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """What a corpus's folder holds."""

    name: str
    classes: tuple[str, ...]  # in label order; empty without labels
    parts: Mapping[str, tuple[File, ...]]  # part -> its files, in training order

    def rows(self, part: str) -> int:
        """Rows of a part."""
        return sum(file.rows for file in self.parts[part])

    def write(self, place: Place) -> None:
        """Put `_index.json` into the corpus's folder."""
        place.write_json(INDEX, asdict(self))

    @staticmethod
    def read(place: Place) -> Index:
        """The index of a corpus's folder; FileNotFoundError where there is none."""
        stored = place.read_json(INDEX)
        return Index(
            name=stored["name"],
            classes=tuple(stored["classes"]),
            parts={p: tuple(File(**f) for f in files) for p, files in stored["parts"].items()},
        )


def read_part(place: Place, part: str, columns: Sequence[str]) -> pa.Table:
    """The named columns of all of a part's rows, in training order."""
    files = Index.read(place).parts[part]
    schema = pa.schema([SCHEMA.field(c) for c in columns])
    tables = [place.read_table(file.file, columns=list(columns)) for file in files]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def read_rows(place: Place, file: str, start: int, stop: int, columns: Sequence[str]) -> pa.Table:
    """The named columns of rows [start, stop) of one shard, opening only their row groups."""
    filesystem, path = place.open()
    with filesystem.open_input_file(f"{path}/{file}") as source:
        parquet = pq.ParquetFile(source)
        sizes = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
        ends = np.cumsum([0, *sizes])
        groups = [g for g in range(len(sizes)) if ends[g] < stop and ends[g + 1] > start]
        rows = parquet.read_row_groups(groups, columns=list(columns))
        return rows.slice(start - int(ends[groups[0]]), stop - start)


@dataclass(frozen=True)
class Shard:
    """A file to be written: which of the corpus's rows, in which order."""

    part: str
    file: str
    rows: npt.NDArray[np.int64]  # positions in the key array that the layout was made from


def layout(corpus: Corpus, keys: pa.ChunkedArray) -> list[Shard]:
    """Which row goes where: shards by part, then by place in the seeded shuffle.

    A row's part is where u(key) in [0, 1) falls among the cumulative shares. Raises StageError
    when a key occurs twice or a part would hold no row.
    """
    _refuse_duplicates(corpus.name, keys)
    u = unit(hash64(keys, seed=corpus.seed, scope=corpus.name, stream="part"))
    shares = (corpus.parts.train, corpus.parts.train + corpus.parts.validation)
    part_of = np.searchsorted(np.array(shares), u, side="right")
    order = rank(hash64(keys, seed=corpus.seed, scope=corpus.name, stream="order"), keys)
    shards = []
    for number, part in enumerate(PARTS):
        rows = order[part_of[order] == number]
        if len(rows) == 0:
            raise StageError(
                f"corpus {corpus.name}: part {part!r} holds none of the {len(keys)} rows; "
                f"give it a larger share in `parts` or the corpus more rows"
            )
        for shard, start in enumerate(range(0, len(rows), corpus.rows_per_shard)):
            cut = rows[start : start + corpus.rows_per_shard]
            shards.append(Shard(part, f"{part}-{shard:05d}.parquet", cut))
    return shards


def rank(
    hashes: npt.NDArray[np.uint64], keys: pa.Array | pa.ChunkedArray | Sequence[str]
) -> npt.NDArray[np.int64]:
    """Row positions by rising hash, equal hashes by key: an order free of the rows' own order."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    if len(order) and (ordered[1:] == ordered[:-1]).any():
        texts = keys.to_pylist() if isinstance(keys, (pa.Array, pa.ChunkedArray)) else list(keys)
        order = np.array(sorted(range(len(texts)), key=lambda i: (int(hashes[i]), texts[i])))
    return order.astype(np.int64, copy=False)


def write_shard(place: Place, shard: Shard, rows: pa.Table) -> File:
    """Write one shard's rows, already in its order; equal rows give equal bytes."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        SCHEMA,
        compression={name: "NONE" if name == "image" else "ZSTD" for name in SCHEMA.names},
        use_dictionary=["label", "width", "height"],
        write_statistics=["key", "label"],
    ) as writer:
        writer.write_table(rows.cast(SCHEMA).combine_chunks(), row_group_size=ROW_GROUP)
    data = sink.getvalue().to_pybytes()
    place.write_bytes(shard.file, data)
    return File(shard.file, len(rows), len(data), hashlib.sha256(data).hexdigest())


def _refuse_duplicates(name: str, keys: pa.ChunkedArray) -> None:
    counts = keys.value_counts()
    repeated = counts.filter(pa.array(counts.field("counts").to_numpy() > 1))
    if len(repeated):
        shown = ", ".join(sorted(repeated.field("values").to_pylist())[:3])
        raise StageError(
            f"corpus {name}: {len(repeated)} keys occur more than once ({shown}, ...); "
            f"every sample needs a key of its own, so remove or rename the repeated source rows"
        )

"""What the images of a corpus are compared by, computed once for each image and kept as a step.

Takes a corpus's folder; writes `hashes-<part>.parquet` (SCHEMA, in training order) and
`classes.json`. A unit is some rows of one shard; its table stays in scratch until the step is
finished, so an interrupted step continues with the missing units. An image that cannot be decoded
has no digest. Nothing here compares images or imports Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs import records
from jobs.contract import Outcome
from jobs.corpus.shards import Index, read_rows
from jobs.corpus.units import Unit
from jobs.images.decode import DamagedImageError
from jobs.images.likeness import DIGEST, THUMBNAIL, Likeness, likeness, perceptual, thumbnails
from jobs.overlap.match import Images
from jobs.storage.folder import Folder

CLASSES = "classes.json"
_ROWS = b"rows"  # in the metadata of a unit's table: which rows of which shard it has

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.int32()),  # of the corpus; null: it has captions alone
        pa.field("digest", pa.binary(DIGEST)),  # the decoded pixels; null: cannot be decoded
        pa.field("hash", pa.uint64()),  # perceptual
        pa.field("thumbnail", pa.binary(THUMBNAIL)),
    ]
)


def hash_unit(unit: Unit, corpus: Folder, scratch: Folder) -> None:
    """Write a unit's table into scratch, unless it is there."""
    if not _has_unit(unit, scratch):
        rows = read_rows(corpus, unit.file, unit.start, unit.stop, ["key", "image", "label"])
        found = [
            _likeness(data.as_py(), f"sample {key}")
            for data, key in zip(rows["image"], rows["key"].to_pylist(), strict=True)
        ]
        table = _to_table(rows, found).replace_schema_metadata({_ROWS: unit.rows.encode()})
        scratch.write_table(unit.name, table)


def _has_unit(unit: Unit, scratch: Folder) -> bool:
    try:
        table = scratch.read_table(unit.name)
    except (OSError, pa.ArrowException):  # there is none, or it is damaged
        return False
    return (table.schema.metadata or {}).get(_ROWS) == unit.rows.encode()


def _likeness(data: bytes, where: str) -> Likeness | None:
    try:
        return likeness(data, where)
    except DamagedImageError:
        return None


def _to_table(rows: pa.Table, found: Sequence[Likeness | None]) -> pa.Table:
    """The rows [N] with what their images are compared by, by SCHEMA."""
    whole = [one for one in found if one is not None]
    hashes, marks = np.zeros(0, np.uint64), np.zeros((0, THUMBNAIL), np.uint8)
    if whole:
        small = np.stack([one.small for one in whole])
        hashes, marks = perceptual(small), thumbnails(small)
    at = np.cumsum([one is not None for one in found]) - 1
    places = pa.array(at, mask=np.array([one is None for one in found], np.bool_))
    stored = (
        pa.array([one.digest for one in whole], SCHEMA.field("digest").type),
        pa.array(hashes, pa.uint64()),
        pa.array([mark.tobytes() for mark in marks], SCHEMA.field("thumbnail").type),
    )
    columns = [rows["key"], rows["label"], *(column.take(places) for column in stored)]
    return pa.table(columns, schema=SCHEMA)


def finish(index: Index, units: Sequence[Unit], scratch: Folder, output: Folder) -> Outcome:
    """Concatenate the units' tables into the step's files. Counts: images, undecodable."""
    counts = {"images": 0, "undecodable": 0}
    for part in index.parts:
        with output.new_file(file_name(part)) as path, pq.ParquetWriter(path, SCHEMA) as writer:
            for unit in units:
                if unit.part == part:
                    table = scratch.read_table(unit.name).replace_schema_metadata(None)
                    writer.write_table(table)
                    counts["images"] += len(table)
                    counts["undecodable"] += table["digest"].null_count
    output.write_json(CLASSES, list(index.classes))
    return Outcome(counts)


# -- reading ---------------------------------------------------------------------------------------


def file_name(part: str) -> str:
    """The name of a part's file."""
    return f"hashes-{part}.parquet"


def read_classes(folder: Folder) -> tuple[str, ...]:
    """The corpus's class names, in label order."""
    return records.read(folder, CLASSES, tuple[str, ...], "do the step again with --redo")


def read_pieces(folder: Folder, part: str) -> Iterator[pa.Table]:
    """A part's rows by SCHEMA, piece by piece, in training order."""
    with folder.input_file(file_name(part)) as source:
        for batch in pq.ParquetFile(source).iter_batches(batch_size=1 << 16):
            yield pa.Table.from_batches([batch])


def images_of(rows: pa.Table) -> Images:
    """What rows with a digest are compared by."""
    digests, marks = (_fixed(rows[name]) for name in ("digest", "thumbnail"))
    return Images(digests.view(np.uint64), rows["hash"].to_numpy(), marks)


def _fixed(column: pa.ChunkedArray) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """A column of binary values of one length as bytes, [N, length]."""
    width = column.type.byte_width
    whole = b"".join(
        bytes(chunk.buffers()[1])[chunk.offset * width :][: len(chunk) * width]
        for chunk in column.chunks
        if len(chunk)
    )
    return np.frombuffer(whole, np.uint8).reshape(-1, width)

"""What the samples of a corpus are compared by, computed once for each one and kept as a step.

Takes a corpus's folder; writes `hashes-<part>.parquet` (SCHEMA, in training order) and
`classes.json`. A unit is some rows of one shard; its table stays in scratch until the step is
finished, so an interrupted step continues with the missing units. An image that cannot be decoded
has no digest. Nothing here compares samples or imports Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs import records
from jobs.contract import Outcome
from jobs.corpus.form import Form
from jobs.corpus.shards import Index, read_rows
from jobs.corpus.units import Unit
from jobs.images import likeness as of_images
from jobs.likeness import DIGEST, THUMBNAIL, Marks
from jobs.overlap.match import Images
from jobs.storage.folder import Folder
from jobs.text import likeness as of_texts

CLASSES = "classes.json"
_ROWS = b"rows"  # in the metadata of a unit's table: which rows of which shard it has

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.int32()),  # of the corpus; null: it has captions alone
        pa.field("digest", pa.binary(DIGEST)),  # of the content; null: cannot be decoded
        pa.field("hash", pa.uint64()),  # perceptual; of texts: of the words
        pa.field("thumbnail", pa.binary(THUMBNAIL)),
    ]
)


_MARKS = {"image": of_images.marks_of, "text": of_texts.marks_of}
"""What the rows of a modality are compared by."""


def hash_unit(unit: Unit, corpus: Folder, scratch: Folder, form: Form) -> None:
    """Write a unit's table into scratch, unless it is there; `form`: of the corpus."""
    if not _has_unit(unit, scratch):
        columns = ["key", *form.content, "label"]
        rows = read_rows(corpus, unit.file, unit.start, unit.stop, columns)
        table = _to_table(rows, _MARKS[form.modality](rows)).replace_schema_metadata(
            {_ROWS: unit.rows.encode()}
        )
        scratch.write_table(unit.name, table)


def _has_unit(unit: Unit, scratch: Folder) -> bool:
    try:
        table = scratch.read_table(unit.name)
    except (OSError, pa.ArrowException):  # there is none, or it is damaged
        return False
    return (table.schema.metadata or {}).get(_ROWS) == unit.rows.encode()


def _to_table(rows: pa.Table, marks: Marks) -> pa.Table:
    """The rows [N] with what they are compared by, by SCHEMA. Labels that are numbers are null."""
    absent = np.array([digest is None for digest in marks.digests], np.bool_)
    places = pa.array(np.cumsum(~absent) - 1, mask=absent)
    stored = (
        pa.array(marks.hashes, pa.uint64()),
        pa.array([mark.tobytes() for mark in marks.thumbnails], SCHEMA.field("thumbnail").type),
    )
    numbers = pa.types.is_floating(rows.schema.field("label").type)
    columns = [
        rows["key"],
        pa.nulls(len(rows), pa.int32()) if numbers else rows["label"],
        pa.array(marks.digests, SCHEMA.field("digest").type),
        *(column.take(places) for column in stored),
    ]
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
    name = folder.uri.partition("?")[0].rstrip("/").rpartition("/")[2]
    remedy = f"do the step again: `nml-orch sweep` with the same options and --redo hashes/{name}"
    return records.read(folder, CLASSES, tuple[str, ...], remedy)


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

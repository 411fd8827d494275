"""Generated data in the layout that a task's file expects: a few samples of each class."""

from __future__ import annotations

import fnmatch
import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.corpus.mask_spec import MaskFields
from jobs.corpus.reader_spec import (
    AnyReader,
    ImageFolderReader,
    MaskFolderReader,
    ParquetReader,
    TableReader,
    TextReader,
    TextTableReader,
)
from jobs.tasks.check import sources
from jobs.tasks.spec import Task

LEAST_ROWS = 60  # of a source: no part of it may be empty
MANY = 300  # classes: with more, one image of each is enough


@cache
def picture(number: int) -> bytes:
    """An 8 x 8 PNG in one of 50 colours, with noise."""
    colour = np.random.default_rng(number % 50).integers(0, 256, 3, np.uint8)
    noise = np.random.default_rng(1_000 + number).integers(0, 40, (8, 8, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray((colour // 2 + noise).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def names_of(task: Task) -> tuple[str, ...]:
    """The corpus's classes: those in the task's file, else invented ones."""
    assert task.facts is not None
    if not task.target_kind.has_classes:
        return ()
    if task.target_kind.dense and task.corpus is not None:
        assert isinstance(task.corpus.reader, ParquetReader | MaskFolderReader)
        return task.corpus.reader.classes
    return task.facts.class_names or tuple(f"class-{i}" for i in range(task.facts.classes))


def write(task: Task, each: int = 2) -> int:
    """Write all sources of a task, at least `each` images a class; how many rows `reader` has."""
    rows = {}
    for role, reader in sources(task).items():
        classes = len(names_of(task)) or 5
        least = 1 if classes > MANY or task.target_kind.dense else each  # a mask has two classes
        count = max(least, -(-LEAST_ROWS // classes))
        rows[role] = write_source(reader, names_of(task), count, role)
    return rows["reader"]


def write_source(reader: AnyReader, names: Sequence[str], each: int, role: str) -> int:
    match reader:
        case MaskFolderReader():
            return _mask_folder(reader, each, role)
        case ParquetReader(mask=str()):
            return _masks(reader, each, role)
        case ImageFolderReader():
            for label, name in enumerate(names):
                folder = Path(reader.path) / name
                folder.mkdir(parents=True, exist_ok=True)
                for i in range(each):
                    (folder / f"{role}-{i}.png").write_bytes(picture(label + 50 * i))
            return each * len(names)
        case ParquetReader():
            return _parquet(reader, names, each, role)
        case TableReader():
            return _table(reader, names, each, role)
        case TextReader():
            return _texts(reader, names, each, role)
    raise ValueError(f"no data is generated for a reader of kind {reader.kind}; add its layout")


def _mask(reader: MaskFields, classes: Sequence[str], number: int) -> bytes:
    """A mask for `picture`: some class in each half, and a line that is ignored."""
    found = np.full((8, 8), reader.first_class + number % len(classes), np.uint8)
    found[4:] = reader.first_class + (number + 1) % len(classes)
    found[0] = reader.ignored[0]
    stream = io.BytesIO()
    Image.fromarray(found).save(stream, "PNG")
    return stream.getvalue()


def _mask_folder(reader: MaskFolderReader, each: int, role: str) -> int:
    """`each` images for a class, in folders of towns where the names have no list."""
    count = each * len(reader.classes)
    town = "" if reader.names else "town/"
    keys = [f"{town}{role}_{number:04d}" for number in range(count)]
    for number, key in enumerate(keys):
        for root, ending, data in (
            (reader.path, reader.image_ending, picture(number)),
            (reader.masks, reader.mask_ending, _mask(reader, reader.classes, number)),
        ):
            path = Path(root) / f"{key}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    if reader.names:
        Path(reader.names).parent.mkdir(parents=True, exist_ok=True)
        Path(reader.names).write_text("".join(f"{key}\n" for key in keys))
    return count


def _masks(reader: ParquetReader, each: int, role: str) -> int:
    """Rows of one sequence, added to those of the others."""
    path, count = Path(reader.path), each * len(reader.classes)
    path.parent.mkdir(parents=True, exist_ok=True)
    (sequence,) = reader.where.values()
    table = pa.table(
        {
            "image": [picture(number) for number in range(count)],
            "mask": [_mask(reader, reader.classes, number) for number in range(count)],
            "key": [f"{sequence}_{number}" for number in range(count)],
            "sequence": [sequence] * count,
        }
    )
    if path.exists():
        before = pq.read_table(path)
        other = [found != sequence for found in before["sequence"].to_pylist()]
        table = pa.concat_tables([before.filter(pa.array(other)), table])
    pq.write_table(table, path)
    return count


def _parquet(reader: ParquetReader, names: Sequence[str], each: int, role: str) -> int:
    path = Path(reader.path)
    if path.suffix != ".parquet":
        path = path / "data" / reader.files.replace("*", "00000-of-00001")
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = [label for label in range(len(names)) for _ in range(each)]
    wanted = reader.where.get("domain", "")
    columns: dict[str, list[object]] = {reader.image: [], str(reader.label): []}
    more: dict[str, list[object]] = {"label_name": [], "domain": [], "key": []}
    for domain in wanted if isinstance(wanted, tuple) else (wanted,):
        for number, label in enumerate(labels):
            image = picture(label + 50 * number)
            bare = reader.label_name is not None
            columns[reader.image].append(
                image if bare else {"bytes": image, "path": f"{number}.png"}
            )
            columns[str(reader.label)].append(label)
            more["label_name"].append(names[label])
            more["domain"].append(domain)
            more["key"].append(f"{domain}/{number}")
    if reader.label_name is not None:
        columns |= more
        table = pa.table(columns)
        if reader.where and path.exists():  # it has another task's domains
            before = pq.read_table(path)
            kept = [d not in set(more["domain"]) for d in before["domain"].to_pylist()]
            table = pa.concat_tables([before.filter(pa.array(kept)), table])
    else:
        features = {str(reader.label): {"names": list(names), "_type": "ClassLabel"}}
        meta = {"huggingface": json.dumps({"info": {"features": features}})}
        table = pa.table(columns).replace_schema_metadata(meta)
    pq.write_table(table, path)
    return len(columns[reader.image])


FILES = (
    *(f"{part}-00000-of-00001.parquet" for part in ("train", "validation")),
    *(f"validation_{kind}-00000-of-00001.parquet" for kind in ("matched", "mismatched")),
    *("heuristics_train_set.txt", "scitail_1.0_train.tsv", "train.data"),
)
"""Names of files of texts, as they are distributed."""


def _texts(reader: TextReader, names: Sequence[str], each: int, role: str) -> int:
    """Texts that say their class; without names, numbers from 1 to 5."""
    path, fields = Path(reader.path), reader.fields
    if not path.suffix:
        path = path / next(name for name in FILES if fnmatch.fnmatchcase(name, reader.files))
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(each):
        for number, name in enumerate(names or "12345"):
            row = {fields.text: f"{role} text {i} of {name}", fields.label: name}
            row |= {fields.pair: f"its pair {i}"} if fields.pair else {}
            if not isinstance(reader, TextTableReader):
                row[fields.label] = number if names else 1.0 + number
            rows.append(row)
    if isinstance(reader, TextTableReader):
        columns = reader.columns or tuple(rows[0])
        delimiter = reader.delimiter or ("\t" if path.suffix == ".tsv" else ",")
        lines = [] if reader.columns else [columns]
        lines += [tuple(str(row.get(name, "-")) for name in columns) for row in rows]
        path.write_text("".join(delimiter.join(line) + "\n" for line in lines))
        return len(rows)
    features = {fields.label: {"names": list(names), "_type": "ClassLabel"}} if names else {}
    meta = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(meta), path)
    return len(rows)


def _table(reader: TableReader, names: Sequence[str], each: int, role: str) -> int:
    path, delimiter = Path(reader.path), reader.delimiter or ","
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [] if reader.columns else [delimiter.join(("path", "label"))]
    for number, name in enumerate(names):
        for i in range(each):
            image = Path(path.stem) / name / f"{role}-{i}.png"
            (path.parent / image).parent.mkdir(parents=True, exist_ok=True)
            (path.parent / image).write_bytes(picture(number + 50 * i))
            lines.append(f"{image.as_posix()}{delimiter}{name}")
    path.write_text("\n".join(lines) + "\n")
    return each * len(names)

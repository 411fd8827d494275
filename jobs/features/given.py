"""Import given features: a Parquet file of keys, vectors and labels, from any source.

Takes a `GivenStep`; writes the files that extraction writes (`parts.finish`), with view 0 alone, so
later stages need neither encoder nor images. The file's split column gives each row's part; without
one the key decides, in the shares of a corpus's defaults. If the split has no validation rows, some
training rows become validation rows, by key. An OOD task has a test part alone: without a split
column, every row is in it. No row is left out silently: an unusable row raises an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.contract import Outcome, StageError, Work
from jobs.features.columns import check_columns, no_parquet
from jobs.features.parts import write_part
from jobs.features.spec import GivenStep
from jobs.features.spectrum import Dtypes
from jobs.features.unit_table import view_table
from jobs.keyed_hash import hash64, unit
from jobs.storage.folder import Folder
from jobs.tasks.target import KINDS, TargetName

SPLIT = "split"  # the split column where the step names none
PARTS = ("train", "validation", "test")
SHARES = (0.60, 0.15, 0.25)
VALIDATION_SHARE_OF_TRAIN = 0.2  # where a split has no validation rows
_PART_NUMBERS = {
    "train": 0,
    "training": 0,
    "validation": 1,
    "valid": 1,
    "val": 1,
    "dev": 1,
    "test": 2,
}

Numbers = npt.NDArray[np.int64]


def import_features(work: Work) -> Outcome:
    """Write the step's parts, `classes.json` and `spectrum.parquet`.

    Counts: rows_<part>, dim, rows_other_parts. Raises StageError for a file, a column or a row that
    cannot be used.
    """
    step = cast(GivenStep, work.spec)
    table = _read_columns(step)
    keys = _read_keys(table[step.key], step)
    vectors = _read_vectors(table[step.vector], keys, step)
    coarse = pa.types.is_float16(table.schema.field(step.vector).type.value_type)
    dtypes = Dtypes("float16" if coarse else "float32", step.dtype)
    labels, classes = _READERS[step.target](_decode_column(table[step.label]), keys, step)
    split = step.split or (SPLIT if SPLIT in table.column_names else None)
    part_of = _assign_parts(table[split] if split else None, keys, labels, step)
    counts: dict[str, int] = {}
    metrics: dict[str, float] = {}
    label = pa.type_for_alias(KINDS[step.target].arrow)
    for part in step.parts:
        mine = np.flatnonzero(part_of == PARTS.index(part))
        if len(mine) == 0:
            raise StageError(
                f"{step.file} has no {part} rows for task {step.images}; mark some in column "
                f"{split or SPLIT!r}"
            )
        mine = mine[pc.sort_indices(keys.take(pa.array(mine))).to_numpy()]
        own = keys.take(pa.array(mine)), pa.array(labels[mine], label)
        rows = view_table(*own, view=0, vectors=vectors[mine])
        written = write_part(work.output, part, [rows], dtypes)
        counts |= written.counts
        metrics |= written.metrics
    work.output.write_json("classes.json", list(classes))
    used = sum(counts[f"rows_{part}"] for part in step.parts)
    return Outcome({**counts, "rows_other_parts": len(keys) - used}, metrics)


# -- the file --------------------------------------------------------------------------------------


def _read_columns(step: GivenStep) -> pa.Table:
    """The file's columns that the step uses; StageError if it is missing, altered or lacks one."""
    folder, name = Folder.holding(step.file)
    try:
        if folder.sha256(name) != step.sha256:
            raise StageError(
                f"{step.file} is not the file that was planned (other sha256); run again"
            )
        filesystem, path = folder.open()
        with filesystem.open_input_file(f"{path}/{name}") as source:
            try:
                parquet = pq.ParquetFile(source)
            except pa.ArrowException as error:
                raise no_parquet(step.file, error) from None
            found = parquet.schema_arrow.names
            named = check_columns(step, found)
            extra = [SPLIT] if SPLIT in found and SPLIT not in named else []
            table = parquet.read(columns=[*named, *extra])
    except FileNotFoundError:
        raise StageError(
            f"{step.file} does not exist where this step runs; put it there, or on storage that "
            f"every node sees"
        ) from None
    except pa.ArrowException as error:
        raise StageError(
            f"{step.file} cannot be read ({error}); if vectors are missing, leave their rows out, "
            f"else write the file again"
        ) from None
    if table.num_rows == 0:
        raise StageError(f"{step.file} has no rows; give it some")
    return table


def _read_keys(column: pa.ChunkedArray, step: GivenStep) -> pa.Array:
    try:
        keys = column.cast(pa.string()).combine_chunks()
    except pa.ArrowException:
        raise StageError(
            f"{step.file}: column {step.key!r} is {column.type}, not a string; name another as key"
        ) from None
    keys = keys.chunk(0) if isinstance(keys, pa.ChunkedArray) else keys
    if keys.null_count:
        raise StageError(f"{step.file}: {keys.null_count} rows have no {step.key}; give each one")
    counted = keys.value_counts()
    twice = counted.filter(pc.greater(counted.field("counts"), 1))
    if len(twice):
        raise StageError(
            f"{step.file}: {len(twice)} keys are in several rows (the first: "
            f"{twice.field('values')[0]}); give each sample one row"
        )
    return keys


def _read_vectors(column: pa.ChunkedArray, keys: pa.Array, step: GivenStep) -> npt.NDArray[Any]:
    """The vectors, [N, D], float32 and finite in the step's dtype."""
    where = f"{step.file}: column {step.vector!r}"
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    lists = lists or pa.types.is_fixed_size_list(kind)
    if not lists or not pa.types.is_floating(kind.value_type):
        raise StageError(f"{where} is {kind}, not a list of float; name another as vector")
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    if len(lengths) != 1 or lengths[0] in (None, 0):
        listed = ", ".join("none" if n is None else str(n) for n in lengths[:4])
        raise StageError(f"{where} has vectors of different lengths ({listed}); give all the same")
    values = pc.list_flatten(column)
    if values.null_count:
        raise StageError(f"{where} has {values.null_count} empty entries; give each a number")
    with np.errstate(over="ignore"):  # beyond float16: infinite, which is refused below
        flat = values.to_numpy().astype(np.float32)
        finite = np.isfinite(flat.astype(step.dtype))
    found: npt.NDArray[Any] = flat.reshape(len(keys), lengths[0])
    bad = ~finite.reshape(found.shape).all(axis=1)
    if bad.any():
        advice = ", or ask for float32 (features.dtype)" if step.dtype == "float16" else ""
        raise StageError(
            f"{where} is not finite as {step.dtype} in {int(bad.sum())} rows (the first: key "
            f"{keys[int(bad.argmax())]}); leave them out of the file{advice}"
        )
    return found


def _decode_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with plain values, not dictionary-encoded (categorical) and not string views."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    views = pa.types.is_string_view(column.type)
    return column.cast(pa.string()) if views else column


def _read_labels(
    column: pa.ChunkedArray, keys: pa.Array, step: GivenStep
) -> tuple[Numbers, Sequence[str]]:
    """Class numbers, [N], and the classes in label order."""
    where = f"{step.file}: column {step.label!r}"
    if column.null_count:
        raise StageError(f"{where} is empty in {column.null_count} rows; give each a class")
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        classes = step.classes or tuple(sorted(pc.unique(column).to_pylist()))
        numbers = pc.index_in(column, value_set=pa.array(classes, column.type))
        if numbers.null_count:
            unknown = column.filter(pc.is_null(numbers))[0]
            raise StageError(
                f"{where} holds {unknown.as_py()!r}, which is none of classes.{step.images}; add it"
            )
        return numbers.to_numpy().astype(np.int64), classes
    if not pa.types.is_integer(column.type):
        raise StageError(
            f"{where} is {column.type}; classes are integers or names (numbers are the labels of "
            f"a task whose file has `target: number`, such as glue-stsb)"
        )
    labels = column.to_numpy().astype(np.int64)
    if not step.classes and len(labels) and int(labels.max()) > 2 * len(labels):
        raise StageError(
            f"{where} holds the label {int(labels.max()):,} in {len(labels):,} rows; correct it, "
            f"or give names as labels"
        )
    classes = step.classes or tuple(str(number) for number in range(int(labels.max()) + 1))
    wrong = (labels < 0) | (labels >= len(classes))
    if wrong.any():
        at = int(wrong.argmax())
        raise StageError(
            f"{where} holds {labels[at]} (key {keys[at]}), outside 0 to {len(classes) - 1}; "
            f"correct it, or classes.{step.images}"
        )
    return labels, classes


def _read_targets(
    column: pa.ChunkedArray, keys: pa.Array, step: GivenStep
) -> tuple[npt.NDArray[np.float64], Sequence[str]]:
    """The targets of a task that predicts a number, [N], finite, and no classes."""
    where = f"{step.file}: column {step.label!r}"
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise StageError(
            f"{where} is {kind}, but task {step.images} predicts a number; name another column"
        )
    if column.null_count:
        raise StageError(f"{where} is empty in {column.null_count} rows; give each a number")
    found: npt.NDArray[np.float64] = column.cast(pa.float64()).to_numpy()
    bad = ~np.isfinite(found)
    if bad.any():
        raise StageError(
            f"{where} is not finite in {int(bad.sum())} rows (the first: key "
            f"{keys[int(bad.argmax())]}); give each a number"
        )
    return found, ()


_Reader = Callable[[pa.ChunkedArray, pa.Array, GivenStep], tuple[npt.NDArray[Any], Sequence[str]]]
_READERS: Mapping[TargetName, _Reader] = {"class": _read_labels, "number": _read_targets}
"""How the label column of a file is read, by kind of target."""


def _assign_parts(
    column: pa.ChunkedArray | None, keys: pa.Array, labels: npt.NDArray[Any], step: GivenStep
) -> Numbers:
    """Each row's part, as its index in PARTS, [N].

    Where validation rows are taken from the training rows, each class keeps a training row.
    """
    scope = step.images
    if column is None:
        if step.parts == ("test",):
            return np.full(len(keys), PARTS.index("test"))
        u = unit(hash64(keys, seed=0, scope=scope, stream="part"))
        return np.searchsorted(np.cumsum(SHARES)[:-1], u, side="right").astype(np.int64)
    words = column.to_pylist()
    unknown = [str(word) for word in words if word not in _PART_NUMBERS]
    if unknown:
        raise StageError(
            f"{step.file}: the split of {len(unknown)} rows is {unknown[0]!r}; it must be "
            f"{', '.join(list(_PART_NUMBERS)[:-1])} or test"
        )
    part_of = np.array([_PART_NUMBERS[word] for word in words], np.int64)
    if "validation" in step.parts and not (part_of == 1).any():
        u = unit(hash64(keys, seed=0, scope=scope, stream="validation"))
        classes = labels if KINDS[step.target].has_classes else np.zeros_like(part_of)
        marked = part_of == 0
        part_of[marked & (u < VALIDATION_SHARE_OF_TRAIN)] = 1
        for lost in set(classes[marked]) - set(classes[part_of == 0]):
            own = np.flatnonzero(marked & (classes == lost))
            part_of[own[u[own].argmax()]] = 0
    return part_of

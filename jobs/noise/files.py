"""What a noise's file says of a corpus: groupings, matrices, tables by key.

Takes a `Source`; gives arrays that fit the corpus's classes and rows.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.contract import StageError
from jobs.corpus.readers.labels import refuse_alike
from jobs.noise.captions import Clusters
from jobs.noise.classes import Classes
from jobs.noise.labels import Labels, Rows
from jobs.noise.source import Source, one_line
from jobs.noise.spec import ClassName

# -- classes ---------------------------------------------------------------------------------------


def class_numbers(named: Sequence[ClassName], classes: Classes) -> tuple[int, ...]:
    """The classes that `noise.classes` names, as numbers, each once.

    Raises StageError for a class that is unknown, ambiguous or named twice.
    """
    found = classes.numbers(named, "noise.classes")
    _refuse_twice(found, classes, "noise.classes")
    return found


def grouping(source: Source, classes: Classes) -> Rows:
    """The number of each class's group, [C]; StageError unless every class has one group."""
    pairs = _read_pairs(source)
    numbers = classes.numbers_of([name for name, _ in pairs], source.path)
    _refuse_twice(numbers, classes, source.path)
    refuse_alike(
        sorted({group for _, group in pairs if group.strip()}),
        source.path,
        "give a group one spelling",
        "groups",
    )
    group_of = np.full(len(classes), -1, np.int64)
    groups: dict[str, int] = {}
    for number, (_, group) in zip(numbers, pairs, strict=True):
        if group.strip():
            group_of[number] = groups.setdefault(group, len(groups))
    missing = np.flatnonzero(group_of < 0)
    if len(missing):
        raise StageError(
            f"{source.path} gives no group to {len(missing)} of {len(classes)} classes (the first: "
            f"{classes.names[missing[0]]!r}); add a row for each class"
        )
    return group_of


def _refuse_twice(numbers: Sequence[int], classes: Classes, where: str) -> None:
    repeated = [number for number, count in Counter(numbers).items() if count > 1]
    if repeated:
        raise StageError(
            f"{where} names class {classes.names[repeated[0]]!r} twice; name each class once"
        )


def _read_pairs(source: Source) -> list[tuple[str, str]]:
    """The (class, group) pairs in the file; a missing group is empty."""
    data = source.bytes()
    try:
        if source.name.endswith(".json"):
            # Pairs, not a mapping, which would keep only the last of two equal keys.
            pairs = json.loads(data.decode("utf-8-sig"), object_pairs_hook=tuple)
            if not isinstance(pairs, tuple):
                raise ValueError("not an object")
        else:
            pairs = tuple(_csv_pairs(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))))
        return [(_to_text(name), _to_text(group)) for name, group in pairs]
    except (ValueError, csv.Error, RecursionError) as error:
        raise StageError(
            f"{source.path} is not a grouping ({one_line(error)}); give a CSV with the columns "
            f"class and group, or JSON {{class: group}}"
        ) from None


def _csv_pairs(lines: Iterator[list[str]]) -> Iterator[tuple[str, str]]:
    """The values of the columns class and group; ValueError for columns that are not clear."""
    header = next(lines, [])
    for column in ("class", "group"):
        if header.count(column) != 1:
            raise ValueError(f"{header.count(column)} columns are called {column}; it has {header}")
    for number, line in enumerate(lines, 2):
        if len(line) > len(header):
            raise ValueError(f"row {number} has {len(line)} fields, and the first {len(header)}")
        values = dict(zip(header, line, strict=False))
        if line:
            yield values.get("class", ""), values.get("group", "")


def _to_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"{value!r} is neither text nor a whole number")
    return str(value)


def matrix(source: Source, classes: Classes) -> npt.NDArray[np.float64]:
    """A matrix of numbers from npy, csv or parquet.

    Raises StageError for another content, and for a Parquet file whose columns are called like the
    classes but stand in another order.
    """
    data = source.bytes()
    try:
        if source.name.endswith(".npy"):
            values = np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
        elif source.name.endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(data))
            _refuse_other_order(table.column_names, classes, source.path)
            if not all(_is_number(kind) for kind in table.schema.types):
                raise ValueError(f"its columns are {', '.join(map(str, table.schema.types))}")
            numbers = [column.cast(pa.float64(), safe=False) for column in table.columns]
            values = np.stack([column.to_numpy() for column in numbers], axis=1)
        else:
            text = data.decode("utf-8-sig")
            if not text.strip():
                raise ValueError("it is empty")
            values = np.loadtxt(io.StringIO(text), delimiter=",", ndmin=2)
        if values.dtype.kind not in "fiu":
            raise ValueError(f"its values are of the type {values.dtype}")
        return values.astype(np.float64)
    except StageError:
        raise
    except Exception as error:  # NumPy raises nearly anything for damaged files
        raise StageError(
            f"{source.path} is not a matrix of numbers ({one_line(error)}); give npy, csv without "
            f"a header, or parquet"
        ) from None


def _refuse_other_order(columns: Sequence[str], classes: Classes, path: str) -> None:
    for names in (classes.names, classes.ids):
        if tuple(columns) != names and sorted(columns) == sorted(names):
            first = next(n for n, name in enumerate(names) if columns[n] != name)
            raise StageError(
                f"{path}: column {first} (from 0) is called {columns[first]!r}, and class {first} "
                f"of the corpus {names[first]!r}; order rows and columns like the classes"
            )


# -- tables by key ---------------------------------------------------------------------------------


def labels_by_key(
    source: Source, key: str, column: str, keys: pa.Array, classes: Classes
) -> Labels:
    """The table's label for each key, [N], by class name, id or number (see `Classes`)."""
    values = _values_by_key(source, key, column, keys).dictionary_encode()
    texts = [str(value) for value in values.dictionary.to_pylist()]
    numbers = classes.numbers_of(texts, f"{source.path}: column {column!r}")
    labels: Labels = np.array(numbers, np.int32)[values.indices.to_numpy()]
    return labels


def clusters_by_key(source: Source, key: str, column: str, keys: pa.Array) -> Clusters:
    """The number of each key's cluster in the table, [N]."""
    values = _values_by_key(source, key, column, keys)
    clusters: Clusters = values.dictionary_encode().indices.to_numpy()
    return clusters


def probabilities_by_key(
    source: Source, key: str, column: str, keys: pa.Array
) -> Iterator[tuple[Rows, npt.NDArray[np.float64]]]:
    """Positions among `keys` [n] and class probabilities [n, C], some rows at a time.

    Rows of the table with another key are skipped. Raises StageError for a key that is missing or
    occurs twice, for a column without lists of numbers, and for lists of unequal length.
    """
    theirs = _read_keys(source, source.table([key]), key, keys.type)
    positions = pc.index_in(theirs, value_set=keys)
    start = 0
    for batch in source.batches([column], rows=1 << 12):
        if not _lists_numbers(batch[column].type):
            raise _wrong_type(source, column, batch[column].type, "a list of class probabilities")
        at = positions.slice(start, len(batch))
        start += len(batch)
        lists = batch[column].filter(at.is_valid())
        rows = at.drop_null().to_numpy().astype(np.int64)
        if len(rows) == 0:
            continue
        lengths = pc.unique(pc.list_value_length(lists))
        if len(lengths) > 1 or lists.null_count:
            raise StageError(
                f"{source.path}: the lists of column {column!r} differ in length; give each key "
                f"one probability for each class"
            )
        flat = lists.flatten()
        if pa.types.is_decimal(flat.type):
            flat = flat.cast(pa.float64())
        flat = flat.to_numpy(zero_copy_only=False)
        yield rows, flat.reshape(len(rows), lengths[0].as_py())


def _lists_numbers(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(one(kind) for one in lists) and _is_number(kind.value_type)


def _is_number(kind: pa.DataType) -> bool:
    numbers = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal)
    return any(one(kind) for one in numbers)


def _values_by_key(source: Source, key: str, column: str, keys: pa.Array) -> pa.Array:
    table = source.table([key, column])
    theirs = _read_keys(source, table, key, keys.type)
    at = pc.index_in(keys, value_set=theirs)
    values = _read_values(source, table, column).take(at)
    if values.null_count:
        first = keys.filter(pc.is_null(values))[0].as_py()
        raise StageError(
            f"{source.path} gives no {column!r} to {values.null_count} of {len(keys)} training "
            f"rows (the first: key {first!r}); give every key one"
        )
    return values


def _read_keys(source: Source, table: pa.Table, column: str, kind: pa.DataType) -> pa.Array:
    """A table's keys as text of that type; StageError when one is missing or occurs twice."""
    keys = _read_values(source, table, column).cast(kind)
    if keys.null_count:
        first = pc.index(pc.is_null(keys), True).as_py()
        raise StageError(
            f"{source.path}: {keys.null_count} of {len(keys)} rows have no value in column "
            f"{column!r} (the first: row {first}); give each row a key"
        )
    if pc.count_distinct(keys).as_py() < len(keys):
        counted = pc.value_counts(keys)
        repeated = counted.filter(pc.greater(counted.field("counts"), 1))[0]["values"]
        raise StageError(
            f"{source.path}: column {column!r} gives a key twice (the first: "
            f"{repeated.as_py()!r}); give each key one row"
        )
    return keys


def _read_values(source: Source, table: pa.Table, column: str) -> pa.Array:
    """A column of numbers or text as one array; StageError for others and text not in UTF-8."""
    values = table[column]
    if pa.types.is_dictionary(values.type):  # a pandas categorical
        values = values.cast(values.type.value_type)
    if not (_is_number(values.type) or _is_text(values.type)):
        raise _wrong_type(source, column, values.type, "one number or text")
    if pa.types.is_float16(values.type):  # of which Arrow can do little
        values = values.cast(pa.float32())
    if not pa.types.is_primitive(values.type):
        try:
            values = values.cast(pa.large_string())
        except pa.ArrowInvalid:
            raise StageError(
                f"{source.path}: column {column!r} holds text that is not in UTF-8; save the file "
                f"in UTF-8"
            ) from None
    values = values.combine_chunks()
    if pa.types.is_floating(values.type):  # pandas writes a missing number as NaN
        values = pc.if_else(pc.is_nan(values), None, values)
    return values


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column has text, text as bytes, or nothing at all."""
    texts = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
        pa.types.is_null,
    )
    return any(one(kind) for one in texts)


def _wrong_type(source: Source, column: str, kind: pa.DataType, wanted: str) -> StageError:
    return StageError(
        f"{source.path}: column {column!r} holds {kind} in a row, not {wanted}; name another column"
    )

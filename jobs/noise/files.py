"""The files a noise names: a grouping, a matrix, tables by key; and what they hold, by digest.

Takes paths or URIs; gives arrays that fit a corpus's classes and rows. Small files (groupings,
matrices) are *pinned* when an experiment is planned: their digest becomes part of the noise, so
that an edited file is drift. Large tables are streamed; their digest is recorded with the overlay
and checked where the experiment file gives it. Nothing here is ever unpickled.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv as arrow_csv

from jobs.contract import StageError
from jobs.noise.captions import Clusters
from jobs.noise.classes import Classes
from jobs.noise.labels import Labels, Rows
from jobs.noise.spec import ClassName, Groups, Noise, Transition
from jobs.storage.folder import Folder


@dataclass(frozen=True)
class Source:
    """One file that a noise names."""

    path: str  # absolute, or a URI
    sha256: str | None  # what it must hold, if that is known

    @property
    def name(self) -> str:
        """Its name in its folder, which tells by its end what it is."""
        return Folder.holding(self.path)[1]

    def bytes(self) -> bytes:
        """The whole file; StageError when it is absent or holds something else."""
        folder, name = Folder.holding(self.path)
        try:
            data = folder.read_bytes(name)
        except OSError as error:
            raise self._unreadable(error) from None
        self._check(hashlib.sha256(data).hexdigest())
        return data

    def digest(self) -> str:
        """sha256 of the file, read in blocks; StageError as for `bytes`."""
        folder, name = Folder.holding(self.path)
        try:
            found = folder.sha256(name)
        except OSError as error:
            raise self._unreadable(error) from None
        self._check(found)
        return found

    def table(self, columns: Sequence[str]) -> pa.Table:
        """The named columns of a Parquet file, or of a CSV file, perhaps compressed, as bytes.

        Nothing is inferred from a CSV: the key 000010021 is not 10021. Raises StageError when the
        file is no table or lacks a column.
        """
        if self.name.endswith(".parquet"):
            with self._parquet(columns) as parquet:
                return parquet.read(columns=list(columns))
        folder, name = Folder.holding(self.path)
        filesystem, path = folder.open()
        options = arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.binary()),
            strings_can_be_null=True,
            null_values=[""],
        )
        with self._told("CSV file"), filesystem.open_input_stream(f"{path}/{name}") as stream:
            table = arrow_csv.read_csv(stream, convert_options=options)
            self._need(columns, table.column_names)
            return table.select(list(columns))

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """The named columns of a Parquet file, some rows at a time; StageError as for `table`."""
        with self._parquet(columns) as parquet:
            yield from parquet.iter_batches(batch_size=rows, columns=list(columns))

    @contextmanager
    def _parquet(self, columns: Sequence[str]) -> Iterator[pq.ParquetFile]:
        folder, name = Folder.holding(self.path)
        filesystem, path = folder.open()
        with self._told("Parquet file"), filesystem.open_input_file(f"{path}/{name}") as stream:
            parquet = pq.ParquetFile(stream)
            self._need(columns, parquet.schema_arrow.names)
            yield parquet

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Says what Arrow finds wrong as what it is: the file is damaged, or of another kind."""
        try:
            yield
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno:
                raise self._unreadable(error) from None
            raise StageError(
                f"{self.path} is no {what} that can be read ({_words(error)}); restore it, or "
                f"correct noise.file"
            ) from None

    def _need(self, columns: Sequence[str], found: Sequence[str]) -> None:
        for column in columns:
            if column not in found:
                raise StageError(f"{self.path} has no column {column!r}; it has {', '.join(found)}")
            if found.count(column) > 1:
                raise StageError(f"{self.path} has two columns {column!r}; give each its own name")

    def _check(self, found: str) -> None:
        if self.sha256 is not None and found != self.sha256:
            raise StageError(
                f"{self.path} holds other bytes (sha256 {found[:12]}...) than noise.sha256 says "
                f"({self.sha256[:12]}...); restore it, or give the noise a new name"
            )

    def _unreadable(self, error: OSError) -> StageError:
        return StageError(
            f"{self.path} cannot be read ({error.strerror or error}); correct noise.file"
        )


def _words(error: Exception) -> str:
    """What a library says, in a line."""
    return " ".join(str(error).split())[:120]


def pin(noise: Noise) -> Noise:
    """The noise, its path made absolute and a small file's digest filled in.

    Raises StageError when a small file cannot be read or is not the one that `sha256` says.
    """
    noise = noise.with_absolute_paths()
    if isinstance(noise, (Groups, Transition)):
        return noise.model_copy(update={"sha256": source_of(noise).digest()})
    return noise


def source_of(noise: Noise) -> Source:
    """The file that a noise names; ValueError when its kind has none."""
    file = getattr(noise, "file", None)
    if file is None:
        raise ValueError(f"noise of kind {noise.kind} names no file")
    return Source(Folder.of(file).uri, getattr(noise, "sha256", None))


# -- classes ---------------------------------------------------------------------------------------


def class_numbers(named: Sequence[ClassName], classes: Classes) -> tuple[int, ...]:
    """The classes that `noise.classes` names, as numbers, each once.

    Raises StageError for one that is not there, may be two, or is named twice.
    """
    found = classes.numbers(named, "noise.classes")
    _refuse_twice(found, classes, "noise.classes")
    return found


def grouping(source: Source, classes: Classes) -> Rows:
    """The number of each class's group, [C]; StageError unless every class has exactly one."""
    pairs = _pairs(source)
    numbers = classes.numbers_of([name for name, _ in pairs], source.path)
    _refuse_twice(numbers, classes, source.path)
    group_of = np.full(len(classes), -1, np.int64)
    groups: dict[str, int] = {}
    for number, (_, group) in zip(numbers, pairs, strict=True):
        if group.strip():
            group_of[number] = groups.setdefault(group, len(groups))
    missing = np.flatnonzero(group_of < 0)
    if len(missing):
        raise StageError(
            f"{source.path} gives no group to {len(missing)} of {len(classes)} classes (the first: "
            f"{classes.names[missing[0]]!r}); add a row for each, alone in its group if need be"
        )
    return group_of


def _refuse_twice(numbers: Sequence[int], classes: Classes, where: str) -> None:
    twice = [number for number, count in Counter(numbers).items() if count > 1]
    if twice:
        raise StageError(
            f"{where} names class {classes.names[twice[0]]!r} twice; name each class once"
        )


def _pairs(source: Source) -> list[tuple[str, str]]:
    """Classes and their groups as the file has them; a group that is not given is empty."""
    data = source.bytes()
    try:
        if source.name.endswith(".json"):
            # Pairs, not a mapping: that would keep the last of two equal keys alone.
            pairs = json.loads(data, object_pairs_hook=tuple)
            if not isinstance(pairs, tuple):
                raise ValueError("not an object")
        else:
            lines = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
            pairs = tuple((line["class"], line["group"]) for line in lines)
        return [(_cell(name), _cell(group)) for name, group in pairs]
    except (ValueError, KeyError, csv.Error) as error:
        raise StageError(
            f"{source.path} is no grouping ({type(error).__name__}: {error}); give a CSV with the "
            f"columns class and group, or JSON {{class: group}}"
        ) from None


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def matrix(source: Source) -> npt.NDArray[np.float64]:
    """A matrix of numbers from npy, csv or parquet; StageError when the file is none."""
    data = source.bytes()
    try:
        if source.name.endswith(".npy"):
            values = np.load(io.BytesIO(data), allow_pickle=False)
        elif source.name.endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(data))
            values = np.stack([column.to_numpy() for column in table.columns], axis=1)
        else:
            values = np.loadtxt(io.StringIO(data.decode()), delimiter=",", ndmin=2)
        return np.asarray(values, np.float64)
    except (ValueError, TypeError, EOFError, OSError, pa.ArrowException) as error:
        raise StageError(
            f"{source.path} is no matrix of numbers ({_words(error)}); give npy, csv without a "
            f"header, or parquet"
        ) from None


# -- tables by key ---------------------------------------------------------------------------------


def labels_by_key(
    source: Source, key: str, column: str, keys: pa.Array, classes: Classes
) -> Labels:
    """The table's label for each key, [N], by class name, id or number (see `Classes`)."""
    values = _by_key(source, key, column, keys).dictionary_encode()
    said = [str(value) for value in values.dictionary.to_pylist()]
    numbers = classes.numbers_of(said, f"{source.path}: column {column!r}")
    labels: Labels = np.array(numbers, np.int32)[values.indices.to_numpy()]
    return labels


def clusters_by_key(source: Source, key: str, column: str, keys: pa.Array) -> Clusters:
    """A number for each key's cluster in the table, [N]."""
    values = _by_key(source, key, column, keys)
    clusters: Clusters = values.dictionary_encode().indices.to_numpy()
    return clusters


def probabilities_by_key(
    source: Source, key: str, column: str, keys: pa.Array
) -> Iterator[tuple[Rows, npt.NDArray[np.float64]]]:
    """Positions among `keys` [n] and class probabilities [n, C], some rows at a time.

    Rows of the table whose key is not asked for are passed over. Raises StageError for a key that
    is missing or occurs twice, for what is no list of numbers, and for lists of unequal length.
    """
    theirs = _keys(source, source.table([key]), key, keys.type)
    positions = pc.index_in(theirs, value_set=keys)
    start = 0
    for batch in source.batches([column], rows=1 << 12):
        if not _lists_numbers(batch[column].type):
            raise _unfit(source, column, batch[column].type, "a list of class probabilities")
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
        flat = lists.flatten().to_numpy(zero_copy_only=False)
        yield rows, flat.reshape(len(rows), lengths[0].as_py())


def _lists_numbers(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    numbers = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal)
    return any(one(kind) for one in lists) and any(one(kind.value_type) for one in numbers)


def _by_key(source: Source, key: str, column: str, keys: pa.Array) -> pa.Array:
    table = source.table([key, column])
    theirs = _keys(source, table, key, keys.type)
    at = pc.index_in(keys, value_set=theirs)
    values = _values(source, table, column).take(at)
    if values.null_count:
        first = keys.filter(pc.is_null(values))[0].as_py()
        raise StageError(
            f"{source.path} gives no {column!r} to {values.null_count} of {len(keys)} training "
            f"rows (the first: key {first!r}); give every key one"
        )
    return values


def _keys(source: Source, table: pa.Table, column: str, kind: pa.DataType) -> pa.Array:
    """A table's keys as texts of that type; StageError where one is missing or there twice."""
    keys = _values(source, table, column).cast(kind)
    if keys.null_count:
        first = pc.index(pc.is_null(keys), True).as_py()
        raise StageError(
            f"{source.path}: {keys.null_count} of {len(keys)} rows have nothing in column "
            f"{column!r} (the first: row {first}); give each row a key"
        )
    if pc.count_distinct(keys).as_py() < len(keys):
        counted = pc.value_counts(keys)
        twice = counted.filter(pc.greater(counted.field("counts"), 1))[0]["values"]
        raise StageError(
            f"{source.path}: column {column!r} gives a key twice (the first: {twice.as_py()!r}); "
            f"give each key one row"
        )
    return keys


def _values(source: Source, table: pa.Table, column: str) -> pa.Array:
    """A column in one piece, of numbers or texts; StageError for lists and for broken texts."""
    values = table[column]
    if pa.types.is_dictionary(values.type):  # a pandas categorical
        values = values.cast(values.type.value_type)
    if pa.types.is_nested(values.type):
        raise _unfit(source, column, values.type, "one number or text")
    if not pa.types.is_primitive(values.type):
        try:
            values = values.cast(pa.large_string())
        except pa.ArrowInvalid:
            raise StageError(
                f"{source.path}: column {column!r} holds text that is not in UTF-8; save the file "
                f"in UTF-8"
            ) from None
    return values.combine_chunks()


def _unfit(source: Source, column: str, kind: pa.DataType, wanted: str) -> StageError:
    return StageError(
        f"{source.path}: column {column!r} holds {kind} in a row, not {wanted}; name another column"
    )

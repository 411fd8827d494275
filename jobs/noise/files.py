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
from jobs.place import Place

HASH_BLOCK = 16 << 20


@dataclass(frozen=True)
class Source:
    """One file that a noise names."""

    path: str  # absolute, or a URI
    sha256: str | None  # what it must hold, if that is known

    @property
    def name(self) -> str:
        """Its name in its folder, which tells by its end what it is."""
        return Place.holding(self.path)[1]

    def bytes(self) -> bytes:
        """The whole file; StageError when it is absent or holds something else."""
        place, name = Place.holding(self.path)
        try:
            data = place.read_bytes(name)
        except OSError as error:
            raise self._unreadable(error) from None
        self._check(hashlib.sha256(data).hexdigest())
        return data

    def digest(self) -> str:
        """sha256 of the file, read in blocks; StageError as for `bytes`."""
        place, name = Place.holding(self.path)
        found = hashlib.sha256()
        filesystem, path = place.open()
        try:
            with filesystem.open_input_stream(f"{path}/{name}") as stream:
                while block := stream.read(HASH_BLOCK):
                    found.update(block)
        except OSError as error:
            raise self._unreadable(error) from None
        self._check(found.hexdigest())
        return found.hexdigest()

    def table(self, columns: Sequence[str]) -> pa.Table:
        """The named columns of a Parquet or CSV file; StageError when one is not there."""
        place, name = Place.holding(self.path)
        filesystem, path = place.open()
        with filesystem.open_input_file(f"{path}/{name}") as stream:
            try:
                if self.name.endswith(".parquet"):
                    parquet = pq.ParquetFile(stream)
                    self._need(columns, parquet.schema_arrow.names)
                    return parquet.read(columns=list(columns))
                table = arrow_csv.read_csv(stream)
            except pa.ArrowInvalid as error:
                raise StageError(f"{self.path} is no table ({error}); correct noise.file") from None
        self._need(columns, table.column_names)
        return table.select(list(columns))

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """The named columns of a Parquet file, some rows at a time."""
        place, name = Place.holding(self.path)
        filesystem, path = place.open()
        with filesystem.open_input_file(f"{path}/{name}") as stream:
            parquet = pq.ParquetFile(stream)
            self._need(columns, parquet.schema_arrow.names)
            yield from parquet.iter_batches(batch_size=rows, columns=list(columns))

    def _need(self, columns: Sequence[str], found: Sequence[str]) -> None:
        for column in columns:
            if column not in found:
                raise StageError(f"{self.path} has no column {column!r}; it has {', '.join(found)}")

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


def rooted(noise: Noise) -> Noise:
    """The noise with its file's path made absolute, if it names a file."""
    if getattr(noise, "file", None) is None:
        return noise
    return noise.model_copy(update={"file": source_of(noise).path})


def pin(noise: Noise) -> Noise:
    """The noise, its path made absolute and a small file's digest filled in.

    Raises StageError when a small file cannot be read or is not the one that `sha256` says.
    """
    noise = rooted(noise)
    if isinstance(noise, (Groups, Transition)):
        return noise.model_copy(update={"sha256": source_of(noise).digest()})
    return noise


def source_of(noise: Noise) -> Source:
    """The file that a noise names; ValueError when its kind has none."""
    file = getattr(noise, "file", None)
    if file is None:
        raise ValueError(f"noise of kind {noise.kind} names no file")
    return Source(Place.of(file).uri, getattr(noise, "sha256", None))


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
    except (ValueError, TypeError, EOFError, pa.ArrowException) as error:
        raise StageError(
            f"{source.path} is no matrix of numbers ({' '.join(str(error).split())[:120]}); give "
            f"npy, csv without a header, or parquet"
        ) from None


# -- tables by key ---------------------------------------------------------------------------------


def labels_by_key(
    source: Source, key: str, column: str, keys: pa.Array, classes: Classes
) -> Labels:
    """The table's label for each key, [N], by number or by class name."""
    values = _by_key(source, key, column, keys)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        numbers = pc.index_in(values, value_set=pa.array(classes.names, values.type))
        if numbers.null_count:
            unknown = values.filter(pc.is_null(numbers))[0].as_py()
            raise StageError(
                f"{source.path}: column {column!r} holds {unknown!r}, which is no class of the "
                f"corpus; correct it or name another column"
            )
        values = numbers
    try:
        labels: Labels = values.cast(pa.int32()).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise StageError(
            f"{source.path}: column {column!r} holds no labels ({error}); name another column"
        ) from None
    return labels


def clusters_by_key(source: Source, key: str, column: str, keys: pa.Array) -> Clusters:
    """A number for each key's cluster in the table, [N]."""
    values = _by_key(source, key, column, keys)
    clusters: Clusters = values.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return clusters


def probabilities_by_key(
    source: Source, key: str, column: str, keys: pa.Array
) -> Iterator[tuple[Rows, npt.NDArray[np.float64]]]:
    """Positions among `keys` [n] and class probabilities [n, C], some rows at a time.

    Rows of the table whose key is not asked for are passed over. Raises StageError for a key that
    occurs twice and for lists of unequal length.
    """
    theirs = source.table([key])[key].cast(keys.type).combine_chunks()
    _refuse_repeated(source, theirs)
    positions = pc.index_in(theirs, value_set=keys)
    start = 0
    for batch in source.batches([column], rows=1 << 12):
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
        yield rows, flat.reshape(len(rows), -1)


def _by_key(source: Source, key: str, column: str, keys: pa.Array) -> pa.Array:
    table = source.table([key, column])
    theirs = table[key].cast(keys.type).combine_chunks()
    _refuse_repeated(source, theirs)
    at = pc.index_in(keys, value_set=theirs)
    values = table[column].combine_chunks().take(at)
    if values.null_count:
        first = keys.filter(pc.is_null(values))[0].as_py()
        raise StageError(
            f"{source.path} gives no {column!r} to {values.null_count} of {len(keys)} training "
            f"rows (the first: key {first!r}); give every key one"
        )
    return values


def _refuse_repeated(source: Source, keys: pa.Array) -> None:
    if pc.count_distinct(keys).as_py() < len(keys):
        raise StageError(f"{source.path} gives a key twice; give each key one row")

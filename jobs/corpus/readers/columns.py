"""The columns of a Parquet source: which types fit which role, and what their values give.

Takes columns and schemas as pyarrow reads them; gives encoded images, labels and class names.
Raises StageError for values of another type. Reads no files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from jobs.alike import alike, folded
from jobs.contract import StageError
from jobs.corpus.readers.labels import Naming, label_text
from jobs.corpus.readers.rows import UNKNOWN
from jobs.images.headers import EXTENSIONS


@dataclass(frozen=True)
class LabelColumn:
    """How a file's label column gives labels: by name, or by number, maybe of another order."""

    column: str
    where: str  # the file, for messages
    naming: Naming | None = None  # of a column of names
    relabel: Sequence[int] | None = None  # the source's label of each of the file's numbers

    def of(self, table: pa.Table) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """Each row's label (UNKNOWN: no class), and words on an unknown one."""
        column = table[self.column]
        if self.naming is not None:
            names = cast(column, self.where, self.column, pa.string())
            return self._of_names(names.combine_chunks(), self.naming)
        numbers = cast(column, self.where, self.column, pa.int64())
        if self.relabel is not None:
            outside = pc.or_(pc.less(numbers, 0), pc.greater_equal(numbers, len(self.relabel)))
            inside = pc.if_else(outside, 0, numbers)
            numbers = pc.if_else(outside, UNKNOWN, pa.array(self.relabel, pa.int64()).take(inside))
        return numbers, pa.nulls(len(table), pa.string())

    def _of_names(self, names: pa.Array, naming: Naming) -> tuple[pa.Array, pa.Array]:
        """Blank names are no label."""
        values = pc.unique(names)
        found: list[int | None] = []
        words: list[str | None] = []
        for name in values.to_pylist():
            blank = name is None or not name.strip()
            found.append(None if blank else naming.of_text(name))
            words.append(naming.why_unknown(name) if found[-1] == UNKNOWN else None)
        at = pc.index_in(names, value_set=values)
        return pa.array(found, pa.int64()).take(at), pa.array(words, pa.string()).take(at)


def cast(
    column: pa.Array | pa.ChunkedArray, where: str, name: str, kind: pa.DataType
) -> pa.ChunkedArray:
    """The column in another type; StageError, which begins with `where`, when a value has none."""
    try:
        column = column.cast(value_type(column.type))
        if is_text(column.type) and is_text(kind):
            column = column.cast(pa.large_binary())  # a cast from bytes checks that they are UTF-8
        return column.cast(kind)
    except pa.ArrowInvalid as error:
        wanted = "whole numbers" if pa.types.is_integer(kind) else "text"
        raise StageError(
            f"{where}: column {name!r} holds more than {wanted} ({error}); correct it or name "
            f"another column"
        ) from None


def key_texts(column: pa.Array | pa.ChunkedArray, where: str, name: str) -> pa.ChunkedArray:
    """A column of keys as text; null for NaN, which is no key."""
    column = column.cast(value_type(column.type))
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    return cast(column, where, name, pa.string())


def image_bytes(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None]:
    """The encoded bytes, and the images' paths if the column is a struct that has them."""
    if not pa.types.is_struct(column.type):
        return column, None
    fields = {column.type.field(i).name for i in range(column.type.num_fields)}
    if "bytes" not in fields:
        raise StageError(
            f"the image column is a struct of {', '.join(sorted(fields))}, without `bytes`; "
            f"embed the images' bytes in the files"
        )
    path = pc.struct_field(column, "path") if "path" in fields else None
    return (
        pc.struct_field(column, "bytes"),
        path if path is not None and is_text(path.type) else None,
    )


def claimed_formats(path: pa.ChunkedArray) -> pa.ChunkedArray:
    """The image format by each path's extension; null for an unknown extension."""
    ends = pc.utf8_lower(pc.extract_regex(path, r"\.(?P<end>\w+)$").combine_chunks().field("end"))
    known = pc.index_in(ends, value_set=pa.array(list(EXTENSIONS)))
    return pa.array(list(EXTENSIONS.values())).take(known)


def value_type(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values, also if the column is dictionary-encoded."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are text, also if the column is dictionary-encoded."""
    kind = value_type(kind)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def is_flat(kind: pa.DataType) -> bool:
    """Whether a row has one value of this type, not a list or a struct."""
    return not pa.types.is_nested(kind)


def may_be_key(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold keys: one value in a row, but not true and false."""
    return is_flat(kind) and not pa.types.is_boolean(kind)


def may_be_image(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold encoded images."""
    if not pa.types.is_struct(kind):
        return _is_bytes(kind)
    types = [field.type for field in kind if field.name == "bytes"]
    return all(_is_bytes(one) or pa.types.is_null(one) for one in types)


def may_be_caption(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold captions."""
    return is_text(kind) or _is_bytes(kind)


def may_be_label(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold labels: names or numbers, but not true and false."""
    return bool(
        is_text(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
    )


def refuse_columns(schema: pa.Schema, named: Sequence[str], path: str) -> None:
    """Raise StageError when a named column is missing, or when two columns have its name."""
    for name in named:
        count = schema.names.count(name)
        if count == 0:
            near = alike(name, schema.names)
            hint = "correct the reader's fields"
            hint = hint if near is None else f"name it as the file does, {near!r}"
            raise StageError(
                f"{path} has no column {name!r}; it has {', '.join(schema.names)}: {hint}"
            )
        if count > 1:
            raise StageError(f"{path} has {count} columns called {name!r}; rename all but one")


def declared_names(
    schema: pa.Schema, label: str, path: str, field: str = "classes", *, given: bool = False
) -> list[str] | None:
    """The class names in Hugging Face's metadata, if any.

    Raises StageError when they are of no use; `field` can list names in their place, and if they
    are `given` there, metadata of no use is passed over.
    """
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return None
    try:
        found = json.loads(raw)
        for word in ("info", "features", label, "names"):
            found = (found or {}).get(word)
    except (ValueError, AttributeError, RecursionError):
        found = raw
    if not found:
        return None
    if not isinstance(found, list) or not all((label_text(name) or "").strip() for name in found):
        if given:
            return None
        raise StageError(
            f"{path}: its `huggingface` metadata does not list the names of {label!r} as Hugging "
            f"Face writes them, a text for each; give the names in `{field}`"
        )
    return [str(name) for name in found]


def positions(names: Sequence[str], first: Sequence[str], where: str) -> list[int] | None:
    """Where the names that a file declares stand in those of the first file; None: all in place.

    Raises StageError for other names, and where two classes have one name.
    """
    if list(names) == list(first):
        return None
    unknown = [name for name in names if name not in first]
    if unknown:
        raise StageError(
            f"{where}: its metadata names a class {unknown[0]!r} that the first file does not "
            f"have; write all files with the same classes"
        )
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise StageError(
            f"{where}: its metadata has another order of classes than the first file and calls two "
            f"{repeated!r}; write all files with the same order of classes"
        )
    return [first.index(name) for name in names]


def refuse_contradiction(declared: Sequence[str], classes: Sequence[str], where: str) -> None:
    """Raise StageError when `classes` gives a declared name to another number."""
    listed = [folded(name) for name in classes]
    for number, name in enumerate(map(folded, declared)):
        if name in listed and listed[number : number + 1] != [name]:
            raise StageError(
                f"{where}: its metadata gives the names of `classes` in another order "
                f"({', '.join(declared[:3])}, ...); correct `classes`, or leave it out"
            )

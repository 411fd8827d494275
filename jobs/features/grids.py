"""The files of features of patches: larger than memory, so written unit by unit and mapped to read.

A part of N images with V views, P * P patches, D dimensions and C classes is three files:

    features-<part>.npy   float32 or float16 [V, N, P * P, D], images sorted by key
    counts-<part>.npy     int32 [V, N, P * P, C], how many pixels of each class a patch has
    keys-<part>.parquet   the images' keys, in this order

View 0 is the plain image, others are in the training part alone. NumPy's own format can be mapped
into memory whole, so that a batch of patches is read like rows of an array, from the file. A part
that lies in a bucket is copied to a temporary file first.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.corpus.units import Unit
from jobs.features.spectrum import Dtypes, Spectrum, spectra
from jobs.storage.folder import Folder

GRID_ROWS = 32  # images of a unit: some hundred megabytes with all views
COPY_BYTES = 8 << 20

ReadView = Callable[[Unit, int, list[str]], pa.Table]
"""Reads columns of a view of a unit's rows: key, label (counts, flat), vector (features, flat)."""


@dataclass(frozen=True)
class GridPart:
    """A part's files, mapped into memory."""

    keys: pa.Array  # string [N], sorted
    features: npt.NDArray[Any]  # [V, N, P * P, D]
    counts: npt.NDArray[np.int32]  # [V, N, P * P, C]


@dataclass(frozen=True)
class Written:
    """What a part holds that was written."""

    rows: int  # images, in each of their views
    patches: int  # of an image, P * P
    dim: int  # D
    spectra: list[Spectrum]  # of all patches of a test part


def write_part(
    output: Folder,
    part: str,
    units: Sequence[Unit],
    views: int,
    classes: int,
    read: ReadView,
    dtypes: Dtypes,
) -> Written:
    """Write a part from its units."""
    keys = pa.concat_tables([read(unit, 0, ["key"]) for unit in units])["key"].combine_chunks()
    order = pc.sort_indices(keys)
    position = np.empty(len(keys), np.int64)  # of each row, once sorted
    position[order.to_numpy()] = np.arange(len(keys))
    output.write_table(_keys_file(part), pa.table({"key": keys.take(order)}))
    first = read(units[0], 0, ["label", "vector"]).schema
    patches = first.field("label").type.list_size // classes
    dim = first.field("vector").type.list_size // patches
    shape = views, len(keys), patches

    def pieces(column: str, width: int, kind: Any) -> Iterator[npt.NDArray[Any]]:
        """A column of all units and views, each written to its place as it passes."""
        with output.new_file(_file(column, part)) as path:
            found = np.lib.format.open_memmap(
                path, mode="w+", dtype=kind, shape=(*shape, width), version=(1, 0)
            )
            for view in range(views):
                start = 0
                for unit in units:
                    flat = read(unit, view, [column])[column].combine_chunks().flatten()
                    here = flat.to_numpy(zero_copy_only=False).reshape(-1, patches, width)
                    found[view, position[start : start + len(here)]] = here
                    start += len(here)
                    yield here.reshape(-1, width)
            found.flush()
            del found

    for _ in pieces("label", classes, np.int32):
        pass
    vectors = pieces("vector", dim, np.dtype(dtypes.stored))
    measured = spectra(vectors) if part == "test" else []
    for _ in vectors:
        pass
    return Written(views * len(keys), patches, dim, measured)


def has_part(folder: Folder, part: str) -> bool:
    """Whether a features folder holds this part as patches."""
    return folder.exists(_keys_file(part))


def read_part(folder: Folder, part: str) -> GridPart:
    """A part of a features folder, mapped. Raises FileNotFoundError when a file is missing."""
    keys = folder.read_table(_keys_file(part))["key"].combine_chunks()
    features, counts = (_mapped(folder, _file(column, part)) for column in ("vector", "label"))
    return GridPart(keys, features, counts)


def _mapped(folder: Folder, name: str) -> npt.NDArray[Any]:
    """An array of a file, mapped read-only (copy on write: nothing writes to it)."""
    if folder.is_local:
        folder.check(name)
        found: npt.NDArray[Any] = np.load(folder.local_path() / name, mmap_mode="c")
        return found
    with tempfile.NamedTemporaryFile(suffix=".npy") as copy, folder.input_file(name) as source:
        file: BinaryIO = copy.file  # type: ignore[assignment]
        shutil.copyfileobj(source, file, COPY_BYTES)
        file.flush()
        mapped: npt.NDArray[Any] = np.load(copy.name, mmap_mode="c")
        return mapped  # the file is gone once nothing maps it


def _file(column: str, part: str) -> str:
    return f"{'features' if column == 'vector' else 'counts'}-{part}.npy"


def _keys_file(part: str) -> str:
    return f"keys-{part}.parquet"

"""Features of patches, read from their file as a cell needs them, never in memory as a whole.

Takes a features folder that `jobs.features.grids` wrote; gives a `Part` whose rows are patches.
Only keys, the rows that are used and the counts of the task's classes are kept in memory: for each
patch about 40 bytes and 4 for each class and view.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from jobs.contract import StageError
from jobs.features import grids
from jobs.storage.folder import Folder
from jobs.tuning.frozen.part import Part
from jobs.tuning.rows import Labelled, PartName, TaskRows
from jobs.tuning.target import Indices


class PatchRows:
    """Some rows of features in a file (`jobs.tuning.rows.Features`)."""

    def __init__(
        self,
        source: npt.NDArray[Any],
        rows: Indices,
        device: torch.device | str = "cpu",
    ) -> None:
        """`source`: [V, N, D], or [N, D] without views; `rows`: indices of N."""
        self._source, self._rows, self._device = source, rows, device

    @property
    def shape(self) -> tuple[int, ...]:
        """[V, n, D] or [n, D]."""
        *views, _, dim = self._source.shape
        return (*views, len(self._rows), dim)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any, /) -> Tensor:
        """Some rows; of features with views: a view, or all of them (`:`), and some rows."""
        source = self._source
        if isinstance(index, tuple):
            view, index = index
            source = source if view == slice(None) else source[view]
        rows = self._rows[index.cpu().numpy() if isinstance(index, Tensor) else index]
        found = torch.from_numpy(np.take(source, rows, axis=-2))
        return found.to(self._device, torch.float32)

    def to(self, device: Any, /) -> PatchRows:
        """The same, whose rows come on a device."""
        return PatchRows(self._source, self._rows, device)

    def data_ptr(self) -> int:
        """See `jobs.tuning.rows.Features`."""
        return int(self._rows.ctypes.data)


@dataclass(frozen=True)
class PatchPart(Part):
    """One part of an image set as features of patches; a row is a patch."""

    def training(self, rows: TaskRows) -> Labelled:
        """The features [V, n, D] and pixel counts [n, V, C] of the selected patches."""
        return Labelled(PatchRows(self.views, rows.indices), rows.labels)

    def plain(self, rows: TaskRows) -> Labelled:
        """The features [n, D] and pixel counts [n, C] of the selected patches, first view."""
        return Labelled(PatchRows(self.views[0], rows.indices), rows.labels[:, 0])


def read_part(folder: Folder, part: PartName, *, plain: bool = False) -> PatchPart:
    """A part of a features folder that holds patches. Raises StageError when a file is missing."""
    try:
        found = grids.read_part(folder, part)
    except FileNotFoundError as error:
        raise StageError(
            f"{folder.uri} lacks a file of the patches of its {part} part ({error}); extract its "
            f"features again"
        ) from None
    views, images, patches, dim = found.features.shape
    augmented = views - 1 if part == "train" and not plain else 0
    chosen = slice(1, None) if augmented else slice(0, 1)
    keys = found.keys.take(pa.array(np.repeat(np.arange(images), patches)))
    counts = found.counts[chosen].reshape(-1, images * patches, found.counts.shape[-1])
    features = found.features[chosen].reshape(-1, images * patches, dim)
    return PatchPart(keys, counts.swapaxes(0, 1), features, augmented)

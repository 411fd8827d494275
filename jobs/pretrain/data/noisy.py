"""A noise step's overlay, as the targets of the training part.

Runs that train together read the same rows and differ in their overlays alone. So the clean values
are encoded once for all of them, and each overlay adds the rows that it changes.
"""

from __future__ import annotations

import threading

import pyarrow as pa
import torch
from torch import Tensor

from jobs.contract import StageError
from jobs.noise.overlay import CHANGED, Changes, Overlay, apply
from jobs.pretrain.data.order import Rows
from jobs.pretrain.data.part import Encode, Field, Part, Targets
from jobs.storage.folder import Folder


class NoisyRows:
    """The targets of a training part's rows under one noise step. Safe in threads."""

    def __init__(self, noise: Folder, rows: int, field: Field, encode: Encode) -> None:
        """`rows`: of the part. `encode` turns labels or captions into a tensor, one row each.

        Raises StageError when the overlay changes a field that the recipe does not train on, or
        belongs to another corpus, as far as the overlay shows.
        """
        overlay = _read_overlay(noise, field)
        self.flipped = overlay.changed
        """Rows of the part that the noise changes."""
        self._noise, self._encode = noise, encode
        self._changes, self._lock = Changes(noise), threading.Lock()
        if len(self._changes) != overlay.changed or overlay.rows != rows:
            here = len(self._changes) if overlay.rows == rows else 0
            raise StageError(
                f"the overlay changes {overlay.changed} rows of corpus {overlay.corpus} and only "
                f"{here} of them are here; make the noise of this corpus again"
            )

    def changed(self) -> Rows:
        """Numbers of the changed training rows, sorted."""
        rows: Rows = self._noise.read_table(CHANGED, ["row"])["row"].to_numpy()
        return rows

    def targets(
        self, part: Part, start: int, keys: pa.Array, values: pa.Array, clean: Tensor
    ) -> Targets:
        """The targets of the rows from number `start` on, which have these keys.

        `values`: their clean labels or captions; `clean`: those, encoded. Raises StageError for
        rows of another corpus.
        """
        with self._lock:
            changed = self._changes.rows(start, start + len(keys))
        noisy, mask = apply(changed, keys, values, start)
        targets, flipped = clean, torch.from_numpy(mask.copy())
        if mask.any():  # only the changed rows: tokenizing captions takes time
            targets = clean.clone()
            targets[flipped] = self._encode(part, noisy.filter(pa.array(mask)))
        return Targets(targets, clean, flipped)


def noisy_targets(
    part: Part, noise: Folder, field: Field, encode: Encode, clean: Tensor | None = None
) -> Targets:
    """The targets of a training part in memory under a noise step. Raises as `NoisyRows` does.

    `clean`: the part's own values, encoded, if they are known.
    """
    rows = NoisyRows(noise, part.rows, field, encode)
    values = part.labels if field == "label" else part.captions
    clean = encode(part, values) if clean is None else clean
    return rows.targets(part, 0, part.keys, values, clean)


def _read_overlay(noise: Folder, field: Field) -> Overlay:
    overlay = Overlay.read(noise)
    if overlay.field != field:
        raise StageError(
            f"noise {overlay.kind!r} changes {overlay.field}s and this recipe trains on {field}s: "
            f"it would see no noise; use a kind of noise for {field}s"
        )
    return overlay

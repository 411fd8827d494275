"""A noise step's overlay, as the targets of the training part."""

from __future__ import annotations

import torch

from jobs.contract import StageError
from jobs.noise.overlay import CHANGED, Changes, Overlay, apply
from jobs.pretrain.data.order import Rows
from jobs.pretrain.data.part import Encode, Field, Part, Targets
from jobs.storage.folder import Folder


def read_overlay(noise: Folder, field: Field) -> Overlay:
    """A noise step's overlay; StageError when it changes another field than `field`."""
    overlay = Overlay.read(noise)
    if overlay.field != field:
        raise StageError(
            f"noise {overlay.kind!r} changes {overlay.field}s and this recipe trains on {field}s: "
            f"it would see no noise; use a kind of noise for {field}s"
        )
    return overlay


def mismatched(overlay: Overlay, here: int) -> StageError:
    """The error for an overlay with only `here` of its changed rows in the corpus."""
    return StageError(
        f"the overlay changes {overlay.changed} rows of corpus {overlay.corpus} and only "
        f"{here} of them are here; make the noise of this corpus again"
    )


def changed_rows(noise: Folder) -> Rows:
    """Numbers of the changed training rows, sorted."""
    rows: Rows = noise.read_table(CHANGED, ["row"])["row"].to_numpy()
    return rows


def noisy_targets(part: Part, noise: Folder, field: Field, encode: Encode) -> Targets:
    """The training part's targets under a noise step's overlay.

    `encode` turns labels or captions into a tensor with one row each. Raises StageError when the
    overlay changes a field that the recipe does not train on, or belongs to another corpus.
    """
    overlay = read_overlay(noise, field)
    values = part.labels if field == "label" else part.captions
    noisy, changed = apply(Changes(noise).rows(0, part.rows), part.keys, values)
    if int(changed.sum()) != overlay.changed:
        raise mismatched(overlay, int(changed.sum()))
    return Targets(encode(part, noisy), encode(part, values), torch.from_numpy(changed.copy()))

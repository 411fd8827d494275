"""Views of texts: seeded copies in which some tokens are the tokenizer's mask token.

Which tokens depends on the views' seed, the row's key and the token's position alone, so a view is
the same in any batch. Special tokens are never replaced. View 0 is the plain text and is not made
here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from jobs.images.spec import Views
from jobs.keyed_hash import expand, hash64, unit
from jobs.text.tokens import Tokens


def masked(
    batch: Tokens,
    keys: pa.Array,
    views: Views,
    view: int,
    scope: str,
    *,
    mask: int,
    special: Sequence[int],
) -> Tokens:
    """View `view` (1..V) of a batch of rows with these keys [N].

    Each token but the `special` ones becomes the token `mask` with probability `views.mask`.
    `scope` is the corpus's name, so equal keys of two corpora have different draws.
    """
    sides, _, length = batch.ids.shape
    chosen = np.stack(
        [
            unit(expand(hash64(keys, seed=views.seed, scope=scope, stream=stream), length))
            < views.mask
            for stream in (f"mask{view}", f"mask{view}/pair")[:sides]
        ]
    )
    device = batch.ids.device
    kept = torch.isin(batch.ids, torch.tensor(list(special), device=device))
    replaced = torch.from_numpy(chosen).to(device) & batch.mask.bool() & ~kept
    return Tokens(batch.ids.masked_fill(replaced, mask), batch.mask, batch.types)

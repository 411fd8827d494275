"""From a model's hidden states to one vector for each row of texts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.text.spec import Pooling


def pooled(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """One vector for each sequence, [N, D], of its hidden states [N, L, D].

    `mask` [N, L] is 1 for a sequence's own tokens, wherever its padding is. `pooler` is the model's
    own and not made here.
    """
    rows = torch.arange(len(hidden), device=hidden.device)
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)
    if pooling == "cls":
        return hidden[rows, mask.argmax(1)]
    if pooling == "last":
        length = mask.shape[1]
        return hidden[rows, length - 1 - mask.flip(1).argmax(1)]
    raise ValueError(f"{pooling} is the model's own")


def unit_length(vectors: Tensor) -> Tensor:
    """The vectors [N, D], each divided by its length."""
    return F.normalize(vectors, dim=1)


def joined(u: Tensor, v: Tensor) -> Tensor:
    """Two vectors of each row as one, [N, 4 * D]: [u; v; |u - v|; u * v]."""
    return torch.cat([u, v, (u - v).abs(), u * v], 1)

"""An encoder of texts: a model of the transformers library or an extension, and a tokenizer.

Its inputs are `Tokens`. The texts of a table are tokenized at once, and rows of like length share a
batch, so little of it is padding. A row's features depend on the row alone, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from jobs.contract import StageError
from jobs.encoders import transformers
from jobs.encoders.card import EncoderCard
from jobs.encoders.interface import Batch, Encoder, Precision, Rows
from jobs.images.spec import Shift, Views
from jobs.text.pooling import joined, unit_length
from jobs.text.spec import TextInput
from jobs.text.tokenizer import Tokenizer, open_tokenizer
from jobs.text.tokens import Sequences, TokenRows, Tokens
from jobs.text.views import masked

TRUNCATED = "rows_truncated"

# Tokens of a batch. More of them leave a CPU's cache, and rows of less like length share a batch:
# MiniLM over sentences of 13 tokens takes 0.9 of the processor time of 4,096, and 0.7 of that of
# 8,192; fewer tokens gain nothing. A GPU needs more to be busy.
CPU_TOKENS, GPU_TOKENS = 2_048, 32_768


class TextEncoder(Encoder):
    """An encoder of texts on one device; features: one vector for each row, see `TextInput`."""

    columns = ("text", "pair")

    def __init__(
        self,
        card: EncoderCard,
        model: nn.Module,
        device: torch.device,
        files: Mapping[str, bytes],
    ) -> None:
        super().__init__(card, model, device)
        self._files = files
        transformers.require()
        config = {} if card.family == "extension" else card.model_options
        own = open_tokenizer(files, config)
        self.tokenizer = Tokenizer(
            own,
            self.input,
            types=transformers.reads_types(model, own),
            pad=transformers.padding(self.model.config, own),
            budget=GPU_TOKENS if device.type == "cuda" else CPU_TOKENS,
        )

    @property
    def input(self) -> TextInput:
        """How a row's texts become tokens, and these a vector."""
        if not isinstance(self.card.input, TextInput):
            raise TypeError(f"{self.card.model} reads no texts")
        return self.card.input

    @property
    def files(self) -> Mapping[str, bytes]:
        """The tokenizer's files."""
        return self._files

    def batch_size(self, requested: int | Literal["auto"], precision: Precision) -> int:
        """The most rows of a batch. Its tokens are limited too: `auto` is this limit."""
        return self.tokenizer.budget if requested == "auto" else requested

    def batches(
        self, rows: pa.Table, size: int, shift: Shift | None, threads: int
    ) -> Iterator[Batch]:
        """Batches of like length, the longest first; counts: the rows that lost their end."""
        _refuse_shift(shift)
        tokens = self.tokenizer.rows(rows)
        for piece in tokens.pieces(size):
            cut = int(tokens.truncated[piece.numpy()].sum())
            yield Batch(piece.numpy(), tokens.take(piece), {TRUNCATED: cut})

    def prepared(
        self,
        pieces: Iterable[tuple[Rows, pa.Table]],
        count: int,
        shift: Shift | None,
        threads: int,
        where: str,
    ) -> TokenRows:
        """The rows' tokens."""
        _refuse_shift(shift)
        positions, found = [], []
        for rows, table in pieces:
            positions.append(rows)
            found.append(self.tokenizer.rows(table))
        order = np.argsort(np.concatenate(positions))
        sides = [Sequences.joined(side) for side in zip(*(one.sides for one in found), strict=True)]
        return TokenRows(
            tuple(side.ordered(order) for side in sides),
            np.concatenate([one.truncated for one in found])[order],
            self.tokenizer.pad,
            self.tokenizer.budget,
        )

    def views(
        self, inputs: Tokens, keys: pa.Array, views: Views, numbers: Sequence[int], scope: str
    ) -> Tokens:
        """Views with masked tokens."""
        if not numbers:
            return inputs
        mask = self.tokenizer.mask
        if not views.mask:
            raise StageError(
                "views of a text replace some of its tokens, but features.views.mask is 0; set it "
                "to 0.15, say, or features.views.count to 0"
            )
        if mask is None:
            raise StageError(
                f"features.views.mask is {views.mask:g}, but the tokenizer of "
                f"{self.card.model!r} has no mask token; set features.views.count to 0, or leave "
                f"this encoder out"
            )
        special = self.tokenizer.special
        return Tokens.joined(
            [
                masked(inputs, keys, views, number, scope, mask=mask, special=special)
                for number in numbers
            ]
        )

    def forward(self, inputs: Tokens, precision: Precision = "float32") -> Tensor:
        """See `Encoder.forward`; `Tokens` of N rows."""
        batch, text = inputs.to(self.device), self.input
        with self.arithmetic(precision):
            found = [
                transformers.vectors(self.model, ids, mask, types, text)
                for ids, mask, types in batch.sides()
            ]
        if text.normalise:
            found = [unit_length(one) for one in found]
        return joined(*found) if text.pair == "concat4" else found[0]


def _refuse_shift(shift: Shift | None) -> None:
    if shift is not None:
        raise StageError(
            f"a shift ({shift.kind}) changes images, and this encoder reads texts; leave out the "
            f"task's shift, or give the task another encoder"
        )

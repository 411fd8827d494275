"""The encoder that every later stage uses, whatever it reads.

An `Encoder` says which columns of a shard hold a row's content, makes batches of rows ready for its
model, makes their views, and gives features. `jobs/encoders/image.py` and `jobs/encoders/text.py`
are its two kinds; nothing outside the encoders knows which of them runs.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from jobs.encoders.card import EncoderCard
from jobs.images.spec import Shift, Views

Precision = Literal["float32", "bfloat16", "float16"]

Inputs: TypeAlias = Any
"""A batch ready for the model, `len` of it its rows: pixels (a tensor), or `jobs.text.tokens`."""

Rows = npt.NDArray[np.int64]
"""Positions of rows, [M]."""


@dataclass(frozen=True)
class Batch:
    """Some rows of a table, ready for the model."""

    rows: Rows  # their positions in the table
    inputs: Inputs
    counts: Mapping[str, int] = field(default_factory=dict)  # what befell them -> rows

    def pieces(self, most: int) -> Iterator[Batch]:
        """The batch itself, or, if it has more than `most` rows, its images in smaller ones."""
        if len(self.rows) <= most:
            yield self
            return
        for start in range(0, len(self.rows), most):
            stop = start + most
            yield Batch(self.rows[start:stop], self.inputs[start:stop])


class Prepared(Protocol):
    """The inputs of N rows, kept in memory."""

    def __len__(self) -> int: ...

    def take(self, rows: Tensor) -> Inputs:
        """Some rows (int64 [M]) as a batch."""

    def pieces(self, most: int) -> list[Tensor]:
        """All rows in batches of at most `most` rows, in an order that is fast: int64 [M]."""

    def digests(self) -> list[bytes]:
        """16 bytes for each row, which differ where its input differs."""


class Encoder(ABC):
    """An encoder on one device, frozen unless its `model` is trained."""

    columns: ClassVar[tuple[str, ...]]
    """The columns of a shard that hold a row's content."""

    def __init__(self, card: EncoderCard, model: nn.Module, device: torch.device) -> None:
        self.card = card
        self.device = device
        self.model = model.eval().requires_grad_(False).to(device)

    @property
    def dim(self) -> int:
        """Dimensions of its features."""
        return self.card.feature_dim

    @property
    def files(self) -> Mapping[str, bytes]:
        """The files of its folder beside card and weights, by name."""
        return {}

    def copied(self) -> Self:
        """The same encoder with a copy of its model."""
        found = copy.copy(self)
        found.model = copy.deepcopy(self.model)
        return found

    @abstractmethod
    def batch_size(self, requested: int | Literal["auto"], precision: Precision) -> int:
        """The most rows of a batch: as requested, or what fits model and device."""

    @abstractmethod
    def batches(
        self, rows: pa.Table, size: int, shift: Shift | None, threads: int
    ) -> Iterator[Batch]:
        """All rows of a table (key and `columns`) in batches of at most `size` rows.

        Raises StageError for a row that cannot be read.
        """

    @abstractmethod
    def prepared(
        self,
        pieces: Iterable[tuple[Rows, pa.Table]],
        count: int,
        shift: Shift | None,
        threads: int,
        where: str,
    ) -> Prepared:
        """`count` rows, given in pieces (positions, key and `columns`), kept in memory.

        Raises StageError for a row that cannot be read, and, beginning with `where`, for rows that
        do not fit in memory.
        """

    @abstractmethod
    def views(
        self, inputs: Inputs, keys: pa.Array, views: Views, numbers: Sequence[int], scope: str
    ) -> Inputs:
        """The views with these numbers (from 1) of a batch, one after another; none: the plain one.

        `keys` [M] are the rows', `scope` the corpus's name: both fix what is drawn.
        """

    def targets(self, inputs: Inputs) -> npt.NDArray[np.int32] | None:
        """What is to be learned of each row of a batch, [M, T]; None: the label of its row."""
        return None

    @abstractmethod
    def forward(self, inputs: Inputs, precision: Precision = "float32") -> Tensor:
        """As `features`, but on the encoder's device, with gradients where they are enabled.

        With bfloat16 or float16, autocast runs the layers that torch considers safe in it.
        """

    def features(self, inputs: Inputs, precision: Precision = "float32") -> Tensor:
        """Features of a batch, float32 [N, D] on the CPU."""
        with torch.inference_mode():
            return self.forward(inputs, precision).cpu()

    @contextmanager
    def arithmetic(self, precision: Precision) -> Iterator[None]:
        """The context in which the model computes."""
        if precision == "float32":
            yield
            return
        with torch.autocast(self.device.type, dtype=getattr(torch, precision)):
            yield

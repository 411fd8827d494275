"""The rows of a corpus's part, their targets, and the loop's batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import pyarrow as pa
import torch
from torch import Tensor

from jobs.contract import StageError
from jobs.corpus.shards import INDEX, File, Index, build_again
from jobs.images.augment import Hashes
from jobs.images.pixels import to_device
from jobs.pretrain.distributed import DistributedGroup
from jobs.storage.folder import Folder

Field = Literal["label", "caption"]


class Images(Protocol):
    """Images by row, uint8 [N, *input.shape]: a tensor, or an object that decodes on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Some rows, uint8 [n, *input.shape]."""


@dataclass(frozen=True)
class Part:
    """Rows of one part of a corpus, N of them, in the order of its shard files."""

    corpus: str
    classes: tuple[str, ...]  # in label order; empty for a corpus without labels
    keys: pa.Array  # string [N]
    images: Images  # N of them
    labels: pa.Array  # int32 [N], clean; may hold nulls
    captions: pa.Array  # string [N], clean; may hold nulls
    files: tuple[File, ...]  # the shards of the part
    # Names of the images that could not be decoded and are grey; those met so far, if on access.
    damaged: set[str] = field(default_factory=set)

    @property
    def rows(self) -> int:
        """N."""
        return len(self.images)


@dataclass(frozen=True)
class Targets:
    """Each row's training target: class numbers [N] or rows of tokens [N, L]."""

    noisy: Tensor  # as trained on
    clean: Tensor
    flipped: Tensor  # bool [N]: the noise changed the row
    soft: Tensor | None = None  # float [N, classes]: `noisy` after mixing


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch, n rows, for runs that differ in noise alone."""

    images: Tensor  # uint8 [n, *input.shape]
    hashes: Hashes  # [n], of seed, epoch and key; augmentation draws from them
    targets: tuple[Targets, ...]  # one for each run
    ends_segment: bool  # the global batch reaches the end of a segment


class Source(Protocol):
    """Where the batches of runs that train together come from: one stream for all of them."""

    batch_size: int
    """Rows of a global batch, over all workers."""

    rows: int
    """Rows of the whole part."""

    steps_per_epoch: int
    """Whole global batches in an epoch; other epochs take the rows left over."""

    flipped: tuple[int, ...]
    """Rows of the whole part that each run's noise changed."""

    damaged: set[str]
    """Names of the images that this worker could not decode so far, and that are grey."""

    def order_sha256(self) -> str:
        """A hash that is equal for runs with the same order and augmentation (`Order.sha256`)."""

    def batches(self, epoch: int, first: int, group: DistributedGroup) -> Iterator[Batch]:
        """This worker's rows of the epoch's batches from number `first` on."""

    def flipped_rows(self, run: int) -> tuple[Part, Targets]:
        """A run's flipped rows, not augmented; of more than MOST_MEMORISED, a seeded sample."""


Encode = Callable[[Part, pa.Array], Tensor]
"""Turns labels or captions of a part into a tensor with one row each."""


def read_index(corpus: Folder) -> Index:
    """The index of a corpus's folder; StageError when the folder has no corpus."""
    try:
        return Index.read(corpus)
    except FileNotFoundError:
        raise StageError(f"{corpus.uri} holds no {INDEX}; {build_again(corpus)}") from None


def select_targets(targets: Targets, rows: Tensor, device: torch.device) -> Targets:
    """The targets of some rows, on a device."""
    return Targets(
        to_device(targets.noisy[rows], device),
        to_device(targets.clean[rows], device),
        to_device(targets.flipped[rows], device),
    )

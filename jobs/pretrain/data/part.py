"""The rows of a corpus's part, their targets, and the batches that the loop takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import pyarrow as pa
import torch
from torch import Tensor

from jobs.contract import StageError
from jobs.corpus.shards import INDEX, File, Index
from jobs.images.augment import Hashes
from jobs.pretrain.distributed import Group
from jobs.storage.folder import Folder

Field = Literal["label", "caption"]


class Images(Protocol):
    """Images as they are kept, by row: uint8 [N, *input.shape], or what decodes them when asked."""

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
    files: tuple[File, ...]  # that it was read from

    @property
    def rows(self) -> int:
        """N."""
        return len(self.images)


@dataclass(frozen=True)
class Targets:
    """What each row is trained to answer: class numbers [N] or token rows [N, L]."""

    noisy: Tensor  # as trained on
    clean: Tensor
    flipped: Tensor  # bool [N]: the noise changed the row
    soft: Tensor | None = None  # float [N, classes]: what mixing made of `noisy`


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch, n rows."""

    images: Tensor  # uint8 [n, *input.shape]
    hashes: Hashes  # [n], of seed, epoch and key: what augmentation draws from
    targets: Targets
    ends_segment: bool  # the global batch gets to the end of a segment


class Source(Protocol):
    """Where the loop's batches come from."""

    batch_size: int
    """Rows of a global batch, over all workers."""

    rows: int
    """Rows of the whole part."""

    steps_per_epoch: int
    """Whole global batches in an epoch; the rows left over wait for an epoch that takes them."""

    flipped: int
    """Rows of the whole part that the noise changed."""

    def order_sha256(self) -> str:
        """What proves that two runs saw their rows alike (`Order.sha256`)."""

    def batches(self, epoch: int, first: int, group: Group) -> Iterator[Batch]:
        """The epoch's batches from number `first` on, this worker's rows of each."""

    def flipped_rows(self) -> tuple[Part, Targets]:
        """The flipped rows, un-augmented; a seeded sample where more than MOST_MEMORISED are."""


Encode = Callable[[Part, pa.Array], Tensor]
"""Labels or captions of a part as a tensor of one row each."""


def read_index(corpus: Folder) -> Index:
    """What a corpus's folder holds; StageError when it holds no corpus."""
    try:
        return Index.read(corpus)
    except FileNotFoundError:
        raise StageError(f"{corpus.uri} holds no {INDEX}; build the corpus again") from None


def picked_targets(targets: Targets, rows: Tensor, device: torch.device) -> Targets:
    """The targets of some rows, on a device."""
    return Targets(
        targets.noisy[rows].to(device),
        targets.clean[rows].to(device),
        targets.flipped[rows].to(device),
    )

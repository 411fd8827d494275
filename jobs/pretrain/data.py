"""Training data: a corpus's part with one level of noise over it, in a seeded order of segments.

Takes a corpus's folder and a noise step's folder (see `jobs.corpus.shards` and
`jobs.noise.overlay`); gives batches. An epoch is a seeded order of segments (one shard file each)
and a seeded shuffle inside each: a pure function of the seed, the epoch and the keys, so it is the
same at every noise level and for every number of workers, and can be entered at any step. A part
that fits is read and decoded once (`MemorySource`); a streamed source needs only to be another
`Source`. Nothing here changes what lies in storage.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from jobs.contract import StageError
from jobs.corpus.keyed import hash64
from jobs.corpus.shards import INDEX, File, Index
from jobs.noise.overlay import Changes, Overlay, apply
from jobs.place import Place
from jobs.pretrain.augment import Hashes, mix
from jobs.pretrain.group import Group
from jobs.pretrain.pixels import to_pixels
from jobs.pretrain.spec import ImageInput

Rows = npt.NDArray[np.int64]
Field = Literal["label", "caption"]

_MEMORY_SHARE = 0.7  # of the free memory that decoded pixels may take


@dataclass(frozen=True)
class Part:
    """One part of a corpus, decoded: N rows in the order of its shard files."""

    corpus: str
    classes: tuple[str, ...]  # in label order; empty for a corpus without labels
    keys: pa.Array  # string [N]
    images: Tensor  # uint8 [N, C, S, S]
    labels: pa.Array  # int32 [N], clean; may hold nulls
    captions: pa.Array  # string [N], clean; may hold nulls
    segments: Rows  # [N], the number of each row's segment
    files: tuple[File, ...]  # one for each segment

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

    images: Tensor  # uint8 [n, C, S, S]
    hashes: Hashes  # [n], of seed, epoch and key: what augmentation draws from
    targets: Targets
    ends_segment: bool  # the global batch holds the last row of a segment


class Source(Protocol):
    """Where the loop's batches come from."""

    batch_size: int
    """Rows of a global batch, over all workers."""

    rows: int
    """Rows of the whole part."""

    steps_per_epoch: int
    """Whole global batches in an epoch; the rows left over wait for an epoch that takes them."""

    def batches(self, epoch: int, first: int, group: Group) -> Iterator[Batch]:
        """The epoch's batches from number `first` on, this worker's rows of each."""


def load_part(corpus: Place, part: str, image: ImageInput) -> Part:
    """Read and decode a part whole; the last ones read are kept by the process.

    Every shard is checked against the index. Raises StageError when the folder holds no corpus,
    a shard is missing, altered or holds an image that cannot be decoded, or memory is short.
    """
    try:
        index = Index.read(corpus)
    except FileNotFoundError:
        raise StageError(f"{corpus.uri} holds no {INDEX}; build the corpus again") from None
    return _decoded(corpus, index.name, index.classes, index.parts[part], image)


@lru_cache(maxsize=2)  # a training and a validation part, shared by the runs of a pack
def _decoded(
    corpus: Place,
    name: str,
    classes: tuple[str, ...],
    files: tuple[File, ...],
    image: ImageInput,
) -> Part:
    rows = sum(file.rows for file in files)
    shape = (rows, image.channels, image.size, image.size)
    _refuse_too_large(name, shape)
    images = torch.empty(shape, dtype=torch.uint8)
    tables, start = [], 0
    for file in files:
        table = _read_shard(corpus, file)
        for key, data in zip(table["key"].to_pylist(), table["image"].to_pylist(), strict=True):
            images[start] = _decode(file.file, key, data, image)
            start += 1
        tables.append(table.select(["key", "label", "caption"]))
    whole = pa.concat_tables(tables)
    return Part(
        corpus=name,
        classes=classes,
        keys=whole["key"].combine_chunks(),
        images=images,
        labels=whole["label"].combine_chunks(),
        captions=whole["caption"].combine_chunks(),
        segments=np.repeat(np.arange(len(files)), [file.rows for file in files]),
        files=files,
    )


def _refuse_too_large(name: str, shape: tuple[int, ...]) -> None:
    needed, free = int(np.prod(shape)), psutil.virtual_memory().available
    if needed > _MEMORY_SHARE * free:
        raise StageError(
            f"corpus {name}: {shape[0]:,} images of {shape[2]} x {shape[3]} take {needed / 1e9:.1f}"
            f" GB decoded and {free / 1e9:.1f} GB of memory are free; use a smaller `image.size` "
            f"or a machine with more memory"
        )


def _read_shard(corpus: Place, file: File) -> pa.Table:
    try:
        data = corpus.read_bytes(file.file)
    except FileNotFoundError:
        raise StageError(
            f"shard {file.file} of {corpus.uri} is missing; build the corpus again"
        ) from None
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise StageError(
            f"shard {file.file} of {corpus.uri} is not the one that {INDEX} lists (other sha256); "
            f"build the corpus again"
        )
    return pq.read_table(pa.BufferReader(data))


def _decode(file: str, key: str, data: bytes, image: ImageInput) -> Tensor:
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return to_pixels(opened, image)
    except (UnidentifiedImageError, OSError) as error:
        raise StageError(
            f"shard {file}: image {key!r} cannot be decoded ({error}); remove it from the source "
            f"and build the corpus again"
        ) from error


def noisy_targets(
    part: Part, noise: Place, field: Field, encode: Callable[[Part, pa.Array], Tensor]
) -> Targets:
    """The training part's targets under a noise step's overlay.

    `encode` turns labels or captions into a tensor of one row each. Raises StageError when the
    overlay changes another field than the one trained on, or belongs to another corpus.
    """
    overlay = Overlay.read(noise)
    if overlay.field != field:
        raise StageError(
            f"noise {overlay.kind!r} changes {overlay.field}s and this recipe trains on {field}s: "
            f"it would see no noise; use a kind of noise for {field}s"
        )
    values = part.labels if field == "label" else part.captions
    noisy, changed = apply(Changes(noise).rows(0, part.rows), part.keys, values)
    if int(changed.sum()) != overlay.changed:
        raise StageError(
            f"the overlay changes {overlay.changed} rows of corpus {overlay.corpus} and only "
            f"{int(changed.sum())} of them are here; lay the noise over this corpus again"
        )
    return Targets(encode(part, noisy), encode(part, values), torch.from_numpy(changed.copy()))


class MemorySource:
    """A decoded part and its targets, in the order of `seed`."""

    def __init__(self, part: Part, targets: Targets, *, seed: int, batch_size: int) -> None:
        """Raises StageError when the part does not fill one batch."""
        if part.rows < batch_size:
            raise StageError(
                f"corpus {part.corpus}: {part.rows} training rows do not fill a batch of "
                f"{batch_size}; lower `schedule.batch_size`"
            )
        self.batch_size, self.rows = batch_size, part.rows
        self.steps_per_epoch = part.rows // batch_size
        self._part, self._targets = part, targets
        scope = part.corpus
        self._order = hash64(part.keys, seed=seed, scope=scope, stream="pretrain/order")
        self._augment = hash64(part.keys, seed=seed, scope=scope, stream="pretrain/augment")
        self._segment = hash64(
            [file.file for file in part.files], seed=seed, scope=scope, stream="pretrain/segments"
        )

    def order(self, epoch: int) -> Rows:
        """Row numbers in the order that an epoch takes them, [N]: segment by segment."""
        place = np.empty(len(self._segment), np.int64)
        place[np.argsort(mix(self._segment, epoch), kind="stable")] = np.arange(len(place))
        return np.lexsort((mix(self._order, epoch), place[self._part.segments]))

    def order_sha256(self) -> str:
        """What proves that two runs saw their rows alike: order, augmentation and batches.

        Every epoch follows from the keys' hashes, the segments and the batch size, so these are
        what is hashed.
        """
        digest = hashlib.sha256(f"{self.batch_size} {self.rows}".encode())
        for values in (self._order, self._augment, self._segment, self._part.segments):
            digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def batches(self, epoch: int, first: int, group: Group) -> Iterator[Batch]:
        """The epoch's batches from number `first` on: worker r takes the r-th piece of each."""
        order = self.order(epoch)
        segments = self._part.segments[order]
        ends = np.append(segments[1:] != segments[:-1], True)
        hashes = mix(self._augment, epoch)
        share = self.batch_size // group.world
        for step in range(first, self.steps_per_epoch):
            start = step * self.batch_size
            rows = order[start + group.rank * share : start + (group.rank + 1) * share]
            picked = torch.from_numpy(rows)
            yield Batch(
                images=self._part.images[picked].to(group.device),
                hashes=hashes[rows],
                targets=Targets(
                    self._targets.noisy[picked].to(group.device),
                    self._targets.clean[picked].to(group.device),
                    self._targets.flipped[picked].to(group.device),
                ),
                ends_segment=bool(ends[start : start + self.batch_size].any()),
            )

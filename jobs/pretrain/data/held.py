"""Training data: a corpus's part with one level of noise over it, in a seeded order.

Takes a corpus's folder and a noise step's folder (see `jobs.corpus.shards` and
`jobs.noise.overlay`); gives batches, in the order that `order.py` states: the same at every noise
level and for every number of workers. Training may enter the order at any step. A part that fits in
memory is read and decoded once (`MemorySource`, here); another is read as it is needed
(`streamed.py`). The batches are the same either way. Nothing here changes what lies in storage.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import lru_cache

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs.contract import StageError
from jobs.corpus.shards import INDEX, File
from jobs.images.augment import mix
from jobs.images.pixels import prepared
from jobs.images.spec import ImageInput
from jobs.pretrain.data.order import Order, Rows
from jobs.pretrain.data.part import Batch, Part, Targets, picked_targets, read_index
from jobs.pretrain.distributed import Group
from jobs.storage.folder import Folder

MOST_MEMORISED = 10_000
"""Flipped rows that memorisation is measured on: when more are flipped, a seeded sample of them."""

_MEMORY_SHARE = 0.7  # of the free memory that decoded images may take


def fits(
    rows: int, model_input: ImageInput, decoded_gb: float | None = None, *, sharing: int = 1
) -> bool:
    """Whether that many decoded images may be held; by default in what memory is free, of which
    as many worker processes as `sharing` hold that much each.
    """
    needed = rows * math.prod(model_input.shape)
    if decoded_gb is not None:
        return needed <= decoded_gb * 1e9
    return needed <= _MEMORY_SHARE * psutil.virtual_memory().available / sharing


@lru_cache(maxsize=8)
def held(
    corpus: Folder, part: str, model_input: ImageInput, decoded_gb: float | None, sharing: int
) -> bool:
    """Whether a part `fits`, asked once in a process: what one run holds, the next finds held."""
    return fits(read_index(corpus).rows(part), model_input, decoded_gb, sharing=sharing)


def load_part(corpus: Folder, part: str, model_input: ImageInput) -> Part:
    """Read and decode a part whole; the last ones read are kept by the process.

    Every shard is checked against the index. Raises StageError when the folder holds no corpus,
    or a shard is missing, altered or holds an image that cannot be decoded.
    """
    index = read_index(corpus)
    return _decoded(corpus, index.name, index.classes, index.parts[part], model_input)


@lru_cache(maxsize=2)  # a training and a validation part, shared by the runs of a pack
def _decoded(
    corpus: Folder,
    name: str,
    classes: tuple[str, ...],
    files: tuple[File, ...],
    model_input: ImageInput,
) -> Part:
    rows = sum(file.rows for file in files)
    images = torch.empty((rows, *model_input.shape), dtype=torch.uint8)
    tables, start = [], 0
    for file in files:
        table = _read_shard(corpus, file)
        for key, data in zip(table["key"].to_pylist(), table["image"].to_pylist(), strict=True):
            images[start] = prepared(data, f"shard {file.file}: image {key!r}", model_input)
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
        files=files,
    )


def _read_shard(corpus: Folder, file: File) -> pa.Table:
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


class MemorySource:
    """A decoded part and its targets, in the order of `seed`."""

    def __init__(
        self, part: Part, targets: Targets, *, seed: int, batch_size: int, repeats: int = 1
    ) -> None:
        """Raises StageError when the part does not fill one batch."""
        self._order = Order(
            part.corpus, part.files, seed=seed, batch_size=batch_size, repeats=repeats
        )
        self.batch_size, self.rows = batch_size, part.rows
        self.steps_per_epoch = self._order.steps
        self.flipped = int(targets.flipped.sum())
        self._part, self._targets = part, targets
        self._keys = self._order.of_keys(part.keys)
        self._augment = self._order.augmentation(part.keys)

    def order(self, epoch: int) -> Rows:
        """Row numbers in the order that an epoch takes them, [steps * batch]."""
        return self._order.whole(epoch, self._keys)[0]

    def order_sha256(self) -> str:
        """What proves that two runs saw their rows alike (`Order.sha256`)."""
        return self._order.sha256()

    def batches(self, epoch: int, first: int, group: Group) -> Iterator[Batch]:
        """The epoch's batches from number `first` on: worker r takes the r-th piece of each."""
        (order, copies), ends = self._order.whole(epoch, self._keys), self._order.ends(epoch)
        hashes = mix(self._augment, self._order.turn(epoch))
        share = self.batch_size // group.world
        for step in range(first, self.steps_per_epoch):
            start = step * self.batch_size
            mine = slice(start + group.rank * share, start + (group.rank + 1) * share)
            rows = order[mine]
            picked = torch.from_numpy(rows)
            yield Batch(
                images=self._part.images[picked].to(group.device),
                hashes=self._order.of_copies(hashes[rows], copies[mine]),
                targets=picked_targets(self._targets, picked, group.device),
                ends_segment=bool(ends[step]),
            )

    def flipped_rows(self) -> tuple[Part, Targets]:
        """The flipped rows, un-augmented; a seeded sample where more than MOST_MEMORISED are."""
        flipped = torch.nonzero(self._targets.flipped).flatten()
        rows = torch.from_numpy(self._order.sample(flipped.numpy(), MOST_MEMORISED))
        taken, part = pa.array(rows.numpy()), self._part
        sample = Part(
            corpus=part.corpus,
            classes=part.classes,
            keys=part.keys.take(taken),
            images=part.images[rows],
            labels=part.labels.take(taken),
            captions=part.captions.take(taken),
            files=part.files,
        )
        return sample, picked_targets(self._targets, rows, torch.device("cpu"))

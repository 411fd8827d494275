"""Training data in memory: a part that is read and decoded once.

Takes a corpus's folder (`jobs.corpus.shards`) and the targets under a noise step (`noisy.py`);
gives batches in the order of `order.py`, the same at every noise level and for every number of
workers, starting at any step. `fits_in_memory` decides whether a part is loaded; `streamed.py`
reads larger ones while training, in the same batches. Never writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache, partial

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs.contract import StageError
from jobs.corpus.shards import INDEX, File, build_again
from jobs.images.augment import mix
from jobs.images.pixels import or_grey, prepared, to_device
from jobs.images.spec import ImageInput
from jobs.pretrain.data.order import Order, Rows
from jobs.pretrain.data.part import Batch, Part, Targets, read_index, select_targets
from jobs.pretrain.distributed import DistributedGroup
from jobs.storage.folder import AlteredError, Folder

MOST_MEMORISED = 10_000
"""Most flipped rows that memorisation is measured on; of more, a seeded sample."""

_MEMORY_SHARE = 0.7  # of the free memory that decoded images may take


def fits_in_memory(
    rows: int, model_input: ImageInput, decoded_gb: float | None = None, *, sharing: int = 1
) -> bool:
    """Whether the decoded images of `rows` rows fit in memory.

    The limit is `decoded_gb` or, by default, 70 % of the free memory divided by `sharing`, the
    number of worker processes on the node.
    """
    needed = rows * math.prod(model_input.shape)
    if decoded_gb is not None:
        return needed <= decoded_gb * 1e9
    return needed <= _MEMORY_SHARE * psutil.virtual_memory().available / sharing


@lru_cache(maxsize=8)
def part_fits_in_memory(
    corpus: Folder, part: str, model_input: ImageInput, decoded_gb: float | None, sharing: int
) -> bool:
    """Whether a part fits in memory. Cached: later runs reuse a loaded part."""
    return fits_in_memory(read_index(corpus).rows(part), model_input, decoded_gb, sharing=sharing)


def load_part(corpus: Folder, part: str, model_input: ImageInput) -> Part:
    """Read and decode a whole part. The process caches the last two.

    Checks every shard against the index. Raises StageError when the folder has no corpus, or a
    shard is missing or altered. An image that cannot be decoded is grey, and one of `Part.damaged`.
    """
    index = read_index(corpus)
    return _decode_files(corpus, index.name, index.classes, index.parts[part], model_input)


@lru_cache(maxsize=2)  # a training and a validation part, which the runs of a pack share
def _decode_files(
    corpus: Folder,
    name: str,
    classes: tuple[str, ...],
    files: tuple[File, ...],
    model_input: ImageInput,
) -> Part:
    rows = sum(file.rows for file in files)
    images = torch.empty((rows, *model_input.shape), dtype=torch.uint8)
    tables, start, damaged = [], 0, set[str]()
    for file in files:
        table = _read_shard(corpus, file)
        for key, data in zip(table["key"].to_pylist(), table["image"].to_pylist(), strict=True):
            where = f"shard {file.file}: image {key!r}"
            make = partial(prepared, data, where, model_input)
            images[start] = or_grey(make, model_input, damaged)
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
        damaged=damaged,
    )


def _read_shard(corpus: Folder, file: File) -> pa.Table:
    try:
        data = corpus.read_expected(file.file, file.sha256)
    except FileNotFoundError:
        raise StageError(
            f"shard {file.file} of {corpus.uri} is missing; {build_again(corpus)}"
        ) from None
    except AlteredError:
        raise StageError(
            f"shard {file.file} of {corpus.uri} is not the one that {INDEX} lists (other sha256); "
            f"{build_again(corpus)}"
        ) from None
    return pq.read_table(pa.BufferReader(data))


class MemorySource:
    """A decoded part and each run's targets, in the order of `seed`."""

    def __init__(
        self, part: Part, *targets: Targets, seed: int, batch_size: int, repeats: int = 1
    ) -> None:
        """Raises StageError when the part does not fill one batch."""
        self._order = Order(
            part.corpus, part.files, seed=seed, batch_size=batch_size, repeats=repeats
        )
        self.batch_size, self.rows = batch_size, part.rows
        self.steps_per_epoch = self._order.steps
        self.flipped = tuple(int(each.flipped.sum()) for each in targets)
        self.damaged = part.damaged
        self._part, self._targets = part, targets
        self._keys = self._order.key_hashes(part.keys)
        self._augment = self._order.augmentation_hashes(part.keys)

    def order(self, epoch: int) -> Rows:
        """Row numbers in an epoch's order, [steps * batch]."""
        return self._order.epoch_rows(epoch, self._keys)[0]

    def order_sha256(self) -> str:
        """A hash that is equal for runs with the same order and augmentation (`Order.sha256`)."""
        return self._order.sha256()

    def batches(self, epoch: int, first: int, group: DistributedGroup) -> Iterator[Batch]:
        """The epoch's batches from number `first` on: worker r takes the r-th piece of each."""
        (order, copies), ends = (
            self._order.epoch_rows(epoch, self._keys),
            self._order.segment_ends(epoch),
        )
        hashes = mix(self._augment, self._order.turn(epoch))
        share = self.batch_size // group.world
        for step in range(first, self.steps_per_epoch):
            start = step * self.batch_size
            mine = slice(start + group.rank * share, start + (group.rank + 1) * share)
            rows = order[mine]
            picked = torch.from_numpy(rows)
            yield Batch(
                images=to_device(self._part.images[picked], group.device),
                hashes=self._order.copy_hashes(hashes[rows], copies[mine]),
                targets=tuple(select_targets(each, picked, group.device) for each in self._targets),
                ends_segment=bool(ends[step]),
            )

    def flipped_rows(self, run: int = 0) -> tuple[Part, Targets]:
        """A run's flipped rows, not augmented; of more than MOST_MEMORISED, a seeded sample."""
        targets = self._targets[run]
        flipped = torch.nonzero(targets.flipped).flatten()
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
        return sample, select_targets(targets, rows, torch.device("cpu"))

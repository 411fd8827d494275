"""The order and the content of training batches."""

import io
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jobs.contract import StageError
from jobs.images.pixels import prepared
from jobs.images.spec import ImageInput
from jobs.pretrain.data.in_memory import MemorySource, load_part
from jobs.pretrain.data.noisy import noisy_targets
from jobs.pretrain.data.part import Batch, Part
from jobs.pretrain.distributed import DistributedGroup
from jobs.pretrain.objectives.supervised import SupervisedObjective

IMAGE = ImageInput(size=16, channels=1, mean=(0.5,), std=(0.5,))


def encode(part: Part, values: pa.Array) -> torch.Tensor:
    return torch.from_numpy(values.to_numpy().astype("int64"))


@pytest.fixture(scope="module")
def source(toy: Any) -> Callable[..., MemorySource]:
    def make(seed: int = 0, level: int = 30, batch_size: int = 16) -> MemorySource:
        part = load_part(toy.corpus, "train", IMAGE)
        targets = noisy_targets(part, toy.noise("label", level), "label", encode)
        return MemorySource(part, targets, seed=seed, batch_size=batch_size)

    return make


@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 200))
def test_an_epoch_takes_each_row_once_except_those_that_fill_no_batch(
    source: Callable[..., MemorySource], seed: int, epoch: int
) -> None:
    order = source(seed).order(epoch).tolist()
    assert len(set(order)) == len(order) == 96
    assert set(order) <= set(range(100))


def test_every_epoch_and_seed_has_its_own_order(source: Callable[..., MemorySource]) -> None:
    orders = [source(seed).order(epoch).tolist() for seed in (0, 1) for epoch in (0, 1, 2)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    left_out = {row for epoch in range(40) for row in range(100)} - {
        row for epoch in range(40) for row in source(0).order(epoch).tolist()
    }
    assert not left_out, "every row is taken in some epoch"


def test_the_noise_level_affects_neither_order_nor_augmentation(
    source: Callable[..., MemorySource],
) -> None:
    clean, noisy = source(level=0), source(level=30)
    assert clean.order_sha256() == noisy.order_sha256() != source(seed=1).order_sha256()
    for a, b in zip(
        clean.batches(3, 0, DistributedGroup()),
        noisy.batches(3, 0, DistributedGroup()),
        strict=True,
    ):
        assert torch.equal(a.images, b.images)
        assert np.array_equal(a.hashes, b.hashes)
        assert torch.equal(a.targets[0].clean, b.targets[0].clean)


def concatenated(shares: list[Batch]) -> tuple[list[int], list[int]]:
    hashes = np.concatenate([share.hashes for share in shares])
    return hashes.tolist(), torch.cat([share.targets[0].noisy for share in shares]).tolist()


@pytest.mark.parametrize("world", [2, 4])
def test_workers_share_the_same_global_batches(
    source: Callable[..., MemorySource], world: int
) -> None:
    one = [concatenated([batch]) for batch in source().batches(1, 0, DistributedGroup())]
    workers = [source().batches(1, 0, DistributedGroup(rank, world)) for rank in range(world)]
    assert [concatenated(list(shares)) for shares in zip(*workers, strict=True)] == one


def test_an_epoch_can_start_at_any_step(source: Callable[..., MemorySource]) -> None:
    whole = [concatenated([batch]) for batch in source().batches(2, 0, DistributedGroup())]
    assert len(whole) == 6
    for first in range(7):
        assert [concatenated([b]) for b in source().batches(2, first, DistributedGroup())] == whole[
            first:
        ]


def test_flipped_rows_are_those_of_the_overlay_and_no_others(toy: Any) -> None:
    part = load_part(toy.corpus, "train", IMAGE)
    targets = noisy_targets(part, toy.noise("label", 30), "label", encode)
    changed = toy.noise("label", 30).read_table("changed.parquet")
    flipped = part.keys.filter(pa.array(targets.flipped.numpy()))
    assert sorted(flipped.to_pylist()) == sorted(changed["key"].to_pylist())
    assert len(changed) == 30
    assert torch.equal(targets.noisy != targets.clean, targets.flipped)


def test_noise_of_a_field_that_is_not_trained_on_is_refused(toy: Any) -> None:
    part = load_part(toy.corpus, "train", IMAGE)
    with pytest.raises(StageError, match="changes captions and this recipe trains on labels"):
        noisy_targets(part, toy.noise("caption", 10), "label", encode)


def test_an_overlay_of_other_rows_is_refused(own_toy: Any) -> None:
    part, folder = load_part(own_toy.corpus, "train", IMAGE), own_toy.noise("label", 30)
    changed = folder.read_table("changed.parquet")
    folder.write_table("changed.parquet", changed.slice(1))
    with pytest.raises(StageError, match="changes 30 rows of corpus toy and only 29 of them"):
        noisy_targets(part, folder, "label", encode)
    keys = pa.array(["toy/none", *changed["key"].to_pylist()[1:]])
    folder.write_table("changed.parquet", changed.set_column(1, "key", keys))
    with pytest.raises(StageError, match="does not belong to these rows: key 'toy/none'"):
        noisy_targets(part, folder, "label", encode)


def test_an_altered_or_missing_shard_is_named(own_toy: Any) -> None:
    shard = own_toy.corpus.local_path() / "train-00001.parquet"
    data = shard.read_bytes()
    shard.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(StageError, match=r"train-00001\.parquet .*other sha256"):
        load_part(own_toy.corpus, "train", ImageInput(size=20))
    shard.unlink()
    with pytest.raises(StageError, match=r"train-00001\.parquet .* is missing"):
        load_part(own_toy.corpus, "train", ImageInput(size=20))
    own_toy.corpus.delete("_index.json")
    with pytest.raises(StageError, match=r"holds no _index\.json"):
        load_part(own_toy.corpus, "train", ImageInput(size=20))


def test_a_batch_larger_than_the_part_is_refused(source: Callable[..., MemorySource]) -> None:
    with pytest.raises(StageError, match="100 training rows do not fill a batch of 101"):
        source(batch_size=101)


def test_a_row_without_a_label_is_refused_by_its_count(
    toy: Any, supervised: Callable[..., Any]
) -> None:
    part = load_part(toy.corpus, "train", IMAGE)
    objective = SupervisedObjective(supervised(), 3)
    with pytest.raises(StageError, match="2 of 4 training rows have no label"):
        objective.encode(part, pa.array([0, None, 3, 2], pa.int32()))


def test_any_decoder_error_names_shard_and_key() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300), np.uint8)).save(
        stream, "PNG"
    )
    data = bytearray(stream.getvalue())
    at = data.rindex(b"IDAT")  # the second of two
    data[at : at + 4] = b"\x00DAT"  # Pillow: SyntaxError
    with pytest.raises(StageError, match=r"shard s: image 'k' cannot be decoded"):
        prepared(bytes(data), "shard s: image 'k'", IMAGE)

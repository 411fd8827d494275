"""A streamed part equals the part in memory, byte for byte; errors of reading it are named."""

import gc
import io
import itertools
import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from commands import waiting
from jobs.contract import StageError, Work
from jobs.corpus.shards import File, Index
from jobs.encoders.encoder import EncoderCard
from jobs.images.spec import Augment, ImageInput
from jobs.pretrain.data import in_memory, order, streamed
from jobs.pretrain.data.decoding import Encoded, decode
from jobs.pretrain.data.in_memory import MemorySource, load_part
from jobs.pretrain.data.noisy import NoisyRows, noisy_targets
from jobs.pretrain.data.order import Order
from jobs.pretrain.data.part import Batch
from jobs.pretrain.data.reader import lazy_part
from jobs.pretrain.data.streamed import StreamedSource
from jobs.pretrain.distributed import DistributedGroup
from jobs.pretrain.loop import Pace, Watch
from jobs.pretrain.run import train_run
from tests.jobs.pretrain.interruption import interrupted, outputs

IMAGE = ImageInput(size=16, channels=1, mean=(0.5,), std=(0.5,))


def encode(part: Any, values: pa.Array) -> torch.Tensor:
    return torch.from_numpy(values.to_numpy(zero_copy_only=False).astype("int64"))


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several segments a shard, and as many lanes and windows as a real corpus has."""
    monkeypatch.setattr(order, "SEGMENT", 7)


def in_memory_source(
    toy: Any, level: int = 30, batch_size: int = 16, seed: int = 0, repeats: int = 1
) -> MemorySource:
    part = load_part(toy.corpus, "train", IMAGE)
    targets = noisy_targets(part, toy.noise("label", level), "label", encode)
    return MemorySource(part, targets, seed=seed, batch_size=batch_size, repeats=repeats)


def streamed_source(
    toy: Any, level: int = 30, batch_size: int = 16, seed: int = 0, **more: Any
) -> StreamedSource:
    return StreamedSource(
        toy.corpus,
        Index.read(toy.corpus),
        NoisyRows(toy.noise("label", level), 100, "label", encode),
        field="label",
        encode=encode,
        model_input=IMAGE,
        augment=Augment(),
        seed=seed,
        batch_size=batch_size,
        **{"processes": 0, **more},
    )


def same(a: Sequence[Batch], b: Sequence[Batch]) -> None:
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert torch.equal(left.images, right.images)
        assert np.array_equal(left.hashes, right.hashes)
        for name in ("noisy", "clean", "flipped"):
            (a_run,), (b_run,) = left.targets, right.targets
            assert torch.equal(getattr(a_run, name), getattr(b_run, name)), name
        assert left.ends_segment == right.ends_segment


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("batch_size", [5, 16, 48, 100])
def test_a_streamed_part_gives_the_batches_of_a_part_in_memory(
    toy: Any, batch_size: int, repeats: int
) -> None:
    a, b = (
        make(toy, batch_size=batch_size, repeats=repeats)
        for make in (in_memory_source, streamed_source)
    )
    assert a.order_sha256() == b.order_sha256()
    assert (a.rows, a.steps_per_epoch, a.flipped) == (b.rows, b.steps_per_epoch, b.flipped)
    for epoch in range(repeats + 1):
        same(
            list(a.batches(epoch, 0, DistributedGroup())),
            list(b.batches(epoch, 0, DistributedGroup())),
        )


@pytest.mark.parametrize("processes", [1, 2])
def test_the_number_of_decoding_processes_changes_nothing(toy: Any, processes: int) -> None:
    other = streamed_source(toy, processes=processes)
    same(
        list(streamed_source(toy).batches(1, 2, DistributedGroup())),
        list(other.batches(1, 2, DistributedGroup())),
    )


@pytest.mark.parametrize("processes", [0, 2])
def test_pixels_stay_as_they_are_until_the_next_batch_is_asked_for(processes: int) -> None:
    share, batches = 3, 8
    images = [np.full((16, 16), number, np.uint8) for number in range(share * batches)]
    chunks = (Encoded(["file"] * 2, ["a", "b"], [png(image)] * 2, [0] * 2) for image in images)
    decoded = decode(chunks, model_input=IMAGE, augment=Augment(), share=share, processes=processes)
    for batch in range(batches):
        pixels = [next(decoded)[0] for _ in range(share)]
        time.sleep(0.05)  # in which the processes go as far ahead as they may
        expected = [[batch * share + number] * 2 for number in range(share)]
        assert [piece.amax((1, 2, 3)).tolist() for piece in pixels] == expected


def png(pixels: np.ndarray) -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "png")
    return held.getvalue()


@pytest.mark.parametrize("taken", [1, 6])
def test_decoding_processes_end_without_an_error(toy: Any, taken: int) -> None:
    """Otherwise torch may raise it in the training loop, which has another epoch to train."""
    before = multiprocessing.active_children()
    batches = streamed_source(toy, processes=2).batches(0, 0, DistributedGroup())
    next(batches)
    processes = [each for each in multiprocessing.active_children() if each not in before]
    assert len(list(itertools.islice(batches, taken - 1))) == taken - 1
    del batches
    assert [process.exitcode for process in processes] == [0, 0]


def test_an_unfinished_epoch_leaves_no_process_and_no_thread(toy: Any) -> None:
    children, threads = multiprocessing.active_children(), threading.active_count()
    batches = streamed_source(toy, processes=2).batches(0, 0, DistributedGroup())
    next(batches)
    assert len(multiprocessing.active_children()) == len(children) + 2
    del batches
    assert multiprocessing.active_children() == children
    for _ in waiting("the end of the epoch's threads"):
        if threading.active_count() <= threads:
            break


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("world", [2, 4, 8])
def test_workers_of_a_streamed_part_share_the_batches_of_one(
    toy: Any, world: int, repeats: int
) -> None:
    source = streamed_source(toy, repeats=repeats)
    workers = [list(source.batches(1, 1, DistributedGroup(rank, world))) for rank in range(world)]
    whole_ones = in_memory_source(toy, repeats=repeats).batches(1, 1, DistributedGroup())
    for whole, *shares in zip(whole_ones, *workers, strict=True):
        assert torch.equal(torch.cat([share.images for share in shares]), whole.images)
        assert np.array_equal(np.concatenate([share.hashes for share in shares]), whole.hashes)
        noisy = torch.cat([share.targets[0].noisy for share in shares])
        assert torch.equal(noisy, whole.targets[0].noisy)


@pytest.mark.parametrize("repeats", [1, 4])
def test_a_streamed_epoch_can_start_at_any_step(toy: Any, repeats: int) -> None:
    whole = list(streamed_source(toy, repeats=repeats).batches(2, 0, DistributedGroup()))
    for first in range(7):
        same(
            list(streamed_source(toy, repeats=repeats).batches(2, first, DistributedGroup())),
            whole[first:],
        )


def test_repeats_are_adjacent_copies_with_different_draws(toy: Any) -> None:
    """Over `repeats` epochs each row comes `repeats` times, in one batch or two."""
    repeats, plain = 3, in_memory_source(toy, repeats=1)
    source = in_memory_source(toy, repeats=repeats)
    assert source.steps_per_epoch == plain.steps_per_epoch
    assert source.order_sha256() != plain.order_sha256()
    epochs = [source.order(epoch) for epoch in range(repeats)]
    assert len({len(epoch) for epoch in epochs}) == 1
    counts = np.bincount(np.concatenate(epochs))
    assert sorted(set(counts.tolist())) in ([repeats], [0, repeats])
    assert len(set(epochs[0].tolist())) < len(set(plain.order(0).tolist()))
    batches = [b for epoch in range(repeats) for b in source.batches(epoch, 0, DistributedGroup())]
    hashes = np.concatenate([batch.hashes for batch in batches])
    assert len(set(hashes.tolist())) == len(hashes)
    first = epochs[0][: source.batch_size]
    assert len(set(first.tolist())) <= source.batch_size // repeats + 2 * 16
    again = in_memory_source(toy, repeats=repeats).order(repeats)
    assert not np.array_equal(again, epochs[0]), "the next turn has another order"


def test_segments_end_at_the_last_copy_of_their_last_row(toy: Any) -> None:
    plain, source = in_memory_source(toy), in_memory_source(toy, repeats=2)
    ends = [b.ends_segment for e in range(2) for b in source.batches(e, 0, DistributedGroup())]
    whole = [b.ends_segment for b in plain.batches(0, 0, DistributedGroup())]
    assert sum(whole) <= sum(ends) <= sum(whole) + 2
    assert ends[-1]


def test_the_level_changes_labels_and_nothing_else(toy: Any) -> None:
    clean, noisy = streamed_source(toy, level=0), streamed_source(toy, level=30)
    assert clean.order_sha256() == noisy.order_sha256()
    assert clean.order_sha256() != streamed_source(toy, seed=1).order_sha256()
    for a, b in zip(
        clean.batches(0, 0, DistributedGroup()),
        noisy.batches(0, 0, DistributedGroup()),
        strict=True,
    ):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets[0].noisy, b.targets[0].clean)


@pytest.mark.parametrize("most", [1000, 11])
def test_the_flipped_rows_are_the_same_streamed_or_in_memory(
    toy: Any, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_memory, "MOST_MEMORISED", most)
    monkeypatch.setattr("jobs.pretrain.data.streamed.MOST_MEMORISED", most)
    (a, wanted), (b, found) = (
        in_memory_source(toy).flipped_rows(),
        streamed_source(toy).flipped_rows(),
    )
    assert len(b.images) == len(found.noisy) == min(30, most)
    assert a.keys.equals(b.keys)
    every = torch.arange(len(a.images))
    assert torch.equal(a.images[every], b.images[every])
    assert torch.equal(wanted.noisy, found.noisy)
    assert torch.equal(wanted.clean, found.clean)
    assert bool(found.flipped.all())


def test_a_part_without_noise_has_no_flipped_rows(toy: Any) -> None:
    part, targets = streamed_source(toy, level=0).flipped_rows()
    assert len(part.images) == len(targets.noisy) == 0


def test_a_lazy_part_equals_the_decoded_one(toy: Any) -> None:
    index = Index.read(toy.corpus)
    lazy = lazy_part(toy.corpus, index, "validation", IMAGE, threads=2)
    whole = load_part(toy.corpus, "validation", IMAGE)
    assert lazy.keys.equals(whole.keys)
    assert lazy.labels.equals(whole.labels)
    for rows in (torch.arange(30), torch.tensor([29, 3, 3, 17])):
        assert torch.equal(lazy.images[rows], whole.images[rows])


# -- the order ---------------------------------------------------------------------------------


def files_of(counts: list[int]) -> list[File]:
    return [File(f"train-{i:05d}.parquet", rows, 1, str(i)) for i, rows in enumerate(counts)]


@given(
    counts=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    batch_size=st.integers(1, 64),
    window=st.integers(3, 90),
    epoch=st.integers(0, 3),
)
@settings(max_examples=60)
def test_windows_of_lanes_contain_each_row_of_an_epoch_once(
    counts: list[int], batch_size: int, window: int, epoch: int
) -> None:
    if sum(counts) < batch_size:
        return
    made = Order("toy", files_of(counts), seed=3, batch_size=batch_size, window=window)
    rows: list[int] = []
    for lane in range(made.lanes):
        windows = made.windows(lane)
        assert windows[0][0] == 0
        assert all(a[1] == b[0] for a, b in itertools.pairwise(windows))
        assert max(stop - start for start, stop in windows) <= window
        for each in windows:
            spans = made.spans(epoch, lane, each)
            assert sum(stop - start for start, stop in spans) == each[1] - each[0]
            rows += [row for span in spans for row in range(*span)]
    assert len(rows) == len(set(rows)) == made.steps * batch_size
    keys = pa.array([f"k{i}" for i in range(made.rows)])
    assert sorted(made.epoch_rows(epoch, made.key_hashes(keys))[0].tolist()) == sorted(rows)


@pytest.mark.parametrize(
    ("counts", "batch_size"), [([500], 300), ([900], 64), ([512, 488], 700), ([512, 512, 31], 64)]
)
def test_no_row_is_left_out_of_every_epoch(
    counts: list[int], batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "SEGMENT", 1_000)
    made = Order("toy", files_of(counts), seed=0, batch_size=batch_size)
    hashes = made.key_hashes(pa.array([f"k{i}" for i in range(made.rows)]))
    epochs = 200
    views = np.bincount(np.concatenate([made.epoch_rows(e, hashes)[0] for e in range(epochs)]))
    expected = epochs * made.steps * batch_size / made.rows
    assert len(views) == made.rows
    assert np.abs(views - expected).max() < 5 * np.sqrt(epochs) / 2


def test_a_batch_draws_from_all_of_a_large_part() -> None:
    made = Order("toy", files_of([50_000]), seed=0, batch_size=64)
    assert made.lanes == 16
    keys = pa.array([f"k{i}" for i in range(made.rows)])
    batch = made.epoch_rows(0, made.key_hashes(keys))[0][:64]
    assert len(set((batch // 7).tolist())) > 50


# -- runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["supervised", "contrastive"])
def test_a_streamed_run_writes_the_files_of_a_run_in_memory(
    objective: str, request: pytest.FixtureRequest, make_work: Callable[..., Work]
) -> None:
    repeats = 3 if objective == "supervised" else 1
    recipe = request.getfixturevalue(objective)(
        augment={"degrees": 10, "flip": True}, repeats=repeats
    )
    whole, stream = make_work(recipe, "memory"), make_work(recipe, "streamed", decoded_gb=0)
    a, b = train_run(whole), train_run(stream)
    assert outputs(stream) == outputs(whole)
    assert a.counts == b.counts
    assert a.metrics["pretrain/memorised_percent"] == b.metrics["pretrain/memorised_percent"]


def test_a_streamed_run_resumes_at_the_next_batch(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    whole = make_work(supervised(), "whole")
    pieces = make_work(supervised(), "pieces", decoded_gb=0)
    train_run(whole)
    interrupted(pieces, 3, Pace(minutes=0))
    assert outputs(pieces) == outputs(whole)
    assert EncoderCard.read(pieces.output) == EncoderCard.read(whole.output)


# -- what goes wrong -------------------------------------------------------------------------------


def test_a_shard_altered_or_missing_between_epochs_is_named(own_toy: Any) -> None:
    source = streamed_source(own_toy)
    assert len(list(source.batches(0, 0, DistributedGroup()))) == 6
    source._reader._cached.clear()  # as happens to a part larger than the cache
    shard = own_toy.corpus.local_path() / "train-00001.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(StageError, match=r"train-00001\.parquet .*other sha256"):
        list(source.batches(1, 0, DistributedGroup()))
    shard.unlink()
    with pytest.raises(StageError, match=r"train-00001\.parquet .* is missing"):
        list(source.batches(1, 0, DistributedGroup()))
    shard.write_bytes(whole)
    assert len(list(source.batches(1, 0, DistributedGroup()))) == 6


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_whose_shards_are_altered_between_epochs_says_so_and_how_to_go_on(
    supervised: Callable[..., Any],
    make_work: Callable[..., Work],
    own_toy: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streamed, "LANES", 1)  # so that each epoch reads the shards again
    work = make_work(supervised(), decoded_gb=0)
    work = replace(work, inputs={**work.inputs, "corpus": own_toy.corpus})
    shards = sorted(own_toy.corpus.local_path().glob("train-*.parquet"))

    def alter(share: float, words: str) -> None:
        for shard in shards if share >= 0.5 else ():
            data = shard.read_bytes()
            shard.write_bytes(data[:200] + b"altered" + data[207:])

    with pytest.raises(StageError, match=r"^shard train-.*other sha256.*build the corpus again"):
        train_run(work, watch=Watch(on_progress=alter))
    assert len(shards) == 3
    gc.collect()  # here, not in a later test, end the pipes that the error held


@pytest.mark.parametrize("processes", [0, 1])
def test_an_image_that_cannot_be_decoded_is_grey_and_named(
    damaged_toy: Any, processes: int
) -> None:
    a = in_memory_source(damaged_toy, batch_size=50)
    b = streamed_source(damaged_toy, batch_size=50, processes=processes)
    assert b.damaged == set()
    batches = [list(source.batches(0, 0, DistributedGroup())) for source in (a, b)]
    same(*batches)
    grey = [image for batch in batches[0] for image in batch.images if image.unique().numel() == 1]
    assert [image.unique().item() for image in grey] == [128] * 3
    assert (
        a.damaged
        == b.damaged
        == {
            f"shard train-0000{shard}.parquet: image 'toy/{key}'"
            for shard, key in ((0, 1007), (1, 1040), (2, 1083))
        }
    )


def test_an_augmented_image_that_cannot_be_decoded_is_grey_too(damaged_toy: Any) -> None:
    source = streamed_source(damaged_toy, batch_size=50)
    source._augment = Augment(crop=(0.3, 1.0), rand_augment="rand-m9-n2")
    images = torch.cat([b.images for b in source.batches(0, 0, DistributedGroup())])
    assert sum(bool((image == 128).all()) for image in images) == 3


def test_noise_of_another_field_or_corpus_is_refused(own_toy: Any) -> None:
    with pytest.raises(StageError, match="changes captions and this recipe trains on labels"):
        NoisyRows(own_toy.noise("caption", 10), 100, "label", encode)
    folder = own_toy.noise("label", 30)
    folder.write_table("changed.parquet", folder.read_table("changed.parquet").slice(1))
    with pytest.raises(StageError, match="changes 30 rows of corpus toy and only 29 of them"):
        streamed_source(own_toy)
    with pytest.raises(StageError, match="100 training rows do not fill a batch of 101"):
        streamed_source(own_toy, level=0, batch_size=101)

"""The overlay file, and how a reader applies it shard by shard."""

import itertools
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.contract import StageError
from jobs.noise import overlay as overlays
from jobs.noise.captions import Captioned, caption_swap
from jobs.noise.labels import Choice, Labelled, symmetric
from jobs.noise.overlay import Changes, Overlay, apply
from jobs.storage.folder import Folder

N = 500
KEYS = pa.array([f"k{i}" for i in range(N)])
LABELS = np.arange(N, dtype=np.int32) % 10
TEXTS = pa.array([f"text {i % 7}" for i in range(N)])


def flipped(level: float) -> pa.Table:
    return symmetric(Labelled("c", KEYS, LABELS, 10), Choice()).changed(level)


def swapped(level: float) -> pa.Table:
    return caption_swap(Captioned("c", KEYS, TEXTS), Choice()).changed(level)


def describe(changed: int) -> Overlay:
    return Overlay("symmetric", "label", 20, "corpus", 0, "c", N, N, changed, 20.0, 20.0)


@pytest.mark.parametrize("group", [7, 1 << 14])
@given(cuts=st.sets(st.integers(1, N - 1), max_size=12), random=st.randoms())
def test_applying_by_shard_equals_applying_to_the_whole_part(
    tmp_path_factory: pytest.TempPathFactory, group: int, cuts: set[int], random: Random
) -> None:
    folder = Folder.of(tmp_path_factory.mktemp("noise"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlays, "ROW_GROUP", group)
        describe(100).write(folder, flipped(20))
    whole, mask = apply(Changes(folder).rows(0, N), KEYS, pa.array(LABELS))
    assert mask.sum() == 100
    assert (whole.to_numpy() != LABELS).tolist() == mask.tolist()
    changes, edges = Changes(folder), [0, *sorted(cuts), N]
    shards = list(itertools.pairwise(edges))
    for start, stop in [*shards, *random.sample(shards, len(shards))]:
        rows = changes.rows(start, stop)
        keys, labels = KEYS[start:stop], pa.chunked_array([pa.array(LABELS[start:stop])])
        part, part_mask = apply(rows, keys, labels, start)
        assert part.equals(whole[start:stop])
        assert part_mask.tolist() == mask[start:stop].tolist()


def test_applying_a_swap_twice_gives_the_clean_captions_back() -> None:
    changed = swapped(50)
    noisy, mask = apply(changed, KEYS, TEXTS)
    assert mask.sum() == 250
    assert not noisy.equals(TEXTS)
    back = changed.rename_columns(["row", "key", "noisy", "clean"])
    assert apply(back, KEYS, noisy)[0].equals(TEXTS)


def test_an_empty_overlay_changes_nothing(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)
    describe(0).write(folder, swapped(0))
    noisy, mask = apply(Changes(folder).rows(0, N), KEYS, TEXTS)
    assert noisy.equals(TEXTS)
    assert not mask.any()
    assert Overlay.read(folder) == describe(0)


def test_string_offsets_in_memory_do_not_affect_the_file(tmp_path: Path) -> None:
    one, other = Folder.of(tmp_path / "one"), Folder.of(tmp_path / "other")
    large = swapped(10).cast(
        pa.schema(
            [("row", pa.int64()), *((n, pa.large_string()) for n in ("key", "clean", "noisy"))]
        )
    )
    describe(50).write(one, swapped(10))
    describe(50).write(other, large)
    assert one.read_bytes("changed.parquet") == other.read_bytes("changed.parquet")


@pytest.mark.parametrize(
    ("keys", "labels", "start"),
    [
        (["k0", "k1"], [0, 5], 0),  # another value
        (["k0", "k1"], [0, None], 0),
        (["k0", "other"], [0, 1], 0),  # another key
        (["k1", "k2"], [1, 2], 0),  # moved by a row
        (["k0"], [0], 0),  # truncated
        (["k2", "k3"], [2, 3], 2),  # another position
    ],
)
def test_rows_of_another_corpus_are_refused(
    keys: list[str], labels: list[int | None], start: int
) -> None:
    changed = flipped(99.9).slice(1, 1)
    assert changed["key"].to_pylist() == ["k1"]
    with pytest.raises(
        StageError, match="key 'k1' is not here with the clean value that it replaces"
    ):
        apply(changed, pa.array(keys), pa.array(labels, pa.int32()), start)


def test_captions_of_another_corpus_are_refused(tmp_path: Path) -> None:
    folder, changed = Folder.of(tmp_path), swapped(50)
    describe(250).write(folder, changed)
    first = changed["row"][0].as_py()
    texts = TEXTS.to_pylist()
    texts[first] = "another"
    with pytest.raises(StageError, match=f"row {first} is not here with the clean value"):
        apply(Changes(folder).rows(0, N), KEYS, pa.array(texts))
    noisy, _ = apply(Changes(folder).rows(0, N), KEYS, TEXTS)
    assert noisy.equals(apply(changed, KEYS, TEXTS)[0])

"""Noise: exact, nested, keyed, and blind to how the rows are arranged."""

import collections

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jobs.contract import StageError
from jobs.corpus.noise import (
    Flips,
    Swaps,
    changed_count,
    plan_caption_swap,
    plan_symmetric,
    swapped_count,
)

LEVELS = st.one_of(
    st.sampled_from([0.0, 2.5, 5.0, 10.0, 20.0, 30.0, 99.9]),
    st.floats(0, 99.9, allow_nan=False).map(lambda x: round(x, 2)),
)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[list[str], list[int], int, int]:
    classes = draw(st.integers(2, 12))
    keys = draw(st.lists(st.text(max_size=12), unique=True, min_size=1, max_size=80))
    labels = [draw(st.integers(0, classes - 1)) for _ in keys]
    return keys, labels, classes, draw(st.integers(0, 1000))


@st.composite
def captioned(draw: st.DrawFn) -> tuple[list[str], list[str], int]:
    keys = draw(st.lists(st.text(max_size=12), unique=True, min_size=1, max_size=80))
    captions = [draw(st.sampled_from(["one", "two", "three", "four"])) for _ in keys]
    return keys, captions, draw(st.integers(0, 1000))


def flips(keys: list[str], labels: list[int], classes: int, seed: int) -> Flips:
    return plan_symmetric(pa.array(keys), np.array(labels, np.int32), classes, seed, "c")


def swaps(keys: list[str], captions: list[str], seed: int) -> Swaps:
    return plan_caption_swap(pa.array(keys), pa.array(captions), seed, "c")


def as_dict(table: pa.Table) -> dict[str, tuple[object, object]]:
    return {row["key"]: (row["clean"], row["noisy"]) for row in table.to_pylist()}


@pytest.mark.parametrize(
    ("level", "samples", "count"),
    [(5, 1000, 50), (2.3, 1000, 23), (0.5, 100, 1), (0.4, 100, 0), (10, 1078, 108), (50, 3, 2)],
)
def test_counts_are_the_nearest_integer_halves_up(level: float, samples: int, count: int) -> None:
    assert changed_count(level, samples) == count


@pytest.mark.parametrize(
    ("level", "samples", "count"),
    [(0, 7, 0), (10, 100, 10), (11, 100, 12), (10.9, 100, 10), (9, 100, 10), (5, 1078, 54)],
)
def test_swaps_count_to_the_nearest_even_number(level: float, samples: int, count: int) -> None:
    assert swapped_count(level, samples) == count


@given(labelled(), LEVELS)
def test_exactly_the_asked_number_is_flipped_and_never_to_the_clean_class(
    data: tuple[list[str], list[int], int, int], level: float
) -> None:
    keys, labels, classes, seed = data
    table = flips(keys, labels, classes, seed).changed(level)
    assert len(table) == changed_count(level, len(keys))
    clean = dict(zip(keys, labels, strict=True))
    for key, (was, becomes) in as_dict(table).items():
        assert was == clean[key]
        assert becomes != was
        assert becomes in range(classes)
    assert table["key"].to_pylist() == sorted(table["key"].to_pylist(), key=str.encode)


@given(labelled(), LEVELS, LEVELS)
def test_a_flip_at_a_lower_level_is_the_same_flip_at_a_higher(
    data: tuple[list[str], list[int], int, int], one: float, other: float
) -> None:
    plan = flips(*data)
    low, high = as_dict(plan.changed(min(one, other))), as_dict(plan.changed(max(one, other)))
    assert low.items() <= high.items()


@given(labelled(), LEVELS, st.randoms(use_true_random=False), st.integers(1, 9))
def test_row_order_and_shards_do_not_affect_flips(
    data: tuple[list[str], list[int], int, int], level: float, random: object, shards: int
) -> None:
    keys, labels, classes, seed = data
    expected = flips(keys, labels, classes, seed).changed(level)
    rows = list(zip(keys, labels, strict=True))
    random.shuffle(rows)  # type: ignore[attr-defined]
    cut = [rows[i::shards] for i in range(shards)]
    chunks = pa.chunked_array([[key for key, _ in shard] for shard in cut], type=pa.string())
    shuffled = np.array([label for shard in cut for _, label in shard], np.int32)
    assert plan_symmetric(chunks, shuffled, classes, seed, "c").changed(level).equals(expected)


def test_each_seed_and_corpus_flips_other_samples() -> None:
    keys, labels = pa.array([f"k{i}" for i in range(2000)]), np.zeros(2000, np.int32)
    chosen = [
        set(plan_symmetric(keys, labels, 10, seed, corpus).changed(10)["key"].to_pylist())
        for seed, corpus in [(0, "c"), (1, "c"), (0, "d")]
    ]
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert len(chosen[a] & chosen[b]) < 60  # 20 expected by chance, of 200


def test_replacements_are_uniform_over_the_other_classes() -> None:
    keys = pa.array([f"k{i}" for i in range(90_000)])
    labels = np.full(90_000, 3, np.int32)
    plan = plan_symmetric(keys, labels, 10, 0, "c")
    counts = np.bincount(plan.replacement, minlength=10)
    assert counts[3] == 0
    others = np.delete(counts, 3)
    assert float(((others - 10_000) ** 2 / 10_000).sum()) < 30  # chi-square, 8 degrees


def test_a_label_outside_the_classes_is_refused() -> None:
    with pytest.raises(StageError, match=r"1 labels lie outside 0\.\.2 \(the first: 7\)"):
        flips(["a", "b"], [0, 7], 3, 0)
    with pytest.raises(StageError, match="two classes or more, not 1"):
        flips(["a"], [0], 1, 0)


@given(captioned(), LEVELS)
def test_swaps_are_exchanges_that_change_every_text_and_lose_none(
    data: tuple[list[str], list[str], int], level: float
) -> None:
    keys, captions, seed = data
    plan = swaps(keys, captions, seed)
    assume(swapped_count(level, len(keys)) <= 2 * len(plan.pairs))
    table = plan.changed(level)
    assert len(table) == swapped_count(level, len(keys))
    changed = as_dict(table)
    clean = dict(zip(keys, captions, strict=True))
    assert all(was == clean[key] != becomes for key, (was, becomes) in changed.items())
    noisy = clean | {key: becomes for key, (_, becomes) in changed.items()}
    assert collections.Counter(noisy.values()) == collections.Counter(captions)


@given(captioned())
def test_swapping_is_an_involution_without_fixed_points(
    data: tuple[list[str], list[str], int],
) -> None:
    pairs = swaps(*data).pairs
    assert len(np.unique(pairs)) == pairs.size
    assert all(data[1][a] != data[1][b] for a, b in pairs)
    left = set(range(len(data[0]))) - set(pairs.ravel().tolist())
    assert len({data[1][i] for i in left}) <= 1


@given(captioned(), LEVELS, LEVELS)
def test_a_swap_at_a_lower_level_is_the_same_swap_at_a_higher(
    data: tuple[list[str], list[str], int], one: float, other: float
) -> None:
    plan = swaps(*data)
    assume(swapped_count(max(one, other), len(data[0])) <= 2 * len(plan.pairs))
    low, high = as_dict(plan.changed(min(one, other))), as_dict(plan.changed(max(one, other)))
    assert low.items() <= high.items()


@given(captioned(), st.randoms(use_true_random=False), st.integers(1, 9))
def test_row_order_and_shards_do_not_affect_swaps(
    data: tuple[list[str], list[str], int], random: object, shards: int
) -> None:
    keys, captions, seed = data
    expected = {frozenset((keys[a], keys[b])) for a, b in swaps(keys, captions, seed).pairs}
    rows = list(zip(keys, captions, strict=True))
    random.shuffle(rows)  # type: ignore[attr-defined]
    cut = [rows[i::shards] for i in range(shards)]
    flat = [key for shard in cut for key, _ in shard]
    plan = plan_caption_swap(
        pa.chunked_array([[key for key, _ in shard] for shard in cut], type=pa.string()),
        pa.chunked_array([[text for _, text in shard] for shard in cut], type=pa.string()),
        seed,
        "c",
    )
    assert {frozenset((flat[a], flat[b])) for a, b in plan.pairs} == expected


def test_a_level_beyond_reach_names_the_highest_that_is_not() -> None:
    plan = swaps([f"k{i}" for i in range(10)], ["same"] * 9 + ["other"], 0)
    assert plan.count(20) == 2
    with pytest.raises(StageError, match=r"only 2 can; give a level of at most 20\.00"):
        plan.changed(40)


def test_missing_captions_are_refused() -> None:
    with pytest.raises(StageError, match="1 of 2 training rows have no caption"):
        plan_caption_swap(pa.array(["a", "b"]), pa.array(["x", None]), 0, "c")

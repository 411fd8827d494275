"""Caption noise: true exchanges, exact, nested, keyed, and as many as possible."""

import collections

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jobs.contract import StageError
from jobs.noise.captions import Captioned, Swaps, caption_swap, pair_up, swapped_count
from jobs.noise.labels import Choice

LEVELS = st.one_of(
    st.sampled_from([0.0, 2.5, 5.0, 10.0, 20.0, 30.0, 99.9]),
    st.floats(0, 99.9, allow_nan=False).map(lambda x: round(x, 2)),
)

Data = tuple[list[str], list[str], list[int], int]  # keys, captions, clusters, seed


@st.composite
def captioned(draw: st.DrawFn) -> Data:
    keys = draw(st.lists(st.text(max_size=12), unique=True, min_size=1, max_size=80))
    texts = st.sampled_from(draw(st.sampled_from(["ab", "aaaab", "abcd", "abcdefghijkl"])))
    clusters = st.integers(0, draw(st.integers(0, 4)))
    return (
        keys,
        [draw(texts) for _ in keys],
        [draw(clusters) for _ in keys],
        draw(st.integers(0, 1000)),
    )


def swaps(data: Data, *, near: bool, order: list[int] | None = None) -> Swaps:
    keys, captions, clusters, seed = data
    order = order or list(range(len(keys)))
    return caption_swap(
        Captioned("c", pa.array([keys[i] for i in order]), pa.array([captions[i] for i in order])),
        Choice(seed),
        clusters=np.array([clusters[i] for i in order], np.int32) if near else None,
    )


def as_dict(table: pa.Table) -> dict[str, tuple[str, str]]:
    return {row["key"]: (row["clean"], row["noisy"]) for row in table.to_pylist()}


@pytest.mark.parametrize(
    ("level", "samples", "count"),
    [(0, 7, 0), (10, 100, 10), (11, 100, 12), (10.9, 100, 10), (9, 100, 10), (5, 1078, 54)],
)
def test_swaps_count_to_the_nearest_even_number(level: float, samples: int, count: int) -> None:
    assert swapped_count(level, samples) == count


@pytest.mark.parametrize("near", [False, True])
@given(data=captioned(), level=LEVELS)
def test_swaps_are_exchanges_that_change_every_caption_and_keep_all(
    near: bool, data: Data, level: float
) -> None:
    keys, captions, clusters, _ = data
    plan = swaps(data, near=near)
    assume(swapped_count(level, len(keys)) <= 2 * len(plan.pairs))
    table = plan.changed(level)
    assert len(table) == swapped_count(level, len(keys))
    rows = table["row"].to_pylist()
    assert rows == sorted(rows)
    assert table["key"].to_pylist() == [keys[row] for row in rows]
    changed = as_dict(table)
    clean = dict(zip(keys, captions, strict=True))
    assert all(was == clean[key] != becomes for key, (was, becomes) in changed.items())
    cluster = dict(zip(keys, clusters if near else [0] * len(keys), strict=True))
    noisy = clean | {key: becomes for key, (_, becomes) in changed.items()}
    for name in set(cluster.values()):
        members = [key for key in keys if cluster[key] == name]
        assert collections.Counter(noisy[key] for key in members) == collections.Counter(
            clean[key] for key in members
        )


@pytest.mark.parametrize("near", [False, True])
@given(data=captioned())
def test_swapping_is_an_involution_with_as_many_pairs_as_possible(near: bool, data: Data) -> None:
    keys, captions, clusters, _ = data
    plan = swaps(data, near=near)
    assert len(np.unique(plan.pairs)) == plan.pairs.size
    assert all(captions[a] != captions[b] for a, b in plan.pairs)
    cluster = clusters if near else [0] * len(keys)
    assert all(cluster[a] == cluster[b] for a, b in plan.pairs)
    most = 0
    for name in set(cluster):
        texts = [c for c, of in zip(captions, cluster, strict=True) if of == name]
        frequent = max(collections.Counter(texts).values())
        most += min(len(texts) // 2, len(texts) - frequent)
    assert len(plan.pairs) == most
    assert plan.counts == {"rows_without_partner": len(keys) - 2 * most}


@pytest.mark.parametrize("near", [False, True])
@given(data=captioned(), one=LEVELS, other=LEVELS)
def test_a_swap_at_a_lower_level_is_the_same_swap_at_a_higher(
    near: bool, data: Data, one: float, other: float
) -> None:
    plan = swaps(data, near=near)
    assume(swapped_count(max(one, other), len(data[0])) <= 2 * len(plan.pairs))
    low, high = as_dict(plan.changed(min(one, other))), as_dict(plan.changed(max(one, other)))
    assert low.items() <= high.items()


@pytest.mark.parametrize("near", [False, True])
@given(data=captioned(), random=st.randoms(use_true_random=False))
def test_row_order_does_not_affect_swaps(near: bool, data: Data, random: object) -> None:
    order = list(range(len(data[0])))
    random.shuffle(order)  # type: ignore[attr-defined]
    one, other = swaps(data, near=near), swaps(data, near=near, order=order)
    assert [[data[0][i] for i in pair] for pair in one.pairs] == [
        [data[0][order[i]] for i in pair] for pair in other.pairs
    ]


@pytest.mark.parametrize("frequent", [[0.4], [0.3, 0.3, 0.3]])
def test_a_frequent_text_is_not_swapped_earlier_than_others(frequent: list[float]) -> None:
    random = np.random.default_rng(0)
    texts = np.searchsorted(np.cumsum(frequent), random.random(40_000), side="right")
    rare = texts == len(frequent)
    texts[rare] = random.integers(100, 1 << 40, rare.sum())
    pairs = pair_up(texts.astype(np.uint64))
    assert len(pairs) == 20_000
    for text, share in enumerate(frequent):
        for part in (pairs[:4000], pairs[8000:12_000], pairs[16_000:]):
            assert (texts[part] == text).mean() == pytest.approx(share, abs=0.02)


def test_only_the_allowed_samples_swap_among_themselves() -> None:
    keys, captions = pa.array([f"k{i}" for i in range(100)]), pa.array([str(i) for i in range(100)])
    allowed = np.arange(100) < 30
    samples = Captioned("c", keys, captions)
    of_corpus = caption_swap(samples, Choice(), allowed=allowed)
    of_subset = caption_swap(samples, Choice(of="subset"), allowed=allowed)
    assert len(of_corpus.changed(20)) == 20
    assert len(of_subset.changed(20)) == 6
    assert set(of_corpus.changed(30)["noisy"].to_pylist()) == {str(i) for i in range(30)}


def test_an_impossible_level_is_an_error_that_names_the_highest() -> None:
    data = ([f"k{i}" for i in range(10)], ["same"] * 9 + ["other"], [0] * 10, 0)
    plan = swaps(data, near=False)
    assert plan.count(20) == 2
    with pytest.raises(StageError, match=r"only 2 have .* give a level of at most 20\.00"):
        plan.changed(40)


def test_missing_captions_are_refused() -> None:
    with pytest.raises(StageError, match="1 of 2 training rows have no caption"):
        Captioned("c", pa.array(["a", "b"]), pa.array(["x", None]))

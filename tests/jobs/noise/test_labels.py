"""Label noise: exact, nested, keyed, and independent of the row order."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.contract import StageError
from jobs.noise.labels import (
    Choice,
    Flips,
    Labelled,
    changed_count,
    groups,
    pair,
    subset,
    symmetric,
)

LEVELS = st.one_of(
    st.sampled_from([0.0, 2.5, 5.0, 10.0, 20.0, 30.0, 99.9]),
    st.floats(0, 99.9, allow_nan=False).map(lambda x: round(x, 2)),
)


@dataclass(frozen=True)
class Data:
    keys: list[str]
    labels: list[int]
    classes: int
    seed: int
    group_of: list[int]  # of each class
    named: tuple[int, ...]  # two classes or more

    def samples(self) -> Labelled:
        return Labelled(
            "c", pa.array(self.keys), np.array(self.labels, np.int32), classes=self.classes
        )

    def rearranged(self, order: list[int]) -> "Data":
        keys, labels = [self.keys[i] for i in order], [self.labels[i] for i in order]
        return Data(keys, labels, self.classes, self.seed, self.group_of, self.named)


@st.composite
def data(draw: st.DrawFn) -> Data:
    classes = draw(st.integers(2, 12))
    keys = draw(st.lists(st.text(max_size=12), unique=True, min_size=1, max_size=80))
    numbers = st.integers(0, classes - 1)
    return Data(
        keys,
        [draw(numbers) for _ in keys],
        classes,
        draw(st.integers(0, 1000)),
        [draw(st.integers(0, 3)) for _ in range(classes)],
        tuple(draw(st.lists(numbers, unique=True, min_size=2, max_size=classes))),
    )


Kind = Callable[[Data], Flips]

KINDS: dict[str, Kind] = {
    "symmetric": lambda d: symmetric(d.samples(), Choice(d.seed)),
    "symmetric in some classes": lambda d: symmetric(d.samples(), Choice(d.seed, d.named)),
    "pair": lambda d: pair(d.samples(), Choice(d.seed)),
    "groups": lambda d: groups(d.samples(), Choice(d.seed), np.array(d.group_of)),
    "groups in some classes": lambda d: groups(
        d.samples(), Choice(d.seed, d.named, "subset"), np.array(d.group_of)
    ),
    "subset": lambda d: subset(d.samples(), Choice(d.seed, d.named)),
    "subset of itself": lambda d: subset(d.samples(), Choice(d.seed, d.named, "subset")),
}


def allowed(kind: str, d: Data, clean: int, noisy: int) -> bool:
    """Whether the kind allows a flip."""
    named = clean in d.named if "some classes" in kind or "subset" in kind else True
    if noisy not in d.labels:  # no noise makes a class that has no clean row
        return False
    if kind.startswith("pair"):
        later = [(clean + step) % d.classes for step in range(1, d.classes)]
        return [label for label in later if label in d.labels][:1] == [noisy]
    if kind.startswith("groups"):
        return named and noisy != clean and d.group_of[noisy] == d.group_of[clean]
    if kind.startswith("subset"):
        return named and noisy != clean and noisy in d.named
    return named and noisy != clean and noisy in range(d.classes)


def can_flip(kind: str, d: Data, label: int) -> bool:
    return any(allowed(kind, d, label, other) for other in range(d.classes))


def as_dict(table: pa.Table) -> dict[str, tuple[object, object]]:
    return {row["key"]: (row["clean"], row["noisy"]) for row in table.to_pylist()}


@pytest.mark.parametrize(
    ("level", "samples", "count"),
    [(5, 1000, 50), (2.3, 1000, 23), (0.5, 100, 1), (0.4, 100, 0), (10, 1078, 108), (50, 3, 2)],
)
def test_counts_are_the_nearest_integer_ties_up(level: float, samples: int, count: int) -> None:
    assert changed_count(level, samples) == count


@pytest.mark.parametrize("kind", KINDS)
@given(d=data(), level=LEVELS)
def test_exactly_the_requested_number_is_flipped_as_the_kind_allows(
    kind: str, d: Data, level: float
) -> None:
    plan = KINDS[kind](d)
    eligible = sum(can_flip(kind, d, label) for label in d.labels)
    assert plan.eligible == len(plan.order) == eligible
    wanted = changed_count(level, eligible if plan.of == "subset" else len(d.keys))
    if wanted > eligible:
        with pytest.raises(
            StageError, match=f"only {eligible} can change; give a level of at most"
        ):
            plan.changed(level)
        return
    table = plan.changed(level)
    assert len(table) == wanted
    rows = table["row"].to_pylist()
    assert rows == sorted(set(rows))
    assert table["key"].to_pylist() == [d.keys[row] for row in rows]
    assert table["clean"].to_pylist() == [d.labels[row] for row in rows]
    assert all(allowed(kind, d, *flip) for flip in as_dict(table).values())


@pytest.mark.parametrize("kind", KINDS)
@given(d=data(), one=LEVELS, other=LEVELS)
def test_a_flip_at_a_lower_level_is_the_same_flip_at_a_higher(
    kind: str, d: Data, one: float, other: float
) -> None:
    plan = KINDS[kind](d)
    low, high = sorted((one, other))
    if changed_count(high, plan.eligible if plan.of == "subset" else len(d.keys)) > plan.eligible:
        return
    assert as_dict(plan.changed(low)).items() <= as_dict(plan.changed(high)).items()


@pytest.mark.parametrize("kind", KINDS)
@given(d=data(), random=st.randoms(use_true_random=False))
def test_row_order_does_not_affect_flips(kind: str, d: Data, random: object) -> None:
    order = list(range(len(d.keys)))
    random.shuffle(order)  # type: ignore[attr-defined]
    one, other = KINDS[kind](d), KINDS[kind](d.rearranged(order))
    reached = 100 * len(one.order) / len(d.keys) if one.of == "corpus" else 99.9
    for level in (reached / 3, min(reached, 99.9) * 0.9):
        assert as_dict(one.changed(level)) == as_dict(other.changed(level))


def test_each_seed_and_corpus_flips_other_samples() -> None:
    keys, labels = pa.array([f"k{i}" for i in range(2000)]), np.arange(2000, dtype=np.int32) % 10
    chosen = [
        set(symmetric(Labelled(corpus, keys, labels, 10), Choice(seed)).rows(10).tolist())
        for seed, corpus in [(0, "c"), (1, "c"), (0, "d")]
    ]
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert len(chosen[a] & chosen[b]) < 60  # 20 expected by chance, of 200


def test_replacements_are_uniform_over_the_other_classes() -> None:
    keys = pa.array([f"k{i}" for i in range(90_010)])
    labels = np.concatenate([np.full(90_000, 3), np.arange(10)]).astype(np.int32)
    plan = symmetric(Labelled("c", keys, labels, 10), Choice())
    counts = np.bincount(plan.noisy[:90_000], minlength=10)
    assert counts[3] == 0
    others = np.delete(counts, 3)
    assert float(((others - 10_000) ** 2 / 10_000).sum()) < 30  # chi-square, 8 degrees


def test_a_class_alone_in_its_group_is_counted_and_never_flipped() -> None:
    keys, labels = pa.array([f"k{i}" for i in range(90)]), np.arange(90, dtype=np.int32) % 3
    plan = groups(Labelled("c", keys, labels, 3), Choice(), np.array([7, 4, 7]))
    assert plan.counts == {"rows_alone_in_group": 30}
    assert plan.eligible == 60
    assert set(plan.changed(60)["clean"].to_pylist()) == {0, 2}


def test_a_level_of_the_subset_is_a_share_of_the_subset() -> None:
    keys, labels = pa.array([f"k{i}" for i in range(1000)]), np.arange(1000, dtype=np.int32) % 10
    samples = Labelled("c", keys, labels, 10)
    assert len(subset(samples, Choice(0, (1, 2), "subset")).rows(20)) == 40
    assert len(subset(samples, Choice(0, (1, 2), "corpus")).rows(20)) == 200
    with pytest.raises(StageError, match=r"only 200 can change; give a level of at most 20\.00"):
        subset(samples, Choice(0, (1, 2), "corpus")).rows(20.1)


def test_a_label_outside_the_classes_is_refused() -> None:
    with pytest.raises(StageError, match=r"1 labels lie outside 0\.\.2 \(the first: 7\)"):
        Labelled("c", pa.array(["a", "b"]), np.array([0, 7], np.int32), 3)
    with pytest.raises(StageError, match="two classes or more, not 1"):
        Labelled("c", pa.array(["a"]), np.array([0], np.int32), 1)

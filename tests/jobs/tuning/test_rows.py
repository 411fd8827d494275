"""The rows of a cell: any file order, only the task's, nested fractions, the test part last."""

from __future__ import annotations

from random import Random

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.contract import StageError
from jobs.tasks import registry
from jobs.tasks.check import map_faults
from jobs.tasks.spec import Task
from jobs.tuning.frozen import features
from jobs.tuning.frozen.features import FeatureCache, read_part
from jobs.tuning.metrics import score
from jobs.tuning.rows import TaskClasses, fraction, training_rows
from jobs.tuning.trained import Selected
from tests.jobs.tuning.blobs import CLASSES, DIM, SIZES, id_task
from tests.jobs.tuning.conftest import WriteFeatures

ODD_EVEN = {"odd": (1, 3), "even": (0, 2)}


def test_row_order_of_the_files_does_not_matter(write_features: WriteFeatures) -> None:
    tidy = read_part(write_features("tidy"), "train")
    for seed in (1, 2):
        shuffled = read_part(write_features(f"s{seed}", shuffle=seed), "train")
        assert shuffled.keys.equals(tidy.keys)
        assert np.array_equal(shuffled.labels, tidy.labels)
        assert np.array_equal(shuffled.views, tidy.views)


def test_training_takes_the_augmented_views_or_else_the_plain_one(
    write_features: WriteFeatures,
) -> None:
    augmented = read_part(write_features("two", views=2), "train")
    assert (augmented.views.shape, augmented.augmented) == ((2, SIZES["train"], DIM), 2)
    plain = read_part(write_features("none", views=0), "train")
    assert (plain.views.shape, plain.augmented) == ((1, SIZES["train"], DIM), 0)


def test_half_precision_features_are_read_as_float32(write_features: WriteFeatures) -> None:
    folder = write_features()
    table = folder.read_table("features-test.parquet")
    flat = table["vector"].combine_chunks().flatten().to_numpy().astype(np.float16)
    halves = pa.FixedSizeListArray.from_arrays(pa.array(flat), DIM)
    folder.write_table("features-test.parquet", table.set_column(3, "vector", halves))
    part = read_part(folder, "test")
    assert part.views.dtype == np.float32
    assert np.array_equal(part.views.ravel(), flat.astype(np.float32))


def test_missing_and_broken_features_are_refused_in_one_sentence(
    write_features: WriteFeatures,
) -> None:
    folder = write_features("partial", parts=("train",))
    with pytest.raises(StageError, match=r"has no features-validation\.parquet; extract"):
        read_part(folder, "validation")
    table = write_features("nan").read_table("features-test.parquet")
    flat = table["vector"].combine_chunks().flatten().to_numpy().copy()
    flat[3 * DIM] = np.nan
    broken = pa.FixedSizeListArray.from_arrays(pa.array(flat), DIM)
    folder.write_table("features-test.parquet", table.set_column(3, "vector", broken))
    with pytest.raises(StageError, match=r"1 rows of view 0 are not finite.*test-0003"):
        read_part(folder, "test")


def test_views_of_different_samples_are_refused(write_features: WriteFeatures) -> None:
    folder = write_features()
    table = folder.read_table("features-train.parquet")
    folder.write_table("features-train.parquet", table.slice(0, table.num_rows - 1))
    with pytest.raises(StageError, match="view 2 does not hold the keys of view 1"):
        read_part(folder, "train")


def test_classes_merge_and_leave_out_labels(write_features: WriteFeatures) -> None:
    part = read_part(write_features(), "train")
    merged = id_task(classes=ODD_EVEN)
    rows = training_rows(part, TaskClasses.of(merged, CLASSES), merged, percent=100, seed=0)
    assert np.array_equal(rows.labels.numpy(), 1 - part.labels % 2)
    assert rows.other_classes == 0
    subset = id_task(classes={"two": (2,), "zero": (0,)})
    rows = training_rows(part, TaskClasses.of(subset, CLASSES), subset, percent=100, seed=0)
    inside = np.flatnonzero(part.labels % 2 == 0)
    assert rows.other_classes == len(part.labels) - len(inside)
    assert rows.keys.equals(part.keys.take(pa.array(inside)))
    assert torch.equal(part.training(rows).features, torch.from_numpy(part.views[:, inside]))
    assert np.array_equal(rows.labels.numpy(), (part.labels[inside] == 0).astype(int))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"a": (0,), "b": (9,)}, "classes.b names label 9, but corpus blobs has labels 0 to 3"),
        ({"a": (0, 1), "b": ("one",)}, "label 1 counts as two classes"),
        ({"a": (0,), "b": ("five",)}, "classes.b names class 'five', which corpus blobs lacks"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    classes: dict[str, tuple[int | str, ...]], message: str
) -> None:
    with pytest.raises(StageError, match=message):
        TaskClasses.of(id_task(classes=classes), CLASSES)


def test_a_name_that_two_classes_have_is_refused_as_the_check_does() -> None:
    task, names = id_task(classes={"a": ("crane",), "b": (1,)}), ("crane", "fox", "crane", "owl")
    fault = "classes.a names 'crane', as labels 0 and 2 are called; write the label"
    assert list(map_faults(task, names)) == [fault]
    with pytest.raises(StageError, match=fault):
        TaskClasses.of(task, names)
    below = id_task(classes={"a": (-1,), "b": (1,)})
    assert list(map_faults(below, names)) == [
        "classes.a names -1, which the data lacks; use one of crane, fox, crane, owl"
    ]


def test_an_empty_class_and_a_single_class_are_refused(write_features: WriteFeatures) -> None:
    part = read_part(write_features(), "train")
    five = TaskClasses((*CLASSES, "four"), np.arange(5))
    with pytest.raises(StageError, match="class four has no row in the training part"):
        training_rows(part, five, id_task(), percent=100, seed=0)
    task = id_task(classes={"all": (0, 1, 2, 3)})
    with pytest.raises(StageError, match="has 1 class; give it at least two"):
        training_rows(part, TaskClasses.of(task, CLASSES), task, percent=100, seed=0)


@given(
    rows=st.integers(1, 120),
    percents=st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)),
    seed=st.integers(0, 50),
    shuffle=st.randoms(use_true_random=False),
)
def test_fractions_are_nested_and_do_not_depend_on_row_order(
    rows: int, percents: tuple[float, float], seed: int, shuffle: Random
) -> None:
    keys = [f"k{i}" for i in range(rows)]
    labels = np.arange(rows) % 3

    def chosen(percent: float, order: list[int]) -> set[str]:
        own = [keys[i] for i in order]
        kept = fraction(pa.array(own), labels[order], percent=percent, seed=seed, scope="blobs")
        assert np.array_equal(kept, np.sort(kept))
        return {own[i] for i in kept}

    low, high = sorted(percents)
    straight = list(range(rows))
    mixed = straight.copy()
    shuffle.shuffle(mixed)
    assert chosen(low, straight) <= chosen(high, straight)
    assert chosen(low, mixed) == chosen(low, straight)


def test_a_fraction_keeps_its_share_of_every_class_and_at_least_one(
    write_features: WriteFeatures,
) -> None:
    part = read_part(write_features(), "train")
    classes = TaskClasses.of(id_task(), CLASSES)
    for percent in (0.1, 10, 25, 50):
        rows = training_rows(part, classes, id_task(), percent=percent, seed=0)
        counts = np.bincount(rows.labels.numpy())
        whole = np.bincount(part.labels)
        assert np.array_equal(counts, np.maximum(1, (whole * percent / 100 + 0.5).astype(int)))
        assert rows.beyond_fraction == whole.sum() - counts.sum()
        assert len(rows.keys) == part.training(rows).features.shape[1] == counts.sum()


def test_the_test_part_opens_once_and_only_for_a_selected_head(
    write_features: WriteFeatures,
) -> None:
    part = features.TestPart(write_features())
    with pytest.raises(StageError, match="without a head"):
        part.open(Selected({}, CLASSES))
    selected = Selected({"classifier.weight": torch.zeros(4, DIM)}, CLASSES)
    assert len(part.open(selected).keys) == SIZES["test"]
    assert part.reads == 1
    with pytest.raises(StageError, match="read only once"):
        part.open(selected)


def test_the_cache_reads_a_folder_once_while_it_is_in_use(write_features: WriteFeatures) -> None:
    folders = [write_features(f"f{i}") for i in range(3)]
    cache = FeatureCache(folders=2)
    first = cache.load(folders[0])
    cache.load(folders[1])
    assert cache.load(folders[0]) is first
    cache.load(folders[2])  # removes folder 1, the least recently used
    assert cache.load(folders[0]) is first


@pytest.mark.parametrize(
    "task", ["glue-mrpc", "glue-qqp", "gluex-mrpc-to-qqp", "gluex-qqp-to-mrpc"]
)
@pytest.mark.parametrize(
    ("labels", "positive"),
    [
        (("different", "equivalent"), "equivalent"),
        (("equivalent", "not_equivalent"), "equivalent"),  # the Hub's names, sorted as text
        (("duplicate", "not_duplicate"), "duplicate"),
        (("not_paraphrase", "paraphrase"), "paraphrase"),
    ],
)
def test_f1_of_paraphrases_is_of_the_positive_class_whatever_it_is_called(
    task: str, labels: tuple[str, ...], positive: str
) -> None:
    classes = TaskClasses.of(registry.load(task), labels)
    assert classes.names == ("different", "equivalent")
    numbers = torch.from_numpy(classes.index_of)
    last = torch.tensor([label == positive for label in labels]).long()
    assert score(numbers, last[None], 2).of("f1").item() == 100


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            ("no", "yes"),
            r"2 labels .* different \(different, not_equivalent, not_duplicate, not_para",
        ),
        (("equivalent",), "have 1 labels"),
        (("equivalent", "not_equivalent", "unsure"), "have 3 labels"),
        (("0", "1"), "are numbers .* say nothing of their meaning; name the classes in the order"),
    ],
)
def test_given_labels_that_no_class_lists_are_refused(
    labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(StageError, match=message):
        TaskClasses.of(registry.load("glue-mrpc"), labels)


@pytest.mark.parametrize("metric", ["f1", "accuracy_f1"])
def test_a_metric_of_one_class_needs_both_classes_named(metric: str) -> None:
    with pytest.raises(ValueError, match=f"metric {metric} counts one class of two; name both"):
        Task(name="t", title="t", domain="id", source="features", metric=metric)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("glue-rte", ("entailment", "not_entailment")),
        ("gluex-hans", ("entailment", "non-entailment")),
        ("gluex-scitail", ("entails", "neutral")),
    ],
)
def test_entailment_is_found_under_the_names_of_every_source(
    task: str, labels: tuple[str, ...]
) -> None:
    found = TaskClasses.of(registry.load(task), labels)
    assert found.names == ("entailment", "not_entailment")
    assert found.index_of.tolist() == [0, 1]


def test_given_features_of_other_metrics_may_leave_labels_out() -> None:
    classes = {"no": ("contradiction",), "yes": ("entailment",)}
    task = Task(name="t", title="t", domain="id", source="features", classes=classes)  # type: ignore[arg-type]
    found = TaskClasses.of(task, ("contradiction", "entailment", "neutral"))
    assert found.index_of.tolist() == [0, 1, -1]


def test_a_number_that_is_also_the_name_of_another_class_is_refused() -> None:
    """Folders named by numbers are sorted as text: 0, 1, 10, 11, 2, ..."""
    folders = tuple(sorted(str(number) for number in range(12)))
    task = id_task(classes={"two": [2], "other": ["3"]})
    with pytest.raises(StageError, match=r"two names 2, .* called '2' or the label 2 .* '10'"):
        TaskClasses.of(task, folders)
    named = TaskClasses.of(id_task(classes={"two": ["2"], "ten": ["10"], "zero": [0]}), folders)
    assert [folders[int(np.flatnonzero(named.index_of == i)[0])] for i in range(3)] == [
        "2",
        "10",
        "0",
    ]

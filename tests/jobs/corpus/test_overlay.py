"""The overlay as a reader applies it."""

import numpy as np
import pyarrow as pa
import pytest

from jobs.contract import StageError
from jobs.corpus.noise import plan_caption_swap, plan_symmetric
from jobs.corpus.overlay import apply


def test_applying_in_any_chunks_gives_exactly_the_changed_rows() -> None:
    keys = pa.array([f"k{i}" for i in range(500)])
    labels = np.arange(500, dtype=np.int32) % 10
    changed = plan_symmetric(keys, labels, 10, 0, "c").changed(20)
    noisy, mask = apply(changed, keys, pa.array(labels))
    assert mask.sum() == 100
    assert (noisy.to_numpy() != labels).tolist() == mask.tolist()
    some = pa.chunked_array([keys[490:], keys[3:40]])
    values = pa.chunked_array([pa.array(labels[490:]), pa.array(labels[3:40])])
    part, part_mask = apply(changed, some, values)
    rows = [*range(490, 500), *range(3, 40)]
    assert part.to_pylist() == noisy.take(pa.array(rows)).to_pylist()
    assert part_mask.tolist() == mask[rows].tolist()


def test_applying_a_swap_twice_gives_the_clean_captions_back() -> None:
    keys = pa.array([f"k{i}" for i in range(100)])
    captions = pa.array([f"text {i % 7}" for i in range(100)])
    changed = plan_caption_swap(keys, captions, 0, "c").changed(50)
    noisy, mask = apply(changed, keys, captions)
    assert mask.sum() == 50
    back = changed.rename_columns(["key", "noisy", "clean"])
    assert apply(back, keys, noisy)[0].equals(captions)


def test_an_empty_overlay_changes_nothing() -> None:
    keys, labels = pa.array(["a", "b"]), pa.array([1, 0], pa.int32())
    changed = plan_symmetric(keys, np.array([1, 0], np.int32), 2, 0, "c").changed(0)
    noisy, mask = apply(changed, keys, labels)
    assert noisy.equals(labels)
    assert not mask.any()


@pytest.mark.parametrize("value", [5, None])
def test_an_overlay_of_another_corpus_is_refused(value: int | None) -> None:
    changed = plan_symmetric(pa.array(["a"]), np.array([1], np.int32), 2, 0, "c").changed(99)
    with pytest.raises(StageError, match="key 'a' has another value"):
        apply(changed, pa.array(["z", "a"]), pa.array([0, value], pa.int32()))

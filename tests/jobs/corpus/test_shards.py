"""The layout of shards: a function of the keys alone."""

import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from jobs.contract import StageError
from jobs.corpus.readers import DIGIT_NAMES, Digits
from jobs.corpus.shards import PARTS, Shard, layout, rank
from jobs.corpus.spec import Corpus, DigitsReader, Parts

KEYS = [f"k{i:04d}" for i in range(600)]


def corpus(**changes: object) -> Corpus:
    fields = {"name": "c", "reader": DigitsReader(), "rows_per_shard": 100} | changes
    return Corpus.model_validate(fields)


def members(shards: list[Shard], keys: list[str]) -> dict[str, list[str]]:
    return {shard.file: [keys[i] for i in shard.rows] for shard in shards}


@given(st.permutations(KEYS[:60]))
def test_source_order_does_not_affect_the_shards(shuffled: list[str]) -> None:
    small = corpus(rows_per_shard=7)
    expected = members(layout(small, pa.chunked_array([KEYS[:60]])), KEYS[:60])
    found = layout(small, pa.chunked_array([shuffled[:11], shuffled[11:]]))
    assert members(found, shuffled) == expected


def test_every_row_is_in_one_shard_and_parts_have_their_shares() -> None:
    shards = layout(corpus(), pa.chunked_array([KEYS]))
    rows = np.concatenate([shard.rows for shard in shards])
    assert sorted(rows.tolist()) == list(range(600))
    share = {p: sum(len(s.rows) for s in shards if s.part == p) / 600 for p in PARTS}
    assert share == pytest.approx({"train": 0.6, "validation": 0.15, "test": 0.25}, abs=0.06)
    assert all(len(s.rows) <= 100 for s in shards)


def test_a_keys_part_does_not_depend_on_the_other_keys() -> None:
    whole = {
        key: shard.part
        for shard in layout(corpus(), pa.chunked_array([KEYS]))
        for key in (KEYS[i] for i in shard.rows)
    }
    half = KEYS[::2]
    for shard in layout(corpus(), pa.chunked_array([half])):
        assert all(whole[half[i]] == shard.part for i in shard.rows)


def test_rows_per_shard_does_not_affect_parts_or_order() -> None:
    def order(rows_per_shard: int) -> dict[str, list[int]]:
        shards = layout(corpus(rows_per_shard=rows_per_shard), pa.chunked_array([KEYS]))
        return {p: [r for s in shards if s.part == p for r in s.rows.tolist()] for p in PARTS}

    assert order(13) == order(1000)


def test_another_seed_gives_other_parts_and_another_order() -> None:
    one = members(layout(corpus(), pa.chunked_array([KEYS])), KEYS)
    other = members(layout(corpus(seed=1), pa.chunked_array([KEYS])), KEYS)
    assert one["train-00000.parquet"] != other["train-00000.parquet"]


def test_duplicate_keys_are_refused_by_name() -> None:
    with pytest.raises(StageError, match=r"1 keys occur more than once \(b, \.\.\.\)"):
        layout(corpus(), pa.chunked_array([["a", "b"], ["b"]]))


def test_an_empty_part_is_refused() -> None:
    parts = Parts(train=0.9998, validation=0.0001, test=0.0001)
    with pytest.raises(StageError, match="part 'validation' holds none of the 3 rows"):
        layout(corpus(parts=parts), pa.chunked_array([["a", "b", "c"]]))


def test_equal_hashes_are_ordered_by_key() -> None:
    hashes = np.array([9, 4, 4, 4, 1], np.uint64)
    assert rank(hashes, ["x", "c", "a", "b", "y"]).tolist() == [4, 2, 3, 1, 0]


def test_the_digits_are_read_as_they_are() -> None:
    reader = Digits(DigitsReader())
    rows = pa.concat_tables([reader.read(unit) for unit in reader.units()])
    images, labels = load_digits(return_X_y=True)
    assert rows["key"].to_pylist() == [f"digits/{i:04d}" for i in range(1797)]
    assert rows["label"].to_pylist() == labels.tolist()
    for number in (0, 899, 900, 1796):
        with Image.open(io.BytesIO(rows["image"][number].as_py())) as image:
            assert (image.mode, image.size) == ("L", (8, 8))
            pixels = np.asarray(image)
        assert np.array_equal(pixels, np.rint(images[number].reshape(8, 8) * 255 / 16))
        assert DIGIT_NAMES[labels[number]] in rows["caption"][number].as_py()
    assert len(set(rows["caption"].to_pylist())) == 40

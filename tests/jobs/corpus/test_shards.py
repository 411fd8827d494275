"""The layout of shards is a function of the keys alone; reading a damaged shard is an error."""

import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.contract import StageError
from jobs.corpus import layout
from jobs.corpus.form import IMAGES, form_of
from jobs.corpus.layout import lay_out
from jobs.corpus.reader_spec import DigitsReader
from jobs.corpus.runs import PARTS, Run, write_run
from jobs.corpus.shards import (
    ROW_GROUP,
    Index,
    columns_sha256,
    open_shard,
    rank,
    read_part,
    read_rows,
    write_rows,
    write_shard,
)
from jobs.corpus.spec import Corpus
from jobs.storage.folder import Folder

FORM = form_of("image")
KEYS = [f"k{i:04d}" for i in range(600)]


def corpus(**changes: object) -> Corpus:
    fields = {"name": "c", "reader": DigitsReader(), "rows_per_shard": 100} | changes
    return Corpus.model_validate(fields)


def checked(keys: list[str]) -> pa.Table:
    """Rows whose image is their key, repeated: sizes differ."""
    images = [key.encode() * (1 + sum(key.encode()) % 9) for key in keys]
    count = len(keys)
    columns = [keys, images, range(count), [f"a {k}" for k in keys], [1] * count, [2] * count]
    return pa.table([pa.array(c) for c in columns], names=FORM.checked.names).cast(FORM.checked)


def shards(
    spec: Corpus, keys: list[str], cuts: tuple[int, ...] = (), parts: tuple[str | None, ...] = ()
) -> dict[str, list[str]]:
    """Each shard's keys in order, from runs of the keys that end at these positions."""
    with tempfile.TemporaryDirectory() as folder:
        scratch, output = Folder.of(Path(folder) / "s"), Folder.of(Path(folder) / "o")
        runs: list[Run] = []
        for number, (start, stop) in enumerate(pairwise([0, *cuts, len(keys)])):
            positions = np.arange(start, stop, dtype=np.uint64)
            part = parts[number] if parts else None
            rows = checked(keys[start:stop])
            runs.append(write_run(scratch, f"r{number}", rows, spec, part, positions))
        found = {}
        for cut in lay_out(spec, scratch, runs):
            file = write_shard(scratch, runs, cut, output, FORM)
            table = output.read_table(file.file)
            assert table.schema.equals(IMAGES)
            assert len(table) == file.rows == cut.count
            expected = {row["key"]: row["image"] for row in checked(keys).to_pylist()}
            assert all(expected[r["key"]] == r["image"] for r in table.to_pylist())
            found[cut.file] = table["key"].to_pylist()
        return found


@settings(max_examples=25)
@given(st.permutations(KEYS[:60]), st.sets(st.integers(1, 59), max_size=4), st.booleans())
def test_source_order_and_runs_do_not_affect_the_shards(
    shuffled: list[str], cuts: set[int], by_bytes: bool
) -> None:
    small = corpus(shard_mb=150e-6) if by_bytes else corpus(rows_per_shard=7)
    expected = shards(small, KEYS[:60])
    assert len(expected) > 4
    assert shards(small, shuffled, tuple(sorted(cuts))) == expected


@given(st.sets(st.integers(1, 59), max_size=4))
@settings(max_examples=10)
def test_unshuffled_rows_keep_the_sources_order_for_any_runs(cuts: set[int]) -> None:
    keys = KEYS[:60][::-1]
    found = shards(corpus(shuffle="none", rows_per_shard=7), keys, tuple(sorted(cuts)))
    for part in PARTS:
        kept = [key for file, held in found.items() if file.startswith(part) for key in held]
        assert kept == sorted(kept, reverse=True)
        assert all(len(held) <= 7 for held in found.values())
    assert sorted(key for held in found.values() for key in held) == KEYS[:60]


def test_the_layout_does_not_depend_on_the_rows_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for spec in (corpus(), corpus(shard_mb=2e-3)):
        expected = shards(spec, KEYS, (200, 400))
        with monkeypatch.context() as patch:
            patch.setattr(layout, "BLOCK_ROWS", 37)
            assert shards(spec, KEYS, (200, 400)) == expected


def test_every_row_is_in_one_shard_and_parts_have_their_shares() -> None:
    found = shards(corpus(), KEYS)
    assert sorted(key for held in found.values() for key in held) == KEYS
    share = {p: sum(len(h) for f, h in found.items() if f.startswith(p)) / 600 for p in PARTS}
    assert share == pytest.approx({"train": 0.6, "validation": 0.15, "test": 0.25}, abs=0.06)
    assert all(len(held) <= 100 for held in found.values())


def test_shards_cut_by_size_have_that_size() -> None:
    with_sizes = {row["key"]: len(row["image"]) for row in checked(KEYS).to_pylist()}
    found = shards(corpus(shard_mb=1.5e-3, parts={"train": 1, "validation": 0, "test": 0}), KEYS)
    sizes = [sum(with_sizes[key] for key in held) for held in found.values()]
    assert len(sizes) == round(sum(with_sizes.values()) / 1500)
    assert max(sizes) - min(sizes) <= 2 * max(with_sizes.values())


def test_a_keys_part_does_not_depend_on_the_other_keys() -> None:
    def part_of(keys: list[str]) -> dict[str, str]:
        found = shards(corpus(), keys)
        return {key: file.partition("-")[0] for file, held in found.items() for key in held}

    whole = part_of(KEYS)
    assert part_of(KEYS[::2]) == {key: whole[key] for key in KEYS[::2]}


def test_rows_per_shard_does_not_affect_parts_or_order() -> None:
    def order(rows_per_shard: int) -> dict[str, list[str]]:
        found = shards(corpus(rows_per_shard=rows_per_shard), KEYS)
        return {p: [k for f, h in found.items() if f.startswith(p) for k in h] for p in PARTS}

    assert order(13) == order(1000)


def test_a_part_with_its_own_source_has_only_the_rows_of_that_source() -> None:
    spec = corpus(parts={"train": 0.9, "validation": 0.1, "test": DigitsReader()})
    found = shards(spec, KEYS, (400,), (None, "test"))
    held = {part: {k for f, h in found.items() if f.startswith(part) for k in h} for part in PARTS}
    assert held["test"] == set(KEYS[400:])
    assert held["train"] | held["validation"] == set(KEYS[:400])


def test_another_seed_gives_other_parts_and_another_order() -> None:
    one, other = shards(corpus(), KEYS), shards(corpus(seed=1), KEYS)
    assert one["train-00000.parquet"] != other["train-00000.parquet"]


@pytest.mark.parametrize("shuffle", ["global", "none"])
def test_duplicate_keys_are_refused_by_name_in_any_run_or_part(shuffle: str) -> None:
    with pytest.raises(StageError, match=r"1 keys occur more than once \(k0007\)"):
        shards(corpus(shuffle=shuffle), [*KEYS, "k0007"], (300, 600))
    spec = corpus(shuffle=shuffle, parts={"train": 0.9, "validation": 0.1, "test": DigitsReader()})
    with pytest.raises(StageError, match=r"1 keys occur more than once \(k0007\)"):
        shards(spec, [*KEYS, "k0007"], (600,), (None, "test"))


def test_an_empty_part_is_refused_unless_its_share_is_0() -> None:
    parts = {"train": 0.9998, "validation": 0.0001, "test": 0.0001}
    with pytest.raises(StageError, match="part 'validation' has none of the 3 rows"):
        shards(corpus(parts=parts), ["a", "b", "c"])
    found = shards(corpus(parts={"train": 1, "validation": 0, "test": 0}), ["a", "b", "c"])
    assert list(found) == ["train-00000.parquet"]


def test_equal_hashes_are_ordered_by_key() -> None:
    hashes = np.array([9, 4, 4, 4, 1], np.uint64)
    assert rank(hashes, ["x", "c", "a", "b", "y"]).tolist() == [4, 2, 3, 1, 0]


# -- reading ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder.of(tmp_path)
    rows = checked([f"k{i:05d}" for i in range(2500)])
    file = write_rows(folder, "train-00000.parquet", rows.cast(IMAGES))
    Index("c", (), {"train": (file,), "validation": (), "test": ()}).write(folder)
    return folder


def test_row_groups_have_a_thousand_rows_and_fewer_where_images_are_large(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_shard(folder, "train-00000.parquet") as parquet:
        groups = range(parquet.num_row_groups)
        assert [parquet.metadata.row_group(g).num_rows for g in groups] == [ROW_GROUP] * 2 + [500]
    monkeypatch.setattr("jobs.corpus.shards.ROW_GROUP_BYTES", 300)
    with tempfile.TemporaryDirectory() as own:
        scratch = Folder.of(own)
        spec = corpus(parts={"train": 1, "validation": 0, "test": 0})
        run = write_run(scratch, "r", checked(KEYS), spec, None, np.arange(600, dtype=np.uint64))
        cut = lay_out(spec, scratch, [run])[0]
        file = write_shard(scratch, [run], cut, scratch / "o", FORM)
        with open_shard(scratch / "o", file.file) as parquet:
            sizes = [
                parquet.read_row_group(g)["image"].nbytes for g in range(parquet.num_row_groups)
            ]
    assert len(sizes) > 3


def test_rows_are_read_from_their_row_groups_alone(folder: Folder) -> None:
    rows = read_rows(folder, "train-00000.parquet", 995, 2003, ["key"])
    assert rows["key"].to_pylist() == [f"k{i:05d}" for i in range(995, 2003)]
    assert (
        read_part(folder, "train", ["key"])["key"].to_pylist()[995:2003] == rows["key"].to_pylist()
    )


def test_a_missing_or_altered_shard_is_one_sentence(folder: Folder) -> None:
    name = "train-00000.parquet"
    with pytest.raises(StageError, match="is not the one"):
        read_rows(folder, name, 0, 2501, ["key"])
    data = folder.read_bytes(name)
    for broken in (data[:-30], data[:100] + bytes(4000) + data[4100:]):
        folder.write_bytes(name, broken)
        with pytest.raises(StageError, match=r"is not the one that _index\.json lists"):
            read_part(folder, "train", ["key", "image", "caption"])
        with pytest.raises(StageError, match=r"is not the one that _index\.json lists"):
            read_rows(folder, name, 0, 10, ["key", "image", "caption"])
    folder.write_bytes(name, data)
    write_rows(folder, name, checked(["a"]).cast(IMAGES))
    with pytest.raises(StageError, match="1 rows"):
        read_part(folder, "train", ["key"])
    folder.delete(name)
    with pytest.raises(StageError, match="is missing; build the corpus again"):
        read_part(folder, "train", ["key"])


def light_rows(keys: list[str], labels: list[int | None], captions: list[str | None]) -> pa.Table:
    count = len(keys)
    values = [keys, [b"i"] * count, labels, captions, [1] * count, [2] * count]
    arrays = [pa.array(v, field.type) for v, field in zip(values, IMAGES, strict=True)]
    return pa.Table.from_arrays(arrays, schema=IMAGES)


ROWS = st.lists(
    st.tuples(
        st.text(max_size=3),
        st.none() | st.integers(0, 3),
        st.none() | st.text(max_size=3),
    ),
    max_size=8,
)


def rows_of(values: list[tuple[str, int | None, str | None]]) -> pa.Table:
    keys, labels, captions = ([row[at] for row in values] for at in range(3))
    return light_rows(keys, labels, captions)  # type: ignore[arg-type]


@given(one=ROWS, other=ROWS, cut=st.integers(0, 8))
def test_the_digest_of_columns_is_of_their_values(
    one: list[tuple[str, int | None, str | None]],
    other: list[tuple[str, int | None, str | None]],
    cut: int,
) -> None:
    table = rows_of(one)
    digest = columns_sha256(table, FORM)
    assert columns_sha256(pa.concat_tables([table[:cut], table[cut:]]), FORM) == digest
    assert columns_sha256(pa.concat_tables([rows_of(other), table])[len(other) :], FORM) == digest
    assert (columns_sha256(rows_of(other), FORM) == digest) == (one == other)


@given(column=st.sampled_from(["key", "label", "caption", "width"]), row=st.integers(0, 599))
@settings(max_examples=20)
def test_labels_keys_and_captions_are_checked_without_the_images(column: str, row: int) -> None:
    labels = [n % 3 for n in range(600)]
    table = light_rows(KEYS, labels, [f"a {key}" for key in KEYS])  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as name:
        folder = Folder.of(name)
        file = write_rows(folder, "train-00000.parquet", table)
        Index("c", ("a", "b", "c"), {"train": (file,), "validation": (), "test": ()}).write(folder)
        assert read_part(folder, "train", ["label"])["label"].to_pylist() == labels
        values = table[column].to_pylist()
        values[row] = "other" if isinstance(values[row], str) else 77
        at = table.column_names.index(column)
        field = IMAGES.field(column)
        changed = table.set_column(at, field, pa.array(values, field.type))
        assert write_rows(folder, "train-00000.parquet", changed).rows == file.rows
        for columns in (["label"], ["key", "caption"], FORM.light):
            with pytest.raises(StageError, match="other keys, labels or captions"):
                read_part(folder, "train", columns)

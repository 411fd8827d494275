"""A label means the same in every format, or its row is counted: nothing is guessed."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.contract import StageError
from jobs.corpus.readers import Reader, reader_of
from jobs.corpus.readers.labels import Naming, dense_names, scanned_names, whole_number
from jobs.corpus.readers.rows import UNKNOWN
from jobs.corpus.spec import Corpus
from jobs.noise import files
from jobs.noise.classes import Classes
from jobs.noise.source import Source

Picture = Callable[..., bytes]
WriteTar = Callable[[Path, Mapping[str, bytes]], Path]

ANIMALS = ["cat", "dog", "fox", "owl"]
SAME_FOLDER = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def reader(**fields: object) -> Reader:
    return reader_of(Corpus.model_validate({"name": "c", "reader": fields}).reader)


def labels(source: Reader) -> list[int | None]:
    tables = [rows for unit in source.units() for rows in source.read(unit, Counter())]
    found: list[int | None] = pa.concat_tables(tables)["label"].to_pylist()
    return found


def details(source: Reader) -> list[str | None]:
    tables = [rows for unit in source.units() for rows in source.read(unit, Counter())]
    found: list[str | None] = pa.concat_tables(tables)["detail"].to_pylist()
    return found


def csv_labels(folder: Path, texts: list[str], picture: Picture, **fields: object) -> Reader:
    (folder / "a.jpg").write_bytes(picture(0))
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([["path", "label", "key"], *(["a.jpg", t, "k"] for t in texts)])
    (folder / "t.csv").write_text(stream.getvalue(), newline="")
    return reader(kind="table", path=str(folder / "t.csv"), label="label", key="key", **fields)


def parquet_labels(folder: Path, values: Any, picture: Picture, **fields: object) -> Reader:
    table = pa.table({"image": [picture(0)] * len(values), "label": values})
    pq.write_table(table, folder / "t.parquet")
    return reader(kind="parquet", path=str(folder / "t.parquet"), label="label", **fields)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (2, 2),
        (2.0, 2),
        ("2", 2),
        ("2.0", 2),
        ("fox", 2),
        (4, 4),  # a number, but of no class: `check` counts it as unknown
        (-1, UNKNOWN),
        (2.5, UNKNOWN),
        ("Fox", UNKNOWN),
        ("2.5", UNKNOWN),
        ("1e0", UNKNOWN),
        (float("nan"), UNKNOWN),
        (float("inf"), UNKNOWN),
        (True, UNKNOWN),
        ([2], UNKNOWN),
        ({"label": 2}, UNKNOWN),
        (None, None),
        ("", None),
        (" ", None),
    ],
)
def test_a_json_value_is_a_label_if_it_is_a_name_or_a_whole_number(
    tmp_path: Path, picture: Picture, write_tar: WriteTar, value: object, label: int | None
) -> None:
    text = json.dumps({"label": value, "caption": "a cat"}).encode()
    write_tar(tmp_path / "0.tar", {"a.jpg": picture(0), "a.json": text})
    source = reader(
        kind="webdataset",
        path=str(tmp_path),
        caption="json:caption",
        label="json:label",
        classes=ANIMALS,
    )
    assert labels(source) == [label]


@pytest.mark.parametrize("value", [["a", "b"], {"text": "a"}, True, 3, 1.5, float("nan")])
def test_a_json_value_of_another_type_is_no_caption(
    tmp_path: Path, picture: Picture, write_tar: WriteTar, value: object
) -> None:
    text = json.dumps({"caption": value}).encode()
    write_tar(tmp_path / "0.tar", {"a.jpg": picture(0), "a.json": text})
    source = reader(kind="webdataset", path=str(tmp_path), caption="json:caption")
    (rows,) = (rows for unit in source.units() for rows in source.read(unit, Counter()))
    (row,) = rows.to_pylist()
    assert (row["fault"], row["caption"]) == ("caption_not_text", None)
    assert json.dumps(value) in row["detail"]


@SAME_FOLDER
@given(st.lists(st.sampled_from([*range(4), *ANIMALS]), min_size=1, max_size=12))
def test_numbers_and_names_are_the_same_label_in_every_format(
    tmp_path: Path, picture: Picture, write_tar: WriteTar, given: list[int | str]
) -> None:
    wanted = [ANIMALS.index(v) if isinstance(v, str) else v for v in given]
    for texts in ([str(v) for v in given], [f"{v}.0" if isinstance(v, int) else v for v in given]):
        assert labels(csv_labels(tmp_path, texts, picture, classes=ANIMALS)) == wanted
        source = parquet_labels(tmp_path, pa.array(texts), picture, classes=ANIMALS)
        assert labels(source) == wanted
        members = {}
        for number, text in enumerate(texts):
            members |= {f"{number:02}.jpg": picture(0), f"{number:02}.cls": text.encode()}
        write_tar(tmp_path / "tar/0.tar", members)
        path = str(tmp_path / "tar")
        fields = {"caption": None, "label": "cls", "classes": ANIMALS}
        assert labels(reader(kind="webdataset", path=path, **fields)) == wanted
    for kind in (pa.int8(), pa.float32(), pa.float64()):
        column = pa.array(wanted).cast(kind)
        assert labels(parquet_labels(tmp_path, column, picture, classes=ANIMALS)) == wanted


def test_a_column_of_truth_values_is_no_label(tmp_path: Path, picture: Picture) -> None:
    with pytest.raises(StageError, match="`label`, holds bool instead of integers or names"):
        parquet_labels(tmp_path, pa.array([True, False]), picture).units()


def test_labels_without_a_list_of_classes_are_the_same_in_csv_and_parquet(
    tmp_path: Path, picture: Picture
) -> None:
    """pandas writes the integers of a column with gaps as 0.0, 1.0, ..."""
    assert csv_labels(tmp_path, ["0.0", "1", "2.0"], picture).classes().ids == ("0", "1", "2")
    assert parquet_labels(tmp_path, pa.array([0.0, 1.0, 2.0]), picture).classes().ids == (
        "0",
        "1",
        "2",
    )
    assert csv_labels(tmp_path, ["1.0", "1.5"], picture).classes().ids == ("1.0", "1.5")


@pytest.mark.parametrize("other", ["ape ", " ape", "Ape", "APE", "\u212bpe"])
def test_names_that_differ_in_blanks_or_case_are_refused_unless_listed(
    tmp_path: Path, picture: Picture, other: str
) -> None:
    first = "\u00e5pe" if other.startswith("\u212b") else "ape"
    message = "differ only in blanks, invisible characters or letter case; correct the labels"
    for source in (
        csv_labels(tmp_path, [first, other, "bee"], picture),
        parquet_labels(tmp_path, pa.array([first, other, "bee"]), picture),
    ):
        with pytest.raises(StageError, match=message):
            source.classes()
    source = csv_labels(tmp_path, [first, other], picture, classes=[first, "bee"])
    assert labels(source) == [0, UNKNOWN]
    assert f"is it the class {first!r}?" in str(details(source)[1])


def test_folders_that_differ_in_case_or_are_parts_are_refused(
    tmp_path: Path, picture: Picture
) -> None:
    for names, message in (
        (["Ape", "ape"], "the classes 'Ape' and 'ape' differ only in"),
        (["train", "val"], "has the folders train, val, which are parts, not classes"),
        (["Train2017", "test_2017"], "which are parts"),
        (["training"], "which are parts"),
    ):
        root = tmp_path / names[0]
        for name in names:
            (root / name).mkdir(parents=True)
            (root / name / "a.jpg").write_bytes(picture(0))
        with pytest.raises(StageError, match=message):
            reader(kind="imagefolder", path=str(root)).classes()
    for name in ("train", "bus"):  # vehicles
        (tmp_path / "v" / name).mkdir(parents=True)
    assert reader(kind="imagefolder", path=str(tmp_path / "v")).classes().ids == ("bus", "train")


def test_numbers_that_are_names_of_other_classes_are_never_positions(
    tmp_path: Path, picture: Picture
) -> None:
    shifted = ["1", "2", "3"]
    source = csv_labels(tmp_path, ["1", "3", "0"], picture, classes=shifted)
    assert labels(source) == [0, 2, UNKNOWN]
    swapped = ["1", "2", "0"]
    for fields in ({"kind": "table", "path": str(tmp_path / "t.csv"), "label": "label"},):
        with pytest.raises(StageError, match=r"position 0 .* is called '1'.* name the classes in"):
            reader(**fields, classes=swapped).classes()
    with pytest.raises(StageError, match="may mean a name or a position"):
        parquet_labels(tmp_path, pa.array([0, 1]), picture, classes=swapped).classes()
    named = parquet_labels(tmp_path, pa.array(["0", "1"]), picture, classes=swapped)
    assert labels(named) == [2, 0]  # a column of text has names


@given(st.permutations(ANIMALS), st.lists(st.sampled_from(ANIMALS), min_size=1, max_size=20))
@SAME_FOLDER
def test_each_files_own_class_names_are_read(
    tmp_path: Path, picture: Picture, order: list[str], names: list[str]
) -> None:
    for file, given_order in (("a", ANIMALS), ("b", order)):
        meta = {"info": {"features": {"label": {"names": given_order, "_type": "ClassLabel"}}}}
        numbers = [given_order.index(name) for name in names]
        table = pa.table({"image": [picture(0)] * len(names), "label": numbers})
        metadata = {"huggingface": json.dumps(meta)}
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / f"{file}.parquet")
    source = reader(kind="parquet", path=str(tmp_path), label="label")
    assert source.classes().ids == tuple(ANIMALS)
    assert labels(source) == [ANIMALS.index(name) for name in names] * 2
    if order != ANIMALS:
        listed = reader(kind="parquet", path=str(tmp_path), label="label", classes=ANIMALS)
        with pytest.raises(StageError, match="gives the names of `classes` in another order"):
            labels(listed)


def test_a_file_with_a_class_that_the_first_lacks_is_refused(
    tmp_path: Path, picture: Picture
) -> None:
    for file, names in (("a", ["cat", "dog"]), ("b", ["cat", "eel"])):
        meta = {"info": {"features": {"label": {"names": names}}}}
        table = pa.table({"image": [picture(0)], "label": [0]})
        metadata = {"huggingface": json.dumps(meta)}
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / f"{file}.parquet")
    source = reader(kind="parquet", path=str(tmp_path), label="label")
    with pytest.raises(StageError, match=r"b\.parquet: its metadata names a class 'eel'"):
        labels(source)


@given(st.lists(st.integers(0, 50), min_size=1), st.integers(0, 2**62))
def test_the_classes_of_numbers_are_bounded_by_the_rows(numbers: list[int], far: int) -> None:
    assert dense_names(numbers, "x") == [str(n) for n in range(max(numbers) + 1)]
    if far > 2 * len({*numbers, far}) + 1_000:
        with pytest.raises(StageError, match=r"but only .* different labels"):
            dense_names([*numbers, far], "x")
    with pytest.raises(StageError, match="labels begin at 0"):
        dense_names([*numbers, -1], "x")


@given(st.text(max_size=8))
def test_only_decimal_digits_are_a_number(text: str) -> None:
    found = whole_number(text)
    if found is not None:
        assert float(text) == found
    assert Naming(tuple(ANIMALS)).of_text(text) in (UNKNOWN, found, *range(4))


def test_blank_names_are_no_class() -> None:
    assert scanned_names(["", " ", "\t", "b", "a"], "x") == ["a", "b"]


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    "content",
    [b"a Ape\nb Bee\n", b"a Ape\r\nb Bee\r\n", b'{"a": "Ape", "b": "Bee"}', b"\n a  Ape \n b Bee"],
)
def test_a_names_file_is_read_with_and_without_a_byte_order_mark(
    tmp_path: Path, content: bytes
) -> None:
    for name in "ab":
        (tmp_path / "root" / name).mkdir(parents=True)
    names = tmp_path / "names.txt"
    source = reader(kind="imagefolder", path=str(tmp_path / "root"), class_names=str(names))
    for start in (b"", BOM):
        names.write_bytes(start + content)
        assert source.classes().names == ("Ape", "Bee")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"A Ape\nb Bee\n", r"no name for 1 of 2 classes \(the first: 'a'; the file begins with"),
        (b"x Ape\ny Bee\n", r"no name for 2 of 2 classes"),
        (b"a Ape\nb Bee\na Ant\n", "gives 'a' two names, 'Ape' and 'Ant'"),
        (b'{"a": "Ape", "a": "Ant", "b": "Bee"}', "gives 'a' two names"),
        ("a Ape\nb Bee\n".encode("utf-16"), "probably UTF-16; convert it"),
        (b'{"a": true, "b": "Bee"}', "'a' should have a name or"),
        (b'{"a": ["x", 3], "b": "Bee"}', "'a' should have a name or"),
    ],
)
def test_a_names_file_that_does_not_apply_is_one_sentence(
    tmp_path: Path, content: bytes, message: str
) -> None:
    for name in "ab":
        (tmp_path / "root" / name).mkdir(parents=True)
    (tmp_path / "names.txt").write_bytes(content)
    fields = {"kind": "imagefolder", "path": str(tmp_path / "root")}
    with pytest.raises(StageError, match=message):
        reader(**fields, class_names=str(tmp_path / "names.txt")).classes()


def test_a_noises_files_are_read_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(BOM + b"0.9,0.1\r\n0.2,0.8\r\n")
    found = files.matrix(Source(str(tmp_path / "m.csv"), None), Classes(("a", "b")))
    assert np.array_equal(found, [[0.9, 0.1], [0.2, 0.8]])
    for name, content in (("g.csv", b"class,group\na,1\nb,1\n"), ("g.json", b'{"a": 1, "b": 1}')):
        (tmp_path / name).write_bytes(BOM + content)
        source = Source(str(tmp_path / name), None)
        assert files.grouping(source, Classes(("a", "b"))).tolist() == [0, 0]
    (tmp_path / "t.csv").write_bytes(BOM + b"key,label\nk0,b\n")
    read = files.labels_by_key(
        Source(str(tmp_path / "t.csv"), None), "key", "label", pa.array(["k0"]), Classes(("a", "b"))
    )
    assert read.tolist() == [1]


@pytest.mark.parametrize("fields", [{}, {"columns": ["path", "label"]}])
def test_a_table_is_read_with_a_byte_order_mark(
    tmp_path: Path, picture: Picture, fields: dict[str, object]
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(0))
    header = b"" if fields else b"path,label\n"
    (tmp_path / "t.csv").write_bytes(BOM + header + b"a.jpg,cat\n")
    source = reader(kind="table", path=str(tmp_path / "t.csv"), label="label", **fields)
    (rows,) = (rows for unit in source.units() for rows in source.read(unit, Counter()))
    (row,) = rows.to_pylist()
    assert (row["key"], row["label"], row["fault"]) == ("a.jpg", 0, None)
    assert row["image"] == picture(0)


def test_a_json_field_that_is_given_twice_has_no_value(
    tmp_path: Path, picture: Picture, write_tar: WriteTar
) -> None:
    members = {"a.jpg": picture(0), "a.json": b'{"label": "ape", "label": "bee", "x": 1, "x": 2}'}
    members |= {"b.jpg": picture(1), "b.json": b'{"label": "bee", "x": 1, "x": 2}'}
    write_tar(tmp_path / "0.tar", members)
    fields: dict[str, Any] = {"label": "json:label", "classes": ["ape", "bee"], "caption": None}
    found = reader(kind="webdataset", path=str(tmp_path), **fields)
    (rows,) = (rows for unit in found.units() for rows in found.read(unit, Counter()))
    assert rows["fault"].to_pylist() == ["broken_json", None]
    assert rows["detail"][0].as_py() == "'label' is given twice"
    assert rows["label"][1].as_py() == 1


def test_labels_that_cannot_be_stored_are_refused(tmp_path: Path, picture: Picture) -> None:
    large = pa.array([0, 2**64 - 1], pa.uint64())
    with pytest.raises(StageError, match="holds the label 18,446,744,073,709,551,615, but only"):
        parquet_labels(tmp_path, large, picture).classes()
    offsets = np.array([0, 1, 2], np.int32).tobytes()
    latin = pa.StringArray.from_buffers(2, pa.py_buffer(offsets), pa.py_buffer(b"a\xe9"))
    with pytest.raises(StageError, match="column 'label' holds more than text"):
        parquet_labels(tmp_path, latin, picture).classes()

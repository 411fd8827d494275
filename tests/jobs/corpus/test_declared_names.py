"""Names that a source declares and names that are listed agree, or the difference is said."""

import datetime
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.contract import StageError
from jobs.corpus.readers import Classes, reader_of
from jobs.corpus.readers.labels import scanned_names
from jobs.corpus.spec import Corpus

Picture = Callable[..., bytes]
WriteTar = Callable[[Path, Mapping[str, bytes]], Path]


def read(
    reader: Mapping[str, object], notes: Counter[str] | None = None
) -> tuple[Classes, list[dict[str, Any]]]:
    """The classes, and every row that the reader gives."""
    modality = "text" if "fields" in reader else "image"
    spec = Corpus.model_validate({"name": "c", "modality": modality, "reader": reader}).reader
    source, counted = reader_of(spec), Counter[str]() if notes is None else notes
    tables = [rows for unit in source.units() for rows in source.read(unit, counted)]
    return source.classes(), [row for rows in tables for row in rows.to_pylist()]


def named(found: tuple[Classes, list[dict[str, Any]]]) -> list[str]:
    return [found[0].ids[row["label"]] for row in found[1]]


def parquet(path: Path, names: object = None, **columns: Any) -> dict[str, object]:
    """A file of images with these columns, and metadata with these names of its labels."""
    table = pa.table({"image": [b"x"] * len(columns["label"]), "text": columns["label"], **columns})
    if names is not None:
        meta = {"info": {"features": {"label": {"names": names}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(meta)})
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path)
    return {"kind": "parquet", "path": str(path.parent), "label": "label"}


@pytest.mark.parametrize(
    "classes", [["dog", "cat"], ["Dog", "CAT"], ["dog", "owl"], ["x", "cat "]], ids=str
)
def test_a_declared_name_is_never_given_to_another_number(
    tmp_path: Path, classes: list[str]
) -> None:
    reader = parquet(tmp_path / "d/a.parquet", ["cat", "dog"], label=[0, 1])
    with pytest.raises(StageError, match="the names of `classes` in another order"):
        read(reader | {"classes": classes})
    assert named(read(reader | {"classes": ["Cat", "hound"]})) == ["Cat", "hound"]


def test_other_names_for_numbers_are_those_of_the_first_files_numbers(tmp_path: Path) -> None:
    reader = parquet(tmp_path / "d/a.parquet", ["cat", "dog"], label=[0, 1])
    parquet(tmp_path / "d/b.parquet", ["dog", "cat"], label=[0, 1])
    assert named(read(reader)) == ["cat", "dog", "dog", "cat"]
    assert named(read(reader | {"classes": ["x", "y"]})) == ["x", "y", "y", "x"]
    parquet(tmp_path / "d/b.parquet", ["cat", "eel"], label=[0, 1])
    with pytest.raises(StageError, match="a class 'eel' that the first file does not have; write"):
        read(reader | {"classes": ["x", "y"]})


@pytest.mark.parametrize("names", [["cat", ""], ["cat", " "], ["cat", None], {"0": "cat"}], ids=str)
def test_metadata_of_no_use_is_replaced_by_a_list(tmp_path: Path, names: object) -> None:
    reader = parquet(tmp_path / "d/a.parquet", names, label=[0, 1])
    with pytest.raises(StageError, match="a text for each; give the names in `classes`"):
        read(reader)
    assert named(read(reader | {"classes": ["cat", "dog"]})) == ["cat", "dog"]


@pytest.mark.parametrize(
    "column",
    [[False, True], [0.5, 1.5], [1, 0], [b"a", b"b"], [datetime.date(2020, 1, n) for n in (1, 2)]],
    ids=str,
)
def test_a_name_in_a_column_is_text(tmp_path: Path, column: list[object]) -> None:
    reader = parquet(tmp_path / "d/a.parquet", label=[0, 1], name=column)
    with pytest.raises(StageError, match=r"the reader's `label_name`, holds .* instead of text"):
        read(reader | {"label_name": "name"})


def test_a_column_of_names_that_cannot_apply_is_refused(tmp_path: Path) -> None:
    reader = parquet(tmp_path / "d/a.parquet", label=["x", "y"], name=["a", "b"])
    with pytest.raises(StageError, match="so `label_name` does not apply; leave it out"):
        read(reader | {"label_name": "name"})
    reader = parquet(tmp_path / "d/a.parquet", label=[0, 1], name=["a", " "])
    with pytest.raises(StageError, match="exactly one name; give the names in `classes`"):
        read(reader | {"label_name": "name"})


def test_a_key_that_is_no_number_is_no_key(tmp_path: Path) -> None:
    reader = parquet(tmp_path / "d/a.parquet", label=["x", "y"], id=[1.0, float("nan")])
    for kind in (reader, {**reader, "fields": {"text": "text"}}):
        kept = {name: value for name, value in kind.items() if name != "label" or kind is reader}
        assert [row["key"] for row in read(kept | {"key": ["id"]})[1]] == ["1", None]


@pytest.mark.parametrize("labels", [["01", "1", "2"], ["1.0", "01"], ["00", "0"]], ids=str)
def test_one_number_in_two_spellings_is_no_two_classes(labels: list[str]) -> None:
    with pytest.raises(StageError, match="are one number; write it in one way, or list"):
        scanned_names(labels, "t.csv")
    assert scanned_names(["01", "02", "1a"], "t.csv") == ["01", "02", "1a"]
    assert scanned_names(["01", "02", "10"], "t.csv") == ["01", "02", "10"]


def test_a_label_that_looks_like_one_to_be_left_out_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\na,x\nb,None\n")
    reader = {"kind": "table", "path": str(tmp_path / "t.csv"), "fields": {}}
    with pytest.raises(StageError, match="holds the label 'None', and `unlabelled` lists 'none'"):
        read(reader | {"unlabelled": ["none"]})
    assert named(read(reader | {"unlabelled": ["None"]})) == ["x"]


@pytest.mark.parametrize("header", ["path, label", "path,Label", "path,LABEL "])
def test_a_column_that_looks_like_the_named_one_is_named(tmp_path: Path, header: str) -> None:
    (tmp_path / "t.csv").write_text(f"{header}\na.jpg,x\n")
    theirs = header.partition(",")[2]
    reader = {"kind": "table", "path": str(tmp_path / "t.csv")}
    with pytest.raises(StageError, match=f"name it as the table does: {theirs!r}"):
        read(reader | {"label": "label"})
    assert read(reader | {"label": theirs})[0].ids == ("x",)
    found = parquet(tmp_path / "d/a.parquet", label=["x"], Class=["y"])
    with pytest.raises(StageError, match="name it as the file does, 'Class'"):
        read(found | {"label": "class"})


# -- files of names --------------------------------------------------------------------------------


def tree(folder: Path, picture: Picture, *classes: str) -> dict[str, object]:
    for number, name in enumerate(classes):
        (folder / "root" / name).mkdir(parents=True, exist_ok=True)
        (folder / "root" / name / f"{number}.jpg").write_bytes(picture(number))
    return {"kind": "imagefolder", "path": str(folder / "root"), "class_names": str(folder / "n")}


@pytest.mark.parametrize(
    "content",
    ['{"\u00b2": "cat", "b": "dog"}', "\u00b2 a cat\nb dog", f"{'9' * 5000} a cat\nb dog"],
)
def test_a_number_that_is_none_in_a_names_file_is_an_id(
    tmp_path: Path, picture: Picture, content: str
) -> None:
    reader = tree(tmp_path, picture, "a", "b")
    (tmp_path / "n").write_text(content)
    with pytest.raises(StageError, match=r"has no name for 1 of 2 classes \(the first: 'a'"):
        read(reader)


@pytest.mark.parametrize("name", ["", " "])
def test_a_class_is_not_named_by_blanks(tmp_path: Path, picture: Picture, name: str) -> None:
    reader = tree(tmp_path, picture, "a", "b")
    (tmp_path / "n").write_text(json.dumps({"a": name, "b": "dog"}))
    with pytest.raises(StageError, match="'a' should have a name or"):
        read(reader)


def test_folders_that_are_numbers_are_named_as_the_message_says(
    tmp_path: Path, picture: Picture
) -> None:
    reader = tree(tmp_path, picture, "0", "1")
    (tmp_path / "n").write_text("0 cat\n1 dog\n")
    with pytest.raises(StageError, match="the class 0 has the line `0 0 NAME`, in JSON the value"):
        read(reader)
    for content in ("0 0 hot dog\n1 1 dog\n", '{"0": ["0", "hot dog"], "1": ["1", "dog"]}'):
        (tmp_path / "n").write_text(content)
        assert read(reader)[0].names == ("hot dog", "dog")


# -- ILSVRC's tars ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        (["n01.tar", "n02.tar", "n01.tar"], "contains n01.tar twice; keep one, or merge the two"),
        (["n01.tar", "N01.tar"], "differ only in blanks, invisible characters or letter case"),
    ],
)
def test_a_class_has_one_tar(
    tmp_path: Path, write_tar: WriteTar, picture: Picture, members: list[str], fault: str
) -> None:
    parts = [write_tar(tmp_path / f"{n}", {f"{n}.JPEG": picture(n)}) for n in range(len(members))]
    outer = [
        write_tar(tmp_path / f"o{n}", {name: part.read_bytes()}).read_bytes()
        for n, (name, part) in enumerate(zip(members, parts, strict=True))
    ]
    (tmp_path / "train.tar").write_bytes(b"".join(outer))
    with pytest.raises(StageError, match=fault):
        read({"kind": "ilsvrc_tar", "path": str(tmp_path / "train.tar")})


def flat(folder: Path, picture: Picture, write_tar: WriteTar, **names: str) -> dict[str, object]:
    images = {"v_1.JPEG": picture(0), f"v_{'9' * 5000}.JPEG": picture(1)}
    write_tar(folder / "v.tar", images)
    for name, content in names.items():
        (folder / name).write_text(content)
    paths = {name: str(folder / name) for name in names}
    return {"kind": "ilsvrc_tar", "path": str(folder / "v.tar")} | paths


def test_a_number_stands_for_one_class(
    tmp_path: Path, picture: Picture, write_tar: WriteTar
) -> None:
    synsets = "1 n02 dog\n1 n01 cat\n2 n03 owl\n"
    reader = flat(tmp_path, picture, write_tar, synsets=synsets, ground_truth="1\n2\n")
    with pytest.raises(StageError, match="gives two classes the number 1; correct one"):
        read(reader)


def test_a_truth_without_its_image_is_counted(
    tmp_path: Path, picture: Picture, write_tar: WriteTar
) -> None:
    synsets = "1 n02 dog\n2 n01 cat\n"
    reader = flat(tmp_path, picture, write_tar, synsets=synsets, ground_truth="1\n2\n2\n")
    notes = Counter[str]()
    _, rows = read(reader, notes)
    assert [row["label"] for row in rows] == [1, None]
    assert notes["truth_without_image"] == 2

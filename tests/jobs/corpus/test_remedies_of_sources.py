"""What a message about a source's files, its parts or its lists tells its user to do works.

Each case raises its message; the remedy is read from the message and followed; then the corpus is
built, with the classes and rows that the source has.
"""

import gzip
import io
import json
import os
import re
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError
from scenes import CLASSES as SCENE_CLASSES
from scenes import png, scene

from followed import Table
from jobs.contract import StageError
from jobs.corpus.shards import read_part
from jobs.corpus.spec import Corpus
from jobs.images.pixels import prepared
from jobs.images.spec import ImageInput
from jobs.storage import bounded
from jobs.validation import in_words
from tests.jobs.corpus.refused import TRAIN, Build, Case, Follow, Picture, check

CASES = Table("cat dog")
case = CASES.case
ROWS = "path,label\na.jpg,cat\nb.jpg,dog\n"
LABELLED = {"kind": "table", "label": "label"}
ON_PARQUET = {"kind": "parquet", "label": "label"}


def settings(path: str, value: Any) -> Follow:
    """Give a field this value, where the message says what kind of value."""
    return lambda case, found: case.set(path, value)


def content(name: str, data: str) -> Follow:
    """Write this in place of the file that the message names."""

    def follow(case: Case, found: re.Match[str]) -> None:
        path = Path(found["path"])
        assert path.name == name
        path.write_text(data)

    return follow


def again(make: Callable[[Case], None]) -> Follow:
    """Follow "download it again": the source is as it was made first."""
    return lambda case, found: make(case)


def remove(case: Case, found: re.Match[str]) -> None:
    Path(found["path"]).unlink()


def two_images(case: Case) -> None:
    case.images("source/cat/a.jpg", "source/dog/b.jpg")
    case.reader(kind="imagefolder")


def whole_table(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    case.text("t.csv", ROWS, **LABELLED)


def part_for_tests(case: Case, rows: str, **fields: Any) -> None:
    """A test part with a table of its own, of one other image."""
    case.images("a.jpg", "b.jpg", "c.jpg")
    main = dict(case.settings.get("reader", {}))
    case.text("test.csv", rows, kind="table", **fields)
    case.settings["parts"] = {**TRAIN, "test": case.settings["reader"]}
    case.settings["reader"] = main


# -- parts -----------------------------------------------------------------------------------------

SAME = "give both the same class names"


@case(
    rf"parts\.test has classes that corpus\.reader lacks \((?P<name>\w+)\); {SAME}",
    lambda case, found: part_for_tests(case, "path,label\nc.jpg,cat\n", label="label"),
)
def a_part_with_another_class(case: Case) -> None:
    whole_table(case)
    part_for_tests(case, "path,label\nc.jpg,cats\n", label="label")


@case(
    rf"parts\.test has no classes, but corpus\.reader has some; {SAME}",
    lambda case, found: case.set("parts.test.label", "label"),
)
def a_part_without_classes(case: Case) -> None:
    whole_table(case)
    case.set("reader.caption", "label")
    part_for_tests(case, "path,label\nc.jpg,cat\n", caption="label")


@case(
    r"only one of corpus\.reader and corpus\.parts\.test has captions; name a caption in both",
    lambda case, found: case.set("parts.test.caption", "label"),
)
def a_part_without_captions(case: Case) -> None:
    whole_table(case)
    case.set("reader.caption", "label")
    part_for_tests(case, "path,label\nc.jpg,cat\n", label="label")


def declared(case: Case, *names: str) -> None:
    """A test part of one row, whose metadata gives these names."""
    image, meta = case.picture(9), {"info": {"features": {"label": {"names": list(names)}}}}
    table = pa.table({"image": [image], "label": [0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(meta)})
    pq.write_table(table, case.folder / "test.parquet")
    path = str(case.folder / "test.parquet")
    case.settings["parts"] = {**TRAIN, "test": {**ON_PARQUET, "path": path}}


@case(
    r"two classes are called 'crane', .*; give both the same classes in one order",
    lambda case, found: declared(case, "crane", "crane"),
    "crane crane",
)
def two_classes_of_one_name_in_another_order(case: Case) -> None:
    case.settings["allow_empty_classes"] = True
    case.parquet("a.parquet", ["crane", "crane"], label=[0, 1])
    case.reader(**ON_PARQUET)
    declared(case, "crane")


@case(
    r"no row of the source fits `where` .*; correct (?P<where>corpus\.reader)",
    lambda case, found: case.set(f"{found['where']}.where", {"year": 1}),
)
def rows_that_are_all_left_out(case: Case) -> None:
    case.parquet("a.parquet", label=["cat", "dog"], year=[1, 1])
    case.reader(**ON_PARQUET, where={"year": 2})


@case(
    r"all 2 rows are bad: .*; repair the source or correct corpus\.reader",
    lambda case, found: whole_table(case),
)
def rows_that_are_all_bad(case: Case) -> None:
    case.text("t.csv", ROWS, **LABELLED)


@case(
    r"part 'test' has none of the 2 rows; give it a larger share in `parts`",
    settings("parts", {"train": 1, "validation": 0, "test": 0}),
)
def a_part_with_a_small_share(case: Case) -> None:
    whole_table(case)
    case.settings["parts"] = {"train": 0.999, "validation": 0, "test": 0.001}


LINES = [{"text": "a", "label": "cat", "id": 1}, {"text": "b", "label": "dog", "id": 1}]


@case(
    r"more than once \(1\); .* remove or rename the repeated rows of the source",
    lambda case, found: (case.folder / "t.jsonl").write_text(
        "\n".join(json.dumps({**line, "id": n}) for n, line in enumerate(LINES))
    ),
)
def a_key_of_two_lines(case: Case) -> None:
    text = "\n".join(map(json.dumps, LINES))
    case.text("t.jsonl", text, kind="jsonl", fields={}, key=["id"])


# -- columns ---------------------------------------------------------------------------------------


def second(names: list[str]) -> Follow:
    """Write the second file with other names."""
    return lambda case, found: case.parquet("b.parquet", names, label=[0, 1])


@case(
    r"names a class 'owl' that the first file does not have; write all files with the same classes",
    second(["cat", "dog"]),
    "cat cat dog dog",
)
def a_file_with_another_class(case: Case) -> None:
    case.parquet("a.parquet", ["cat", "dog"], label=[0, 1])
    case.parquet("b.parquet", ["cat", "owl"], label=[0, 1])
    case.reader(**ON_PARQUET)


@case(
    r"calls two 'cat'; write all files with the same order of classes",
    second(["cat", "dog"]),
    "cat cat dog dog",
)
def a_file_with_one_name_twice(case: Case) -> None:
    case.parquet("a.parquet", ["cat", "dog"], label=[0, 1])
    case.parquet("b.parquet", ["cat", "cat"], label=[0, 1])
    case.reader(**ON_PARQUET)


@case(
    r"column 'label' holds more than whole numbers .*; correct it",
    lambda case, found: case.parquet("a.parquet", ["cat", "dog"], label=[0.0, 1.0]),
)
def labels_with_a_fraction(case: Case) -> None:
    case.parquet("a.parquet", ["cat", "dog"], label=[0.0, 1.5])
    case.reader(**ON_PARQUET)


@case(
    r"has no column 'Label'; .*: name it as the file does, '(?P<name>\w+)'",
    lambda case, found: case.set("reader.label", found["name"]),
)
def a_column_in_another_case(case: Case) -> None:
    case.parquet("a.parquet", label=["cat", "dog"])
    case.reader(kind="parquet", label="Label")


@case(
    r"has no column 'kind'; it has image, text, (?P<name>\w+): correct the reader's fields",
    lambda case, found: case.set("reader.label", found["name"]),
)
def a_column_that_is_not_there(case: Case) -> None:
    case.parquet("a.parquet", label=["cat", "dog"])
    case.reader(kind="parquet", label="kind")


def twice_in_parquet(case: Case, second: str) -> None:
    arrays = [[case.picture(0), case.picture(1)], ["cat", "dog"], ["x", "y"]]
    (case.folder / "source").mkdir(exist_ok=True)
    table = pa.Table.from_arrays(list(map(pa.array, arrays)), ["image", "label", second])
    pq.write_table(table, case.folder / "source/a.parquet")


@case(
    r"has 2 columns called 'label'; rename all but one",
    lambda case, found: twice_in_parquet(case, "other"),
)
def two_columns_of_one_name(case: Case) -> None:
    twice_in_parquet(case, "label")
    case.reader(**ON_PARQUET)


@case(
    r"^(?P<path>\S+) has 2 columns called 'label'; rename all but one",
    content("t.csv", "path,label,other\na.jpg,cat,x\nb.jpg,dog,y\n"),
)
def two_columns_of_one_name_in_a_table(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    case.text("t.csv", "path,label,label\na.jpg,cat,x\nb.jpg,dog,y\n", **LABELLED)


@case(
    r"`columns` has 2 columns called 'label'; rename all but one",
    settings("reader.columns", ["path", "label", "other"]),
)
def two_columns_that_are_named_alike(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    columns = ["path", "label", "label"]
    case.text("t.csv", "a.jpg,cat,x\nb.jpg,dog,y\n", **LABELLED, columns=columns)


@case(
    r"^(?P<path>\S+) is empty; correct the reader's path, or restore it",
    content("t.csv", ROWS),
)
def an_empty_table(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    case.text("t.csv", "", **LABELLED)


@case(r"source is a folder; name the table itself", lambda case, found: whole_table(case))
def a_folder_of_tables(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    for name in ("a.csv", "b.csv"):
        (case.folder / "source").mkdir(exist_ok=True)
        (case.folder / "source" / name).write_text(ROWS)
    case.reader(**LABELLED)


@case(
    r"column 'other', the reader's `label`, holds bool instead of integers or names; name another",
    settings("reader.label", "label"),
)
def a_label_that_is_true_or_false(case: Case) -> None:
    case.parquet("a.parquet", label=["cat", "dog"], other=[True, False])
    case.reader(kind="parquet", label="other")


@case(
    r"column 'year' holds int64, but 'new' in `where` is not one; correct the value",
    settings("reader.where", {"year": 1}),
)
def a_word_where_a_column_has_numbers(case: Case) -> None:
    case.parquet("a.parquet", label=["cat", "dog"], year=[1, 1])
    case.reader(**ON_PARQUET, where={"year": "new"})


@case(
    r"(?P<path>\S+) is not a Parquet file, or is damaged .*; download it again",
    lambda case, found: case.parquet("a.parquet", label=["cat", "dog"]),
)
def a_cut_parquet_file(case: Case) -> None:
    case.parquet("a.parquet", label=["cat", "dog"])
    path = case.folder / "source/a.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    case.reader(**ON_PARQUET)


@case(
    r"holds the label 9,999, but only 2 different labels; correct it, or give names as labels",
    lambda case, found: case.parquet("a.parquet", label=["cat", "dog"]),
)
def a_number_far_above_the_others(case: Case) -> None:
    case.parquet("a.parquet", label=[0, 9999])
    case.reader(**ON_PARQUET)


@case(
    r"position 0 \(from 0\) is called '1', .*; name the classes in words",
    settings("reader.classes", ["one", "zero"]),
    "one zero",
)
def classes_that_are_each_others_numbers(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    rows = ROWS.replace("cat", "0").replace("dog", "1")
    case.text("t.csv", rows, **LABELLED, classes=["1", "0"])


# -- texts -----------------------------------------------------------------------------------------


@case(
    r"column 'label' holds names in a\.parquet and numbers in b\.parquet; use one of them",
    lambda case, found: case.parquet("b.parquet", label=["dog"]),
)
def texts_with_names_and_numbers(case: Case) -> None:
    case.parquet("a.parquet", label=["cat"])
    case.parquet("b.parquet", label=[0])
    case.reader(kind="parquet", fields={})


@case(
    r"column 'image', the reader's `text`, holds binary instead of text; name another column",
    settings("reader.fields", {}),
)
def a_text_of_bytes(case: Case) -> None:
    case.parquet("a.parquet", label=["cat", "dog"])
    case.reader(kind="parquet", fields={"text": "image"})


@case(
    r"metadata names the classes (?P<names>[\w, ]+), and label_names .*; correct label_names",
    lambda case, found: case.set("reader.label_names", found["names"].split(", ")),
)
def names_that_the_metadata_does_not_have(case: Case) -> None:
    case.parquet("a.parquet", ["cat", "dog"], label=[0, 1])
    case.reader(kind="parquet", fields={}, label_names=["no", "yes"])


@case(
    r"label_names and unlabelled both list '(?P<name>\w+)'; remove it from one",
    settings("reader.label_names", ["cat", "dog"]),
)
def a_name_in_two_lists(case: Case) -> None:
    rows = "text,label\na,cat\nb,dog\nc,none\n"
    names = ["cat", "dog", "none"]
    case.text("t.csv", rows, kind="table", fields={}, label_names=names, unlabelled=["none"])


@case(
    r"the label '(?P<name>\w+)' is none of the 2 classes; list it in `unlabelled`",
    lambda case, found: case.set("reader.unlabelled", [found["name"]]),
)
def a_label_that_is_no_class(case: Case) -> None:
    rows = "text,label\na,cat\nb,dog\nc,none\n"
    case.text("t.csv", rows, kind="table", fields={}, label_names=["cat", "dog"])


# -- tars ------------------------------------------------------------------------------------------


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def ilsvrc(case: Case, *ids: str) -> None:
    """A training tar with a tar of one image for each id."""
    tars = [(f"{i}.tar", tar_of([("a.JPEG", case.picture(n))])) for n, i in enumerate(ids)]
    (case.folder / "source").write_bytes(tar_of(tars))
    case.reader(kind="ilsvrc_tar")


def flat(case: Case, truth: str, synsets: str) -> None:
    """A validation tar of two images, with its ground truth and its classes."""
    images = [(f"val_{n}.JPEG", case.picture(n)) for n in (1, 2)]
    (case.folder / "source").write_bytes(tar_of(images))
    for name, text in (("truth", truth), ("synsets", synsets)):
        (case.folder / name).write_text(text)
    case.reader(
        kind="ilsvrc_tar",
        ground_truth=str(case.folder / "truth"),
        synsets=str(case.folder / "synsets"),
    )


NUMBERED = "1 n1 cat\n2 n2 dog\n"


@case(
    r"class 'n3' is not in \S+; give the two files that belong together",
    lambda case, found: flat(case, "n1\nn2\n", NUMBERED),
)
def a_ground_truth_of_other_classes(case: Case) -> None:
    flat(case, "n1\nn3\n", NUMBERED)


@case(
    r"(?P<path>\S+) has n1 twice; remove one of the two",
    content("synsets", NUMBERED),
)
def a_class_that_is_listed_twice(case: Case) -> None:
    flat(case, "1\n2\n", f"{NUMBERED}3 n1 cats\n")


@case(
    r"(?P<path>\S+) does not number its classes; give lines `(?P<line>number WNID name)`",
    content("synsets", NUMBERED),
)
def classes_without_numbers(case: Case) -> None:
    flat(case, "1\n2\n", "n1 cat\nn2 dog\n")


@case(
    r"(?P<path>\S+) gives two classes the number 1; correct one",
    content("synsets", NUMBERED),
)
def a_number_of_two_classes(case: Case) -> None:
    flat(case, "1\n2\n", "1 n1 cat\n1 n2 dog\n")


@case(
    r"contains n1\.tar twice; keep one, or merge the two",
    lambda case, found: ilsvrc(case, "n1", "n2"),
    "n1 n2",
)
def a_tar_with_a_class_twice(case: Case) -> None:
    ilsvrc(case, "n1", "n1", "n2")


@case(
    r"'N1' and 'n1' differ only in .*; rename or merge their tars",
    lambda case, found: ilsvrc(case, "n1", "n2"),
    "n1 n2",
)
def tars_whose_names_look_alike(case: Case) -> None:
    ilsvrc(case, "n1", "N1")


def whole_tar(case: Case) -> None:
    case.tar("0.tar", ["a.jpg", "a.txt", "b.jpg", "b.txt"])
    case.reader(kind="webdataset")


@case(
    r"ends before its end mark, at byte [\d,]+; download it again",
    again(whole_tar),
    "a cat|a cat",
)
def a_cut_tar(case: Case) -> None:
    whole_tar(case)
    path = case.folder / "source/0.tar"
    path.write_bytes(path.read_bytes()[:3000])


@case(
    r"is not a tar, or is damaged: no member begins at byte [\d,]+; download it again",
    again(whole_tar),
    "a cat|a cat",
)
def a_page_in_place_of_a_tar(case: Case) -> None:
    whole_tar(case)
    (case.folder / "source/0.tar").write_bytes(b"<html>not found</html>".ljust(1024))


@case(
    r"a\.b\.jpg: a stem ends at the first dot; rename its members",
    again(whole_tar),
    "a cat|a cat",
)
def a_stem_with_a_dot(case: Case) -> None:
    case.tar("0.tar", ["a.b.jpg", "a.b.txt"])
    case.reader(kind="webdataset")


# -- lists of names --------------------------------------------------------------------------------


def names(content: str) -> Callable[[Case], None]:
    def make(case: Case) -> None:
        case.images("source/n1/a.jpg", "source/n2/b.jpg")
        (case.folder / "names").write_text(content)
        case.reader(kind="imagefolder", class_names=str(case.folder / "names"))

    return make


NAMED = content("names", "n1 cat\nn2 dog\n")


@case(r"(?P<path>\S+): 'n2' should have a name or \[id, name\], not 2; correct it", NAMED)
def a_name_that_is_a_number(case: Case) -> None:
    names('{"n1": "cat", "n2": 2}')(case)


@case(r"(?P<path>\S+): line 2 should read `id name`, not 'n2'; correct it", NAMED)
def a_line_without_a_name(case: Case) -> None:
    names("n1 cat\nn2\n")(case)


@case(r"(?P<path>\S+) gives 'n2' two names, 'dog' and 'hound'; remove one", NAMED)
def a_class_with_two_names(case: Case) -> None:
    names("n1 cat\nn2 dog\nn2 hound\n")(case)


@case(r"(?P<path>\S+) is not valid JSON .*; correct it", NAMED)
def a_list_of_names_that_is_cut(case: Case) -> None:
    names('{"n1": "cat",')(case)


def convert(case: Case, found: re.Match[str]) -> None:
    path, words = Path(found["path"]), found["command"].split()
    path.write_bytes(subprocess.run(words, input=path.read_bytes(), stdout=-1, check=True).stdout)


@case(
    r"(?P<path>\S+) is not UTF-8 text; convert it .*\(`(?P<command>iconv [^`]+)`",
    convert,
    "cat d\u00f6g",
)
def names_in_latin_1(case: Case) -> None:
    names("")(case)
    (case.folder / "names").write_bytes("n1 cat\nn2 d\u00f6g\n".encode("latin-1"))


@case(
    r"(?P<path>\S+) is a folder; name a file in it",
    lambda case, found: case.set("reader.class_names", f"{found['path']}/list"),
)
def a_folder_of_names(case: Case) -> None:
    names("")(case)
    (case.folder / "names").unlink()
    (case.folder / "names").mkdir()
    (case.folder / "names/list").write_text("n1 cat\nn2 dog\n")


@case(
    r"names does not exist; correct its path",
    lambda case, found: names("n1 cat\nn2 dog\n")(case),
)
def names_that_are_not_there(case: Case) -> None:
    names("")(case)
    (case.folder / "names").unlink()


@case(
    r"images\.tar has [\d,]+ bytes, too many for a list; correct its path",
    lambda case, found: names("n1 cat\nn2 dog\n")(case),
)
def a_large_file_in_place_of_names(case: Case) -> None:
    names("")(case)
    with (case.folder / "images.tar").open("wb") as file:
        file.truncate(1 << 30)  # which takes no room
    case.set("reader.class_names", str(case.folder / "images.tar"))


@case(
    r"names is a FIFO, a device or a socket; name a file or a folder",
    lambda case, found: case.set("reader.class_names", str(case.folder / "other")),
)
def a_pipe_of_names(case: Case) -> None:
    names("")(case)
    (case.folder / "names").rename(case.folder / "other")
    (case.folder / "other").write_text("n1 cat\nn2 dog\n")
    os.mkfifo(case.folder / "names")


# -- files and folders -----------------------------------------------------------------------------


@case(
    r"has no file named like '\*\.parquet'; correct the reader's path",
    lambda case, found: case.parquet("a.parquet", label=["cat", "dog"]),
)
def a_folder_without_such_a_file(case: Case) -> None:
    case.images("source/a.jpg")
    case.reader(**ON_PARQUET)


@case(r"(?P<path>\S+) links to a folder that contains it; remove it", remove)
def a_link_to_a_folder_above(case: Case) -> None:
    two_images(case)
    (case.folder / "source/cat/loop").symlink_to(case.folder / "source")


@case(r"(?P<path>\S+) is a broken link; repair or remove it", remove)
def a_broken_link(case: Case) -> None:
    two_images(case)
    (case.folder / "source/owl").symlink_to(case.folder / "gone")


@case(r"(?P<path>\S+) is a FIFO, a device or a socket; remove it", remove)
def a_pipe_among_the_files(case: Case) -> None:
    case.parquet("a.parquet", label=["cat", "dog"])
    os.mkfifo(case.folder / "source/b.parquet")
    case.reader(**ON_PARQUET)


@case(
    r"the name of \S+/b\\xf6\.jpg is not UTF-8; rename it",
    lambda case, found: os.rename(
        os.fsencode(case.folder / "source/dog") + b"/b\xf6.jpg", case.folder / "source/dog/b.jpg"
    ),
)
def a_name_in_latin_1(case: Case) -> None:
    two_images(case)
    path = case.folder / "source/dog/b.jpg"
    os.rename(path, os.fsencode(path.parent) + b"/b\xf6.jpg")


@case(
    r"nowhere:\S+ cannot be opened .*; correct its path",
    lambda case, found: two_images(case),
)
def a_filesystem_that_is_none(case: Case) -> None:
    case.settings["reader"] = {"kind": "imagefolder", "path": "nowhere://bucket/source"}


@case(
    r"t\.csv\.gz is not a gzip file, or is damaged .*, or rename it if it is not compressed",
    lambda case, found: case.set(
        "reader.path", str((case.folder / "t.csv.gz").rename(case.folder / "t.csv"))
    ),
)
def a_table_by_the_name_of_a_compressed_one(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    case.text("t.csv.gz", ROWS, **LABELLED)


@case(
    r"is a ZIP archive, as Excel's files are; unpack it, or save the table as CSV",
    lambda case, found: case.text("t.csv", unpacked(case.folder / "t.csv"), **LABELLED),
)
def a_table_in_an_archive(case: Case) -> None:
    whole_table(case)
    with zipfile.ZipFile(case.folder / "t.csv", "w") as archive:
        archive.writestr("t.csv", ROWS)


def unpacked(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read("t.csv")


@case(
    r"no file at \S+; its path has back-slashes: write `/`",
    lambda case, found: case.text("t.csv", BACK.replace("\\", "/"), **LABELLED),
)
def paths_of_windows(case: Case) -> None:
    case.images("p/a.jpg", "p/b.jpg")
    case.text("t.csv", BACK, **LABELLED)


BACK = "path,label\np\\a.jpg,cat\np\\b.jpg,dog\n"


@case(
    r"holds the label -1; labels begin at 0, so correct it",
    lambda case, found: case.parquet("a.parquet", label=[0, 1, 1]),
    "0 1 1",
)
def a_label_below_zero(case: Case) -> None:
    case.parquet("a.parquet", label=[0, 1, -1])
    case.reader(**ON_PARQUET)


@case(
    r"labels begin at 0, .*, or leave such rows out of the source",
    lambda case, found: case.parquet("a.parquet", label=[0, 1]),
    "0 1",
)
def a_label_for_no_class(case: Case) -> None:
    a_label_below_zero(case)


@case(
    r"names\.gz cannot be decompressed .*; download it again",
    lambda case, found: (case.folder / "names.gz").write_bytes(gzip.compress(NAMED_CLASSES)),
)
def a_cut_list_of_names(case: Case) -> None:
    names("")(case)
    (case.folder / "names.gz").write_bytes(gzip.compress(NAMED_CLASSES)[:-9])
    case.set("reader.class_names", str(case.folder / "names.gz"))


@case(
    r"names\.gz cannot be decompressed .*, or rename it if it is not compressed",
    lambda case, found: case.set(
        "reader.class_names",
        str((case.folder / "names.gz").rename(case.folder / "names")),
    ),
)
def a_list_by_the_name_of_a_compressed_one(case: Case) -> None:
    a_cut_list_of_names(case)
    (case.folder / "names.gz").write_bytes(NAMED_CLASSES)


NAMED_CLASSES = b"n1 cat\nn2 dog\n"


@pytest.mark.parametrize("name", CASES)
def test_a_remedy_works_when_it_is_followed(
    name: str, tmp_path: Path, picture: Picture, build: Build
) -> None:
    check(CASES, name, tmp_path, picture, build)


GROWS = {
    "a table": (
        {**LABELLED, "path": "t.csv.gz"},
        gzip.compress(ROWS.encode() + b"\n" * 5_000),
        r"(?P<path>\S+) is refused: .*; if its content is right, decompress it yourself$",
        {"path": "t.csv"},
    ),
    "a list of names": (
        {"kind": "imagefolder", "path": "source", "class_names": "n.gz"},
        gzip.compress(b"\n" * 5_000),
        r"(?P<path>\S+) is refused: .*; correct its path$",
        {"class_names": "names"},
    ),
}


@pytest.mark.parametrize("what", GROWS)
def test_a_file_that_grows_is_decompressed_or_another_is_named(
    what: str, tmp_path: Path, picture: Picture, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "ALLOWANCE", 0)
    monkeypatch.setattr(bounded, "GROWTH", 10)
    monkeypatch.chdir(tmp_path)
    case = Case(tmp_path, picture, {"name": "c", "parts": TRAIN})
    case.images("a.jpg", "b.jpg", "source/n1/a.jpg", "source/n2/b.jpg")
    (tmp_path / "names").write_bytes(NAMED_CLASSES)
    reader, data, remedy, changes = GROWS[what]
    path = tmp_path / reader.get("class_names", reader["path"])
    path.write_bytes(data)
    with pytest.raises(StageError) as caught:
        build(Corpus.model_validate({**case.settings, "reader": reader}), tmp_path / "refused")
    found = re.search(remedy, str(caught.value))
    assert found is not None, caught.value
    if "decompress" in remedy:
        subprocess.run(["gunzip", found["path"]], check=True)
    corpus = Corpus.model_validate({**case.settings, "reader": reader | changes})
    assert build(corpus, tmp_path / "built")[1].counts["rows_train"] == 2


def test_an_image_that_cannot_be_decoded_is_removed_and_the_corpus_built_again(
    tmp_path: Path, picture: Picture, build: Build
) -> None:
    """By another version of the reader; `--force` is followed where a source has changed."""
    case = Case(tmp_path, picture, {"name": "c", "parts": TRAIN})
    two_images(case)
    case.images("source/dog/c.png")
    pixels = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    image, path = stream.getvalue(), tmp_path / "source/dog/c.png"
    at = image.index(b"IDAT")
    end = at + 4 + int.from_bytes(image[at - 4 : at])
    chunk = image[at : at + 20] + bytes(end - at - 20)  # its checksum is right, its pixels are not
    path.write_bytes(image[:at] + chunk + zlib.crc32(chunk).to_bytes(4) + image[end + 4 :])

    def read(name: str) -> int:
        built, _ = build(Corpus.model_validate(case.settings), tmp_path / name)
        rows = read_part(built, "train", ["key", "image"]).to_pylist()
        return len([prepared(row["image"], row["key"], ImageInput(size=8)) for row in rows])

    remedy = (
        r"^(?P<key>\S+) cannot .*; remove it from the source, give the .* `(?P<field>\w+)`, and"
    )
    with pytest.raises(StageError) as caught:
        read("refused")
    found = re.search(remedy, str(caught.value))
    assert found is not None, caught.value
    assert found["key"] == "dog/c.png"
    path.unlink()
    case.set(f"reader.{found['field']}", "2")
    assert read("built") == 2


MASKS = {
    "a name outside": ("a\n../b\n", r"(?P<path>\S+) names '\.\./b', .*; correct the list$"),
    "no name": ("\n", r"(?P<path>\S+) has no name; correct the list$"),
}


@pytest.mark.parametrize("what", MASKS)
def test_a_list_of_masked_images_is_corrected(what: str, tmp_path: Path, build: Build) -> None:
    content, remedy = MASKS[what]
    for name, (image, mask) in {"a": scene(0), "b": scene(1)}.items():
        for folder, data in (("i", image), ("m", png(mask))):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.png").write_bytes(data)
    (tmp_path / "list").write_text(content)
    reader = {"kind": "maskfolder", "path": f"{tmp_path}/i", "masks": f"{tmp_path}/m"}
    reader |= {"names": f"{tmp_path}/list", "image_ending": ".png", "classes": SCENE_CLASSES}
    corpus = Corpus.model_validate({"name": "c", "parts": TRAIN, "reader": reader})
    with pytest.raises(StageError) as caught:
        build(corpus, tmp_path / "refused")
    found = re.search(remedy, str(caught.value))
    assert found is not None, caught.value
    Path(found["path"]).write_text("a\nb\n")
    assert build(corpus, tmp_path / "built")[1].counts["rows_train"] == 2


# -- what the settings alone tell ------------------------------------------------------------------

Fields = Mapping[str, Any]
PARQUET = {"kind": "parquet", "path": "p"}
WDS = {"kind": "webdataset", "path": "p"}
TABLE = {"kind": "table", "path": "p"}
ILSVRC = {"kind": "ilsvrc_tar", "path": "p"}
MASKED = {**PARQUET, "mask": "mask", "classes": ["cat", "dog"]}
TEXTS = {"reader": {**TABLE, "fields": {}}, "modality": "text"}
SPECS: dict[str, tuple[Fields, str, Fields]] = {
    "the numbers of no masks": (
        {"reader": {**PARQUET, "label": "label", "first_class": 1}},
        r"first_class is about masks; give `mask` as well, or leave it out",
        {"reader": {**PARQUET, "label": "label"}},
    ),
    "the numbers of masks": (
        {"reader": {**PARQUET, "classes": ["cat"], "label": "label", "first_class": 1}},
        r"first_class is about masks; give `(?P<field>mask)` as well",
        {"reader": {**PARQUET, "classes": ["cat"], "mask": "mask", "first_class": 1}},
    ),
    "a label and a mask": (
        {"reader": {**MASKED, "label": "label"}},
        r"both label and mask: .*; make two corpora of this source",
        {"reader": MASKED},
    ),
    "masks without classes": (
        {"reader": {**PARQUET, "mask": "mask"}},
        r"masks hold numbers alone: give `(?P<field>classes)`",
        {"reader": MASKED},
    ),
    "a number that is ignored and a class": (
        {"reader": {**MASKED, "first_class": 254}},
        r"255 is ignored and is also a class \('dog'\); correct ignored, first_class or classes",
        {"reader": {**MASKED, "first_class": 254, "ignored": [0]}},
    ),
    "two classes of one name": (
        {"reader": {**PARQUET, "label": "l", "classes": ["cat", "cat"]}},
        r"two classes are called 'cat': give each a name of its own",
        {"reader": {**PARQUET, "label": "l", "classes": ["cat", "dog"]}},
    ),
    "a class without a name": (
        {"reader": {**PARQUET, "label": "l", "classes": ["cat", " "]}},
        r"a class has no name: give each a name of its own",
        {"reader": {**PARQUET, "label": "l", "classes": ["cat", "dog"]}},
    ),
    "fields that a quote separates": (
        {"reader": {**TABLE, "label": "l", "delimiter": '"'}},
        r"a quote or a line break separates no fields: give another delimiter",
        {"reader": {**TABLE, "label": "l", "delimiter": ";"}},
    ),
    "a ground truth alone": (
        {"reader": {**ILSVRC, "ground_truth": "t"}},
        r"ground_truth gives numbers or WNIDs: give `(?P<field>synsets)` as well",
        {"reader": {**ILSVRC, "ground_truth": "t", "synsets": "s"}},
    ),
    "labels of a tar without classes": (
        {"reader": {**WDS, "label": "cls"}},
        r"label and classes go together: name the classes in label order",
        {"reader": {**WDS, "label": "cls", "classes": ["cat", "dog"]}},
    ),
    "images that are called texts": (
        {"reader": {**TABLE, "label": "l"}, "modality": "text"},
        r"of kind table reads images, and modality is text: give it `(?P<field>fields)`",
        TEXTS,
    ),
    "texts that are made smaller": (
        {**TEXTS, "shrink": {"shorter_side": 64}},
        r"corpus\.shrink is for images, and modality is text: leave it out",
        TEXTS,
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_remedy_of_the_settings_works(name: str) -> None:
    wrong, remedy, right = SPECS[name]
    usual = {"name": "c", "parts": TRAIN}
    with pytest.raises(ValidationError) as caught:
        Corpus.model_validate({**usual, **wrong})
    assert re.search(remedy, in_words(caught.value.errors()[0])), caught.value
    Corpus.model_validate({**usual, **right})

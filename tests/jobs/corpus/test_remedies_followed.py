"""What a message about a corpus tells its user to do works when it is done.

Each case raises its message; the remedy is read from the message and followed; then the corpus is
built, with the classes and rows that the source has.
"""

import bz2
import gzip
import json
import re
from pathlib import Path

import pytest
import yaml

from followed import Table
from tests.jobs.corpus.refused import TRAIN, Build, Case, Follow, Picture, check

CASES = Table(
    "cat dog"
)  # the classes that the training rows have then (of a corpus without classes: its captions)
case = CASES.case


def as_told(case: Case, found: re.Match[str]) -> None:
    """Follow "set `field: value`", of the corpus or of its reader."""
    value = yaml.safe_load(found["value"])
    path = found["path"]
    case.set(path if path.startswith("corpus.") else f"reader.{path}", value)


SET = r"set `(?P<path>[a-z_]+): (?P<value>.+?)`"
SET_CORPUS = r"set (?P<path>corpus\.[a-z_.]+): (?P<value>\S+)"


def listing(*names: str) -> Follow:
    """Follow "give the names in `classes`"."""
    return lambda case, found: case.set(f"reader.{found['field']}", list(names))


def drop(case: Case, found: re.Match[str]) -> None:
    """Follow "leave it out"."""
    del case.settings["reader"][found["field"]]


NAMES = r"(give|list|name) the (names|classes) in `(?P<field>\w+)`"
ICONV = r"convert it (from its own encoding )?\(`(?P<command>iconv [^`]+)`"


def convert(case: Case, found: re.Match[str]) -> None:
    case.convert(found["command"])


# -- tables ----------------------------------------------------------------------------------------

ROWS = "path,label\na.jpg,cat\nb.jpg,dog\n"


@case(SET, as_told)
def another_delimiter(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    case.text("t.csv", ROWS.replace(",", ";"), kind="table", label="label")


@case(SET, as_told)
def tabs_in_a_csv(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    case.text("t.csv", ROWS.replace(",", "\t"), kind="table", label="label")


@case(SET, as_told)
def quotes_without_a_meaning(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    rows = 'path,label,note\na.jpg,cat,"5 inches\nb.jpg,dog,x\n'
    case.text("t.csv", rows, kind="table", label="label")


@case(SET, as_told)
def quoted_fields_in_a_tsv(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    rows = 'path\tlabel\tnote\na.jpg\tcat\t"x\ty"\nb.jpg\tdog\tz\n'
    case.text("t.tsv", rows, kind="table", label="label")


@case(
    r"first line gives the columns (?P<line>\S+), (?P<label>\w+); .*name the columns in `columns`",
    lambda case, found: case.set("reader.columns", ["path", "label"]),
)
def a_table_without_a_header(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    case.text("t.csv", ROWS.partition("\n")[2], kind="table", label="label")


@case(r"name it as the table does: '(?P<name>.+?)'$", lambda c, m: c.set("reader.label", m["name"]))
def a_column_with_a_blank(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    case.text("t.csv", ROWS.replace(",label", ", label"), kind="table", label="label")


@case(ICONV, convert)
def a_table_in_utf_16(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    case.text("t.csv", ROWS.encode("utf-16"), kind="table", label="label")


@case(ICONV, convert)
def a_table_in_utf_16_without_a_mark(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    case.text("t.csv", ROWS.encode("utf-16-be"), kind="table", label="label")


@case(ICONV, convert, "dog né")
def labels_in_latin_1(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    case.text("t.csv", ROWS.replace("cat", "né").encode("latin-1"), kind="table", label="label")


@case(r"decompress it \(`b(?P<command>unzip2)`\)", lambda case, found: case.convert("bunzip2"))
def a_compressed_table(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    case.text("t.csv", bz2.compress(ROWS.encode()), kind="table", label="label")


def add_ending(case: Case, found: re.Match[str]) -> None:
    path = Path(case.settings["reader"]["path"])
    named = path.rename(f"{path}{found['ending']}")
    case.set("reader.path", str(named))


@case(r"give its name the ending (?P<ending>\.\w+)", add_ending)
def a_gzip_file_by_another_name(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    case.text("t.csv", gzip.compress(ROWS.encode()), kind="table", label="label")


@case(NAMES, listing("cat", "Cat"), "Cat cat")
def labels_that_look_alike(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    case.text("t.csv", ROWS.replace("dog", "Cat"), kind="table", label="label")


@case(NAMES, listing("01", "1"), "01 1")
def one_number_in_two_spellings(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    case.text("t.csv", ROWS.replace("cat", "01").replace("dog", "1"), kind="table", label="label")


@case(
    r"a column with a key of its own to each row and name it in corpus\.reader\.(?P<field>\w+)",
    lambda case, found: case.set(f"reader.{found['field']}", "id"),
    "x y",
)
def several_captions_of_an_image(case: Case) -> None:
    case.images("a.jpg")
    case.text("t.csv", "path,c,id\na.jpg,x,1\na.jpg,y,2\n", kind="table", caption="c")


@case(SET_CORPUS, as_told)
def a_class_without_a_row(case: Case) -> None:
    case.images("a.jpg", "b.jpg")
    case.text("t.csv", ROWS, kind="table", label="label", classes=["cat", "dog", "owl"])


@case(
    r"(?P<bad>\d+) of (?P<all>\d+) rows .* raise (?P<path>corpus\.max_bad_share) to leave",
    lambda case, found: case.set(found["path"], int(found["bad"]) / int(found["all"])),
    "cat dog",
)
def a_third_of_the_rows_is_bad(case: Case) -> None:
    case.settings["max_bad_share"] = 0
    case.images("a.jpg", "b.jpg")
    case.text("t.csv", f"{ROWS}none.jpg,dog\n", kind="table", label="label")


# -- Parquet ---------------------------------------------------------------------------------------

ON_PARQUET = {"kind": "parquet", "label": "label"}


@case(NAMES, listing("cat", "dog"))
def metadata_of_no_use(case: Case) -> None:
    case.parquet("a.parquet", {"0": "cat"}, label=[0, 1])
    case.reader(**ON_PARQUET)


@case(NAMES, listing("cat", "dog"), "cat dog dog")
def a_class_with_two_names_in_a_column(case: Case) -> None:
    case.parquet("a.parquet", label=[0, 1, 1], name=["cat", "dog", "hound"])
    case.reader(**ON_PARQUET, label_name="name")


@case(r"give `(?P<field>classes)`", listing("0", "cat"), "0 cat")
def names_in_one_file_and_numbers_in_another(case: Case) -> None:
    case.parquet("a.parquet", label=["cat"])
    case.parquet("b.parquet", label=[0])
    case.reader(**ON_PARQUET)


@case(
    r"`(?P<field>label_name)` does not apply; leave it out",
    drop,
)
def names_beside_names(case: Case) -> None:
    case.parquet("a.parquet", label=["cat", "dog"], name=["x", "y"])
    case.reader(**ON_PARQUET, label_name="name")


@case(
    r"correct `(?P<field>classes)`, or leave it out",
    drop,
)
def classes_in_another_order_than_the_metadata(case: Case) -> None:
    case.parquet("a.parquet", ["cat", "dog"], label=[0, 1])
    case.reader(**ON_PARQUET, classes=["dog", "cat"])


@case(
    r"name columns in corpus\.reader\.(?P<field>key) that tell",
    lambda case, found: case.set(f"reader.{found['field']}", ["a", "b"]),
)
def keys_that_repeat(case: Case) -> None:
    case.parquet("a.parquet", label=["cat", "dog"], a=["x", "x"], b=[1, 2])
    case.reader(**ON_PARQUET, key=["a"])


@case(SET_CORPUS, as_told)
def keys_that_two_parts_have(case: Case) -> None:
    case.parquet("a.parquet", label=["cat", "dog"])
    case.reader(**ON_PARQUET)
    case.settings["parts"] = {**TRAIN, "test": dict(case.settings["reader"])}


# -- texts -----------------------------------------------------------------------------------------

MINUS = "text,label\na,1\nb,-1\nc,0\n"


def leave_out(case: Case, found: re.Match[str]) -> None:
    case.set(f"reader.{found['field']}", [yaml.safe_load(found["label"])])


@case(r"holds the label (?P<label>\S+); list it in `(?P<field>unlabelled)`", leave_out, "0 1")
def a_label_of_minus_one(case: Case) -> None:
    case.text("t.csv", MINUS, kind="table", fields={})


@case(
    r"holds the label '(?P<label>\w+)', and `(?P<field>unlabelled)` lists .*; write it as",
    leave_out,
    "0 1",
)
def a_label_to_leave_out_in_another_case(case: Case) -> None:
    rows = MINUS.replace("-1", "None")
    case.text("t.csv", rows, kind="table", fields={}, unlabelled=["none"])


@case(
    r"`(?P<field>unlabelled)` lists 2, .*; list the name, '(?P<label>\w+)'",
    leave_out,
    "no yes",
)
def a_number_to_leave_out_of_labels_with_names(case: Case) -> None:
    case.parquet("a.parquet", ["no", "yes", "unknown"], label=[0, 1, 2])
    case.reader(kind="parquet", fields={}, unlabelled=[2])


@case(NAMES, listing("no", "yes"), "no yes")
def metadata_of_texts_of_no_use(case: Case) -> None:
    case.parquet("a.parquet", ["no", ""], label=[0, 1])
    case.reader(kind="parquet", fields={})


@case(r"give each a name of its own in `(?P<field>\w+)`", listing("no", "yes"), "no yes")
def metadata_that_calls_two_classes_alike(case: Case) -> None:
    case.parquet("a.parquet", ["no", "no"], label=[0, 1])
    case.reader(kind="parquet", fields={})


@case(ICONV, convert, "x y")
def lines_in_utf_16(case: Case) -> None:
    rows = [json.dumps({"text": t, "label": label}) for t, label in ("ax", "by")]
    case.text("t.jsonl", "\n".join(rows).encode("utf-16"), kind="jsonl", fields={})


@case(
    r"name it as the file does, '(?P<name>\w+)'",
    lambda case, found: case.set("reader.fields", {"label": found["name"]}),
    "x",
)
def a_field_in_another_case(case: Case) -> None:
    case.text("t.jsonl", '{"text": "a", "Label": "x"}\n', kind="jsonl", fields={})


# -- tars, folders and files of names --------------------------------------------------------------

MIXED = ["a.jpg", "b.jpg", "a.txt", "b.txt"]
SORT = r"sort the tar: (?P<command>.+)$"


def sort(case: Case, found: re.Match[str]) -> None:
    case.run(found["command"])


@case(SORT, sort, "a cat|a cat")
def a_tar_that_is_not_sorted(case: Case) -> None:
    case.tar("0.tar", MIXED)
    case.reader(kind="webdataset")


@case(SORT, sort, "a cat|a cat")
def a_compressed_tar_that_is_not_sorted(case: Case) -> None:
    case.tar("0.tgz", MIXED)
    case.reader(kind="webdataset", files="*.tgz")


@case(SORT, sort, "a cat|a cat")
def a_tar_with_a_blank_in_its_name_that_is_not_sorted(case: Case) -> None:
    case.tar("part 0.tar.gz", MIXED)
    case.reader(kind="webdataset")


@case(SET_CORPUS, as_told, "a cat|a cat|a cat|a cat")
def two_tars_with_the_same_names(case: Case) -> None:
    for name in ("0.tar", "1.tar"):
        case.tar(name, sorted(MIXED))
    case.reader(kind="webdataset")


@case(
    r"give the reader (?P<path>\S+), and each other part a reader of its own under corpus\.parts",
    lambda case, found: case.settings.update(
        reader={**case.settings["reader"], "path": found["path"]},
        parts={
            **TRAIN,
            "test": {**case.settings["reader"], "path": f"{found['path'][:-4]}train"},
        },
    ),
    "cat",
)
def parts_instead_of_classes(case: Case) -> None:
    case.images("source/test/cat/0.jpg", "source/train/cat/1.jpg")
    case.reader(kind="imagefolder")


def name_by_number(case: Case, found: re.Match[str]) -> None:
    named = (found["line"].replace("0", str(n)).replace("NAME", f"digit {n}") for n in range(2))
    (case.folder / "names").write_text("\n".join(named))


@case(r"has the line `(?P<line>[^`]+)`", name_by_number, "digit 0|digit 1")
def folders_that_are_numbers(case: Case) -> None:
    case.images("source/0/a.jpg", "source/1/b.jpg")
    (case.folder / "names").write_text("0 zero\n1 one\n")
    case.reader(kind="imagefolder", class_names=str(case.folder / "names"))


@case(
    r"read class folders with `kind: (?P<kind>\w+)`",
    lambda case, found: case.set("reader.kind", found["kind"]),
)
def a_folder_where_a_tar_is_needed(case: Case) -> None:
    case.images("source/cat/a.jpg", "source/dog/b.jpg")
    case.reader(kind="ilsvrc_tar")


# -- what the settings alone tell ------------------------------------------------------------------


@case(r"set (?P<path>modality): (?P<value>\w+)", lambda c, m: c.set(m["path"], m["value"]), "0 1 1")
def texts_that_are_not_called_texts(case: Case) -> None:
    case.text("t.csv", MINUS.replace("-1", "1"), kind="table", fields={})
    case.settings["modality"] = "image"


@case(
    r"(?P<field>label)_name and classes need `label`: give it as well",
    lambda case, found: case.set(f"reader.{found['field']}", "label"),
)
def names_without_labels(case: Case) -> None:
    case.parquet("a.parquet", label=[0, 1], text=["x", "y"])
    case.reader(kind="parquet", caption="text", classes=["cat", "dog"])


@pytest.mark.parametrize("name", CASES)
def test_a_remedy_works_when_it_is_followed(
    name: str, tmp_path: Path, picture: Picture, build: Build
) -> None:
    check(CASES, name, tmp_path, picture, build)

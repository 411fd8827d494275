"""What a message about given features tells its user to do works when it is done.

Each case raises its message; the remedy is read from the message and followed; then the file is
imported, with the rows, classes or values that it should have.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from followed import Table
from jobs.contract import StageError, Work
from jobs.features.given import import_features
from jobs.features.spec import GivenStep
from jobs.storage.folder import Folder
from jobs.tuning.frozen.features import read_classes

ROWS = 60
PARTS = ("train", "validation", "test")
SPLIT = [("train", "validation", "test")[n % 3] for n in range(ROWS)]
ODD = [n % 2 for n in range(ROWS)]


def vectors() -> list[list[float]]:
    found = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
    return [row.tolist() for row in found]


@dataclass
class Case:
    """Features that are refused, with what following the message needs."""

    file: Path
    columns: dict[str, Any] = field(
        default_factory=lambda: {
            "key": [f"k{n}" for n in range(ROWS)],
            "vector": pa.array(vectors(), pa.list_(pa.float32())),
            "label": [("cat", "dog")[n] for n in ODD],
        }
    )
    settings: dict[str, Any] = field(default_factory=dict)
    raw: bytes | None = None  # the file's bytes, instead of a table of `columns`
    gone: bool = False  # the file is taken away before the step runs
    work: Work | None = None  # that was planned

    def replace(self, column: str, at: int, value: Any) -> None:
        values = list(self.columns[column])
        values[at] = value
        self.columns[column] = values

    def keep(self, rows: list[int]) -> None:
        """Leave all other rows out of the file."""
        self.columns = {name: [list(v)[n] for n in rows] for name, v in self.columns.items()}

    def write(self) -> None:
        if self.raw is not None:
            self.file.write_bytes(self.raw)
        else:
            columns = dict(self.columns)
            if isinstance(columns.get("vector"), list):
                columns["vector"] = pa.array(columns["vector"])
            pq.write_table(pa.table(columns), self.file)

    def plan(self) -> Work:
        self.write()
        folder = Folder.of(self.file.parent)
        own = {"images": "t", "parts": PARTS, "file": str(self.file)}
        own |= {"sha256": folder.sha256(self.file.name), **self.settings}
        step = GivenStep.model_validate(own)
        return Work("features/encoder/e/t", "f", step, {}, folder / "o", folder / "s")

    def run(self) -> tuple[int, tuple[str, ...]]:
        """Rows of all parts, and the classes."""
        planned = self.work or self.plan()
        if self.gone:
            self.file.unlink()
        counts = import_features(planned).counts
        return sum(counts[f"rows_{p}"] for p in PARTS), tuple(read_classes(planned.output))


Follow = Callable[[Case, re.Match[str]], Any]
NAMES = ("cat", "dog")
CASES = Table((ROWS, NAMES))  # which rows and classes are then imported
case = CASES.case


def name_in(setting: str, column: str) -> Follow:
    return lambda case, found: case.settings.update({setting: column})


# -- the file --------------------------------------------------------------------------------------


def convert(case: Case, found: re.Match[str]) -> None:
    case.raw = None


@case(r"is no Parquet file .*; convert it$", convert)
def a_csv(case: Case) -> None:
    csv.write_csv(pa.table({"key": case.columns["key"]}), case.file)
    case.raw = case.file.read_bytes()


@case(
    r"does not exist where this step runs; put it there",
    lambda case, found: (case.write(), setattr(case, "gone", False)),
)
def a_file_that_is_gone(case: Case) -> None:
    case.work, case.gone = case.plan(), True


@case(r"other sha256\); run again$", lambda case, found: setattr(case, "work", None))
def a_file_that_changed_after_it_was_planned(case: Case) -> None:
    case.work = case.plan()
    case.columns["label"] = list(reversed(case.columns["label"]))
    case.write()


@case(
    r"it has id, .*: name the right one in the encoder's (?P<setting>key), vector",
    lambda case, found: case.settings.update({found["setting"]: "id"}),
)
def another_column_of_keys(case: Case) -> None:
    case.columns = {"id": case.columns.pop("key"), **case.columns}


@case(
    r"has no rows; give it some$",
    lambda case, found: setattr(case, "columns", Case(case.file).columns),
)
def a_file_without_rows(case: Case) -> None:
    case.raw = None
    case.columns = {
        "key": pa.array([], pa.string()),
        "vector": pa.array([], pa.list_(pa.float32())),
        "label": pa.array([], pa.string()),
    }


@case(
    r"if vectors are missing, leave their rows out",
    lambda case, found: (
        case.columns.update(vector=vectors()),
        case.keep(list(range(1, ROWS))),
    ),
    (ROWS - 1, NAMES),
)
def a_vector_of_fixed_size_that_is_missing(case: Case) -> None:
    case.columns["vector"] = pa.array([None, *vectors()[1:]], pa.list_(pa.float32(), 4))


# -- keys ------------------------------------------------------------------------------------------


@case(r"column 'key' is list<.*; name another as (?P<setting>key)$", name_in("key", "id"))
def keys_that_are_lists(case: Case) -> None:
    case.columns["id"] = case.columns["key"]
    case.columns["key"] = [[n] for n in range(ROWS)]


@case(
    r"1 rows have no (?P<column>key); give each one",
    lambda case, found: case.replace(found["column"], 3, "k3"),
)
def a_row_without_a_key(case: Case) -> None:
    case.replace("key", 3, None)


@case(
    r"1 keys are in several rows \(the first: (?P<key>k\d)\); give each sample one row",
    lambda case, found: case.keep(
        [n for n in range(ROWS) if n != 3 or case.columns["key"][n] != found["key"]]
    ),
    (ROWS - 1, NAMES),
)
def a_key_in_two_rows(case: Case) -> None:
    case.replace("key", 3, "k4")


# -- vectors ---------------------------------------------------------------------------------------


@case(r"not a list of float; name another as (?P<setting>vector)$", name_in("vector", "features"))
def vectors_that_are_texts(case: Case) -> None:
    case.columns["features"] = case.columns["vector"]
    case.columns["vector"] = ["0.1, 0.2"] * ROWS


@case(
    r"different lengths \(4, 2\); give all the same$",
    lambda case, found: case.replace("vector", 5, [0.5] * 4),
)
def a_shorter_vector(case: Case) -> None:
    case.replace("vector", 5, [0.5, 0.5])
    case.columns["vector"] = [
        v.as_py() if isinstance(v, pa.Scalar) else v for v in case.columns["vector"]
    ]


@case(
    r"1 empty entries; give each a number$",
    lambda case, found: case.replace("vector", 5, [0.5] * 4),
)
def a_vector_with_an_empty_entry(case: Case) -> None:
    case.columns["vector"] = vectors()
    case.replace("vector", 5, [0.5, None, 0.5, 0.5])


def leave_out(case: Case, found: re.Match[str]) -> None:
    case.keep([n for n in range(ROWS) if case.columns["key"][n] != found["key"]])


@case(r"\(the first: key (?P<key>k\d+)\); leave them out of the file", leave_out, (ROWS - 1, NAMES))
def a_vector_that_is_not_finite(case: Case) -> None:
    case.columns["vector"] = vectors()
    case.replace("vector", 5, [0.5, float("nan"), 0.5, 0.5])


@case(
    r"or ask for (?P<value>float32) \(features\.(?P<field>dtype)\)",
    lambda case, found: case.settings.update({found["field"]: found["value"]}),
)
def a_vector_beyond_float16(case: Case) -> None:
    case.settings["dtype"] = "float16"
    case.columns["vector"] = vectors()
    case.replace("vector", 5, [1e6, 0.5, 0.5, 0.5])


# -- labels ----------------------------------------------------------------------------------------


@case(
    r"column 'label' is empty in 1 rows; give each a class$",
    lambda case, found: case.replace("label", 0, "cat"),
)
def a_row_without_a_class(case: Case) -> None:
    case.replace("label", 0, None)


@case(
    r"holds '(?P<name>dog)', which is none of (?P<field>classes)\.t; add it$",
    lambda case, found: case.settings.update(
        {found["field"]: (*case.settings["classes"], found["name"])}
    ),
)
def a_class_that_is_not_listed(case: Case) -> None:
    case.settings["classes"] = ("cat",)


@case(
    r"\(numbers are the labels of a task whose file has `(?P<field>target): (?P<value>number)`",
    lambda case, found: case.settings.update({found["field"]: found["value"]}),
    (ROWS, ()),
)
def labels_that_are_numbers(case: Case) -> None:
    case.columns["label"] = [n / 2 for n in range(ROWS)]


@case(
    r"classes are (?P<what>integers) or names",
    lambda case, found: case.columns.update(label=ODD),
    (ROWS, ("0", "1")),
)
def whole_numbers_that_are_stored_as_others(case: Case) -> None:
    case.columns["label"] = [float(n) for n in ODD]


@case(
    r"holds the label (?P<label>[\d,]+) in 60 rows; correct it",
    lambda case, found: case.columns.update(
        label=[0 if n == int(found["label"].replace(",", "")) else n for n in case.columns["label"]]
    ),
    (ROWS, ("0", "1")),
)
def a_label_far_above_all_others(case: Case) -> None:
    case.columns["label"] = [99_999, *ODD[1:]]


@case(
    r"in 60 rows; .*, or give (?P<what>names) as labels$",
    lambda case, found: case.columns.update(label=[str(n) for n in case.columns["label"]]),
    (ROWS, ("1000", "2000")),
)
def labels_that_are_ids(case: Case) -> None:
    case.columns["label"] = [1000 + 1000 * n for n in ODD]


@case(
    r"holds -1 \(key (?P<key>k\d)\), outside 0 to 1; correct it",
    lambda case, found: case.replace("label", int(found["key"][1:]), 1),
    (ROWS, ("0", "1")),
)
def a_label_below_zero(case: Case) -> None:
    case.columns["label"] = list(ODD)
    case.replace("label", 3, -1)


@case(
    r"holds (?P<label>2) \(key k0\), .*; correct it, or (?P<field>classes)\.t$",
    lambda case, found: case.settings.update({found["field"]: ("no", "yes", "maybe")}),
    (ROWS, ("no", "yes", "maybe")),
)
def a_label_without_a_name(case: Case) -> None:
    case.settings["classes"] = ("no", "yes")
    case.columns["label"] = [2, *ODD[1:]]


@case(r"but task t predicts a number; name another column", name_in("label", "score"), (ROWS, ()))
def targets_that_are_names(case: Case) -> None:
    case.settings["target"] = "number"
    case.columns["score"] = [n / 2 for n in range(ROWS)]


@case(
    r"is empty in 1 rows; give each a number$",
    lambda case, found: case.replace("label", 0, 0.5),
    (ROWS, ()),
)
def a_target_that_is_missing(case: Case) -> None:
    case.settings["target"] = "number"
    case.columns["label"] = [None, *(n / 2 for n in range(1, ROWS))]


@case(
    r"is not finite in 1 rows \(the first: key (?P<key>k\d)\); give each a number$",
    lambda case, found: case.replace("label", int(found["key"][1:]), 0.5),
    (ROWS, ()),
)
def a_target_that_is_not_finite(case: Case) -> None:
    case.settings["target"] = "number"
    case.columns["label"] = [float("inf"), *(n / 2 for n in range(1, ROWS))]


# -- parts -----------------------------------------------------------------------------------------


@case(
    r"is 'Train'; it must be (?P<word>\w+), .* or test$",
    lambda case, found: case.columns.update(
        split=[found["word"] if word == "Train" else word for word in case.columns["split"]]
    ),
)
def another_word_for_a_part(case: Case) -> None:
    case.columns["split"] = [word.replace("train", "Train") for word in SPLIT]


@case(
    r"has no test rows for task t; mark some in column '(?P<column>fold)'$",
    lambda case, found: case.columns.update({found["column"]: SPLIT}),
)
def a_split_without_a_test_part(case: Case) -> None:
    case.settings["split"] = "fold"
    case.columns["fold"] = ["train"] * ROWS


@case(
    r"has no (train|validation|test) rows for task t; mark some in column '(?P<column>split)'$",
    lambda case, found: case.columns.update({found["column"]: ["train", "validation", "test"]}),
    (3, NAMES),
)
def too_few_rows_for_every_part(case: Case) -> None:
    case.columns["vector"] = vectors()
    case.keep([0, 1, 2])
    case.columns["key"] = ["k1", "k2", "k3"]


@pytest.mark.parametrize("name", CASES)
def test_a_remedy_works_when_it_is_followed(name: str, tmp_path: Path) -> None:
    make, remedy, follow, wanted = CASES[name]
    refused = Case(tmp_path / "f.parquet")
    make(refused)
    with pytest.raises(StageError) as caught:
        refused.run()
    message = str(caught.value)
    found = re.search(remedy, message)
    assert found is not None, message
    follow(refused, found)
    assert refused.run() == wanted

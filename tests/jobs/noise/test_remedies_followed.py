"""What a message about a noise tells its user to do works when it is done.

Each case raises its message; the remedy is read from the message and followed; then the noise
changes the rows of a small corpus: as many as it should, or the very ones with the very labels.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter, ValidationError

from followed import Table
from jobs.contract import Outcome, StageError, Work
from jobs.extensions.files import find
from jobs.noise.audit import Auditor
from jobs.noise.confusions import given
from jobs.noise.derive import derive
from jobs.noise.job import build_levels
from jobs.noise.labels import Labelled
from jobs.noise.source import digested
from jobs.noise.spec import Given, Noise, NoiseStep
from jobs.storage.folder import Folder
from tests.jobs.noise.conftest import Write

KEYS = [*"abcdef"]
LABELS = ["cat", "cat", "dog", "dog", "owl", "owl"]
CLASSES = ["cat", "dog", "owl"]
GIVEN = ["cat", "owl", "dog", "dog", "owl", "owl"]
"""Noisy labels, of which that of b is wrong."""


@dataclass
class Case:
    """A noise over a corpus that is refused, with what following the message needs."""

    folder: Path
    settings: dict[str, Any]
    corpus: dict[str, Any] = field(
        default_factory=lambda: {"labels": [0, 0, 1, 1, 2, 2], "classes": CLASSES}
    )

    def text(self, name: str, content: str | bytes, **fields: Any) -> None:
        """A noise of a file with this content."""
        (self.folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        self.settings |= {"file": str(self.folder / name), **fields}

    def matrix(self, *rows: str, name: str = "m.csv") -> None:
        self.text(name, "".join(f"{row}\n" for row in rows), kind="transition")

    def table(self, columns: Mapping[str, Any], **fields: Any) -> None:
        """A noise of a Parquet file with these columns."""
        path = self.folder / "t.parquet"
        pq.write_table(pa.table(dict(columns)), path)
        self.settings |= {"file": str(path), **fields}

    def given(self, **columns: Any) -> None:
        self.table({"key": KEYS, "label": GIVEN, **columns}, kind="given", column="label")

    def instance(self, *lists: Any, keys: Any = KEYS) -> None:
        self.table({"key": keys, "probabilities": list(lists)}, kind="instance")

    def function(self, body: str, what: str = "labels") -> None:
        """A noise of an extension with this function."""
        kind = "extension" if what == "labels" else "caption_extension"
        lines = ["import numpy as np", f"def mine(keys, {what}, classes, seed):", f"    {body}"]
        (self.folder / "own.py").write_text("\n".join(lines) + "\n")
        self.settings |= {"kind": kind, "function": "own:mine"}

    def set(self, **fields: Any) -> None:
        self.settings |= fields

    def changed(self, write: Write, name: str) -> dict[str, Any]:
        """The noisy value of each changed row, by key."""
        adapter: TypeAdapter[Any] = TypeAdapter(Noise)
        noise = digested(adapter.validate_python(self.settings))
        if "function" in self.settings:
            source = find([str(self.folder / "own.py")])["own"]
            noise = noise.model_copy(update={"source": source})
        folder = write(KEYS, folder=name, **self.corpus)
        rows = derive(noise, folder).levels.changed(noise.levels[-1]).to_pylist()
        names, noisy = self.corpus.get("classes", ()), {r["key"]: r["noisy"] for r in rows}
        return {k: names[v] if isinstance(v, int) else v for k, v in noisy.items()}


Follow = Callable[[Case, re.Match[str]], None]
CASES = Table(3)  # how many rows are then changed, or which ones to what
case = CASES.case


def write(*args: Any, **fields: Any) -> Follow:
    """Follow a remedy by writing the file anew."""
    return lambda case, found: case.text(*args, **fields)


def set_to(**fields: Any) -> Follow:
    return lambda case, found: case.set(**fields)


# -- the settings ----------------------------------------------------------------------------------


@case(
    r"must be .*, `shared`, or `(?P<value>shared:)` and a number",
    lambda case, found: case.set(seed=f"{found['value']}7"),
)
def a_seed_below_zero(case: Case) -> None:
    case.set(seed=-1)


@case(r"20 is given twice; name each level once", set_to(levels=[20, 50]))
def a_level_twice(case: Case) -> None:
    case.set(levels=[20, 20, 50])


@case(
    r"class 'dgo' .*; did you mean '(?P<name>\w+)'\?",
    lambda case, found: case.set(classes=[found["name"]], levels=[30]),
    2,
)
def a_mistyped_class(case: Case) -> None:
    case.set(classes=["dgo"])


@case(
    r"names a class 'zebra' .*; it has (?P<names>.+): name one of them$",
    lambda case, found: case.set(classes=[found["names"].split(", ")[0].strip("'")], levels=[30]),
    2,
)
def a_class_of_another_corpus(case: Case) -> None:
    case.set(classes=["zebra"])


@case(
    r"'dog' twice; name each class once",
    set_to(classes=["dog"], levels=[30]),
    2,
)
def a_class_by_name_and_number(case: Case) -> None:
    case.set(classes=["dog", 1])


@case(
    r"class 0 \(id '(?P<id>\w+)'\) or .*; give its id",
    lambda case, found: case.set(classes=[found["id"]], levels=[30]),
    2,
)
def a_name_of_two_classes(case: Case) -> None:
    case.corpus |= {"classes": ["crane", "crane", "owl"], "class_ids": ["n1", "n2", "n3"]}
    case.set(classes=["crane"])


@case(
    r"class called '(?P<name>\w+)' or .*; give the name, in quotes",
    lambda case, found: case.set(classes=[found["name"]], levels=[30]),
    2,
)
def a_number_that_is_another_class_s_name(case: Case) -> None:
    case.corpus["classes"] = ["1", "0", "2"]
    case.set(classes=[0])


@case(
    r"give a level of at most (?P<level>[\d.]+)",
    lambda case, found: case.set(levels=[float(found["level"])]),
    2,
)
def a_level_above_what_can_change(case: Case) -> None:
    case.set(kind="subset", classes=["cat", "dog"], levels=[90])
    case.corpus["labels"] = [0, 2, 1, 2, 2, 2]


@case(
    r"give a level of at most (?P<level>[\d.]+)",
    lambda case, found: case.set(levels=[float(found["level"])]),
    2,
)
def a_level_above_what_can_be_swapped(case: Case) -> None:
    case.set(kind="caption_swap")
    case.corpus = {"captions": ["x", "y", "x", "x", "x", "x"]}


@case(r"use a kind of noise for (?P<what>captions)", set_to(kind="caption_swap"), 4)
def labels_that_are_not_there(case: Case) -> None:
    case.corpus = {"labels": [0, 0, 1, None, 2, 2], "captions": KEYS, "classes": ()}


@case(r"use a kind of noise for (?P<what>labels)", set_to(kind="symmetric"))
def captions_that_are_not_there(case: Case) -> None:
    case.set(kind="caption_swap")


@case(r"use another kind of noise", set_to(kind="caption_swap"), 4)
def a_corpus_of_one_class(case: Case) -> None:
    case.corpus = {"labels": [0] * 6, "captions": KEYS, "classes": ["cat"]}


@case(
    r"(?P<field>column) are given together, or neither",
    lambda case, found: case.set(**{found["field"]: "cluster"}),
    {"a": "f", "f": "a"},
)
def a_file_of_clusters_without_a_column(case: Case) -> None:
    case.corpus["captions"] = KEYS
    rows = "key,cluster\na,x\nb,1\nc,2\nd,3\ne,4\nf,x\n"
    case.text("c.csv", rows, kind="caption_swap_near", levels=[30])


def renamed(case: Case, found: re.Match[str]) -> None:
    del case.settings[found["field"]]
    case.settings[found["name"]] = "m"


# -- the file itself -------------------------------------------------------------------------------


@case(
    r"cannot be read \(No such file or directory\); correct (noise\.)(?P<field>file)",
    lambda case, found: case.set(**{found["field"]: str(case.folder / "t.parquet")}),
    {"b": "owl"},
)
def a_file_that_is_not_there(case: Case) -> None:
    case.given()
    case.set(file=str(case.folder / "table.parquet"))


@case(
    r"is not a readable Parquet file .*; restore it",
    lambda case, found: case.given(),
    {"b": "owl"},
)
def a_damaged_file(case: Case) -> None:
    case.text("t.parquet", "key,label\n", kind="given", column="label")


@case(
    r"has no column 'labels'; it has \w+, (?P<name>\w+): name .* or noise\.(?P<field>column)$",
    lambda case, found: case.set(**{found["field"]: found["name"]}),
    {"b": "owl"},
)
def a_column_that_is_not_there(case: Case) -> None:
    case.given()
    case.set(column="labels")


def rename_column(case: Case, found: re.Match[str]) -> None:
    path = case.folder / "t.csv"
    path.write_text(path.read_text().replace(f"{found['name']}\n", "label_of_two\n", 1))


@case(r"has two columns '(?P<name>\w+)'; give each its own name", rename_column, {"b": "owl"})
def a_column_twice(case: Case) -> None:
    rows = "".join(f"{key},{label},x\n" for key, label in zip(KEYS, GIVEN, strict=True))
    case.text("t.csv", f"key,label,label\n{rows}", kind="given", column="label")


@case(
    r"leave out noise\.(?P<field>sha256) and give the noise a new (?P<name>name)",
    renamed,
    {"b": "owl"},
)
def another_file_than_its_digest_says(case: Case) -> None:
    case.given()
    case.set(sha256="0" * 64)


@case(
    r"leave out noise\.(?P<field>sha256) and give the noise a new (?P<name>name)",
    renamed,
)
def another_matrix_than_its_digest_says(case: Case) -> None:
    case.matrix("0,1,0", "0,0,1", "1,0,0")
    case.set(sha256="0" * 64)


def save_in_utf_8(case: Case, found: re.Match[str]) -> None:
    path = case.folder / "t.csv"
    path.write_text(path.read_bytes().decode("latin-1"), encoding="utf-8")


@case(r"not in UTF-8; save the file in UTF-8", save_in_utf_8, {"b": "käuz"})
def a_file_in_another_encoding(case: Case) -> None:
    case.corpus["classes"] = ["cat", "dog", "käuz"]
    names = [name.replace("owl", "käuz") for name in GIVEN]
    rows = "".join(f"{key},{label}\n" for key, label in zip(KEYS, names, strict=True))
    case.text("t.csv", f"key,label\n{rows}".encode("latin-1"), kind="given", column="label")


# -- groups of classes -----------------------------------------------------------------------------

GROUPS = "class,group\ncat,animal\ndog,animal\nowl,bird\n"


@case(
    r"\(the first: '(?P<name>\w+)'\); add a row for each class",
    lambda case, found: case.text("g.csv", f"{GROUPS[:-9]}{found['name']},bird\n"),
)
def a_class_without_a_group(case: Case) -> None:
    case.text("g.csv", GROUPS[:-9], kind="groups")


@case(r"'cat' twice; name each class once", write("g.csv", GROUPS))
def a_class_with_two_groups(case: Case) -> None:
    case.text("g.csv", f"{GROUPS}cat,bird\n", kind="groups")


@case(
    r"'Animal' and 'animal' .*; give a group one spelling",
    write("g.csv", GROUPS),
)
def a_group_with_two_spellings(case: Case) -> None:
    case.text("g.csv", GROUPS.replace("dog,a", "dog,A"), kind="groups")


@case(
    r"give a CSV with the columns (?P<one>\w+) and (?P<two>\w+), or JSON",
    lambda case, found: case.text(
        "g.csv", GROUPS.replace("class,group", f"{found['one']},{found['two']}")
    ),
)
def a_grouping_with_other_columns(case: Case) -> None:
    case.text("g.csv", GROUPS.replace("group", "parent"), kind="groups")


@case(
    r"or JSON (?P<form>\{class: group\})",
    write("g.json", '{"cat": "animal", "dog": "animal", "owl": "bird"}'),
)
def a_grouping_as_a_list(case: Case) -> None:
    case.text("g.json", '["cat", "dog", "owl"]', kind="groups")


@case(
    r"its number \('(?P<number>\d)'\) and another .* \('1'\); use names for all",
    lambda case, found: case.text("g.csv", "class,group\n1,a\n0,a\nowl,b\n"),
)
def a_grouping_of_names_and_numbers(case: Case) -> None:
    case.corpus["classes"] = ["1", "0", "owl"]
    case.text("g.csv", "class,group\n1,a\n0,a\n2,b\n", kind="groups")


# -- matrices --------------------------------------------------------------------------------------

CYCLE = ("0,1,0", "0,0,1", "1,0,0")


def cycle(case: Case, found: re.Match[str]) -> None:
    case.matrix(*CYCLE)


@case(r"give npy, csv without a header, or parquet", cycle)
def a_matrix_with_a_header(case: Case) -> None:
    case.matrix("cat,dog,owl", *CYCLE)


@case(
    r"give (?P<form>npy), csv",
    lambda case, found: (
        np.save(case.folder / "m", np.eye(3)[[1, 2, 0]]),
        case.set(file=str(case.folder / f"m.{found['form']}")),
    )[-1],
)
def a_matrix_of_objects(case: Case) -> None:
    np.save(case.folder / "o.npy", np.array([["0", "1", None]], object))
    case.set(file=str(case.folder / "o.npy"), kind="transition")


@case(r"is 2 x 2; give one of 3 x 3, a row for each class", cycle)
def a_matrix_of_too_few_classes(case: Case) -> None:
    case.matrix("0,1", "1,0")


@case(r"negative or missing number in row 1; correct it", cycle)
def a_matrix_with_a_negative_number(case: Case) -> None:
    case.matrix("0,1,0", "0,-1,2", "1,0,0")


@case(r"row 1 sums to 0\.9; make every row sum to 1", cycle)
def a_row_that_does_not_sum_to_one(case: Case) -> None:
    case.matrix("0,1,0", "0,0,0.9", "1,0,0")


def order_like_classes(case: Case, found: re.Match[str]) -> None:
    case.table(dict(zip(CLASSES, np.eye(3)[[1, 2, 0]].T, strict=True)))


@case(r"order rows and columns like the classes", order_like_classes)
def a_matrix_in_another_order(case: Case) -> None:
    case.table({"owl": [0.0, 0, 1], "cat": [1.0, 0, 0], "dog": [0.0, 1, 0]}, kind="transition")


@case(
    r"to class 2, which has no training row; set its column to 0, and make every row sum to 1",
    lambda case, found: case.matrix("0,1,0", "1,0,0", "1,0,0"),
)
def a_matrix_with_a_class_without_rows(case: Case) -> None:
    case.corpus["labels"] = [0, 0, 0, 1, 1, 1]
    case.matrix(*CYCLE)


# -- tables by key ---------------------------------------------------------------------------------


@case(
    r"no 'label' to 1 of 6 training rows \(the first: key '(?P<key>\w)'\); give every key one",
    lambda case, found: case.given(key=[*KEYS[:-1], found["key"]]),
    {"b": "owl"},
)
def a_key_without_a_label(case: Case) -> None:
    case.given(key=[*KEYS[:-1], "x"])


@case(
    r"row (?P<row>\d)\); give each row a key",
    lambda case, found: case.given(key=[*KEYS[: int(found["row"])], "f"]),
    {"b": "owl"},
)
def a_row_without_a_key(case: Case) -> None:
    case.given(key=[*KEYS[:-1], None])


@case(
    r"a key twice \(the first: 'e'\); give each key one row",
    lambda case, found: case.given(),
    {"b": "owl"},
)
def a_key_in_two_rows(case: Case) -> None:
    case.given(key=[*KEYS[:-1], "e"])


@case(
    r"column 'label' holds list<.*> in a row, .*; name another column",
    set_to(column="name"),
    {"b": "owl"},
)
def a_column_of_lists(case: Case) -> None:
    case.given(label=[[0]] * 6, name=GIVEN)


@case(
    r"differ from the clean ones in .*; give noise\.levels=\[0, (?P<rate>[\d.]+)\]",
    lambda case, found: case.set(levels=[0, float(found["rate"])]),
    {"b": "owl"},
)
def a_level_of_given_labels(case: Case) -> None:
    case.given()
    case.set(levels=[0, 20])


@pytest.mark.parametrize("wrong", [1, 3, 1001, 2997])
def test_the_level_of_given_labels_that_a_message_gives_is_accepted(wrong: int) -> None:
    samples = Labelled.of("c", [f"k{n}" for n in range(3000)], [0] * 2999 + [1], 2)
    plan = given(samples, np.array([1] * wrong + [0] * (2999 - wrong) + [1], np.int32))
    with pytest.raises(StageError, match=r"give noise\.levels=\[0, [\d.]+\]$") as caught:
        plan.changed(50)
    levels = json.loads(str(caught.value).rpartition("=")[2])
    noise = Given(name="n", file="t.csv", column="label", levels=levels)
    assert [len(plan.changed(level)) for level in noise.levels] == [0, wrong]


@case(
    r"differ .* in 100\.000 %.*; correct noise\.file or noise\.(?P<field>column)",
    lambda case, found: case.set(**{found["field"]: "label_of_two"}),
    {"b": "owl"},
)
def given_labels_that_are_all_wrong(case: Case) -> None:
    case.given(label=["dog", "dog", "owl", "owl", "cat", "cat"], label_of_two=GIVEN)


@case(
    r"differ .* in 0\.000 %.*; correct noise\.(?P<field>column), or",
    lambda case, found: case.set(**{found["field"]: "label_of_two"}),
    {"b": "owl"},
)
def given_labels_that_are_the_clean_ones(case: Case) -> None:
    case.given(label=LABELS, label_of_two=GIVEN)


@case(r"or give noise\.levels=\[(?P<level>0)\]$", set_to(levels=[0]), 0)
def given_labels_that_are_the_clean_ones_on_purpose(case: Case) -> None:
    case.given(label=LABELS)


@case(
    r"gives key 'a' the class 2, which has no training row .*; correct noise\.file",
    lambda case, found: case.given(label=["dog", *["cat"] * 2, *["dog"] * 3]),
    {"a": "dog"},
)
def given_labels_of_a_class_without_rows(case: Case) -> None:
    case.corpus["labels"] = [0, 0, 0, 1, 1, 1]
    case.given(label=["owl", *["cat"] * 2, *["dog"] * 3])


DOUBT = [0.2, 0.5, 0.3]


@case(
    r"lists of column 'probabilities' differ in length; give each key one probability for each",
    lambda case, found: case.instance(*[DOUBT] * 6),
)
def probabilities_of_different_lengths(case: Case) -> None:
    case.instance(*[DOUBT] * 5, [0.5, 0.5])


@case(
    r"1 of 6 training rows have no class probabilities; give noise\.file a row for every key",
    lambda case, found: case.instance(*[DOUBT] * 6),
)
def a_key_without_probabilities(case: Case) -> None:
    case.instance(*[DOUBT] * 5, keys=KEYS[:5])


@case(
    r"gives 2 probabilities a key; give one for each of the 3 classes",
    lambda case, found: case.instance(*[DOUBT] * 6),
)
def probabilities_of_other_classes(case: Case) -> None:
    case.instance(*[[0.5, 0.5]] * 6)


@case(
    r"of key 'f' are not numbers of at least 0 that sum to 1; correct noise\.file",
    lambda case, found: case.instance(*[DOUBT] * 6),
)
def probabilities_that_are_scores(case: Case) -> None:
    case.instance(*[DOUBT] * 5, [2.0, -1.0, 3.0])


@case(
    r"holds double in a row, not a list of class probabilities; name another column",
    lambda case, found: case.set(column="lists"),
)
def a_column_of_one_probability(case: Case) -> None:
    case.table({"key": KEYS, "probabilities": [0.5] * 6, "lists": [DOUBT] * 6}, kind="instance")


# -- functions of an extension ---------------------------------------------------------------------

THRESHOLDS = "np.arange(len(keys)) / len(keys)"


def function(body: str, what: str = "labels") -> Follow:
    return lambda case, found: case.function(f"return {body}", what)


FIRST = {"a": "dog", "b": "dog", "c": "owl"}
"""What the next class gives by rising thresholds."""


@case(r"return \((?P<form>thresholds, replacements)\)", function(f"{THRESHOLDS}, (labels + 1) % 3"))
def a_function_that_returns_one_thing(case: Case) -> None:
    case.function("return (labels + 1) % 3")


@case(
    r"thresholds are not numbers; return one for each key",
    function(f"{THRESHOLDS}, (labels + 1) % 3"),
    FIRST,
)
def thresholds_that_are_words(case: Case) -> None:
    case.function("return keys, (labels + 1) % 3")


@case(
    r"thresholds have the shape \(3,\), not \(6,\); return one for each key",
    function(f"{THRESHOLDS}, (labels + 1) % 3"),
    FIRST,
)
def thresholds_of_some_keys(case: Case) -> None:
    case.function("return np.zeros(3), (labels + 1) % 3")


@case(
    r"labels are not 6 whole numbers; return one for each key",
    function(f"{THRESHOLDS}, (labels + 1) % 3"),
    FIRST,
)
def labels_that_are_names(case: Case) -> None:
    case.function(f"return {THRESHOLDS}, [classes[0]] * len(keys)")


@case(
    r"label 3 is outside 0\.\.2, .*; return one of these",
    function(f"{THRESHOLDS}, (labels + 1) % 3"),
    FIRST,
)
def labels_outside_the_classes(case: Case) -> None:
    case.function(f"return {THRESHOLDS}, labels + 1")


EMPTY = "'owl', which has no training row .*; give another class, or the threshold NaN"


def none_for_owl(case: Case, found: re.Match[str]) -> None:
    case.function(f"return np.where(labels == 1, np.nan, {THRESHOLDS}), labels + 1")


@case(EMPTY, none_for_owl, {"a": "dog", "b": "dog", "c": "dog"})
def labels_of_a_class_without_rows(case: Case) -> None:
    case.corpus["labels"] = [0, 0, 0, 1, 1, 1]
    case.function(f"return {THRESHOLDS}, labels + 1")


@case(
    r"captions are a str; return a list of 6 texts",
    function(f"{THRESHOLDS}, [c.upper() for c in captions]", "captions"),
    {"a": "A", "b": "B", "c": "C"},
)
def captions_that_are_one_text(case: Case) -> None:
    case.corpus = {"captions": KEYS}
    case.function(f"return {THRESHOLDS}, 'abcdef'", "captions")


@case(
    r"captions are not 6 texts, .* with words in each and no NUL; return such a list",
    function(f"{THRESHOLDS}, [c.upper() for c in captions]", "captions"),
    {"a": "A", "b": "B", "c": "C"},
)
def captions_without_words(case: Case) -> None:
    case.corpus = {"captions": KEYS}
    case.function(f"return {THRESHOLDS}, [' '] * len(keys)", "captions")


@pytest.mark.parametrize("name", CASES)
def test_a_remedy_works_when_it_is_followed(name: str, tmp_path: Path, corpus: Write) -> None:
    make, remedy, follow, wanted = CASES[name]
    refused = Case(tmp_path, {"name": "n", "kind": "symmetric", "levels": [50]})
    make(refused)
    if refused.settings["kind"] == "given" and refused.settings["levels"] == [50]:
        refused.settings["levels"] = [0, 16.7]
    with pytest.raises((StageError, ValidationError)) as caught:
        refused.changed(corpus, "refused")
    message = str(caught.value)
    found = re.search(remedy, message)
    assert found is not None, message
    follow(refused, found)
    changed = refused.changed(corpus, "followed")
    assert changed == wanted or len(changed) == wanted, changed


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "changed.parquet is gone": lambda noise: (noise / "changed.parquet").unlink(),
    "overlay.json is gone": lambda noise: (noise / "overlay.json").unlink(),
    "half of changed.parquet": lambda noise: (noise / "changed.parquet").write_bytes(b"PAR1"),
    "another overlay.json": lambda noise: (noise / "overlay.json").write_text("{}"),
    "another table": lambda noise: pq.write_table(
        pa.table({"row": [0]}), noise / "changed.parquet"
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_noise_is_sound_once_it_is_built_again(
    name: str, tmp_path: Path, corpus: Write
) -> None:
    clean = corpus(KEYS, [0, 0, 1, 1, 2, 2], classes=CLASSES)
    noise = {"name": "n", "kind": "symmetric", "levels": [50]}
    step = NoiseStep.model_validate({"corpus": "c", "noise": noise, "level": 50})
    output = Folder.of(tmp_path / "noise")

    def build() -> None:
        (outcome,) = build_levels([Work("noise/c/n", "f", step, {"corpus": clean}, output, output)])
        assert isinstance(outcome, Outcome)

    build()
    DAMAGES[name](tmp_path / "noise")
    with pytest.raises(StageError, match=r"delete its folder and build the noise again$"):
        Auditor(step.noise, clean).audit(output)
    shutil.rmtree(tmp_path / "noise")
    build()
    assert Auditor(step.noise, clean).audit(output).sound

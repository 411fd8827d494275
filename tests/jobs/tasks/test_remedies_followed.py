"""What a message about a task tells its user to do works when it is done.

Each case raises its message, when the task's file is read or when `tasks check` compares it with
other tasks and with its data; the remedy is read from the message and followed; then the file has
no fault, and no further one.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from followed import Table
from jobs.tasks.check import data_faults, faults, link_faults
from jobs.tasks.registry import TaskError, load, names

FACTS = {"homepage": "here", "get": "it is there", "sizes": {"reader": 6}, "classes": 3}
CORPUS: dict[str, Any] = {"name": "c", "reader": {"kind": "imagefolder", "path": "photos"}}
TEXTS = "text,label\na,no\nb,yes\nc,no\nd,yes\n"
TESTS_ONLY = {"train": 0, "validation": 0, "test": 1}


def picture(number: int, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
    stream = io.BytesIO()
    image = Image.fromarray(pixels if mode == "RGB" else pixels[:, :, 0] % 2)
    image.save(stream, "PNG")
    return stream.getvalue()


@dataclass
class Case:
    """A task that is refused, with what following the message needs."""

    folder: Path
    task: dict[str, Any] = field(
        default_factory=lambda: {"title": "Mine", "domain": "id", "corpus": {**CORPUS}}
    )
    others: dict[str, dict[str, Any]] = field(default_factory=dict)
    classes: tuple[str, ...] = ("cat", "dog", "owl")
    raw: str = ""  # the file's text, instead of `task`

    def set(self, **fields: Any) -> None:
        self.task |= fields

    def facts(self, **fields: Any) -> None:
        self.task["facts"] = {**FACTS, **fields}

    def drop(self, *fields: str) -> None:
        for name in fields:
            self.task.pop(name, None)

    def write(self, name: str, content: str) -> None:
        (self.folder / name).write_text(content)

    def texts(self, content: str = TEXTS, **reader: Any) -> None:
        """A task of a table of texts."""
        (self.folder / "t.csv").write_text(content)
        fields = {"kind": "table", "path": "t.csv", "fields": {}, **reader}
        self.set(source="text", corpus={"name": "c", "modality": "text", "reader": fields})

    def tests(self, other: str, **fields: Any) -> None:
        """An OOD task for the heads of another, which is one of images of the same classes."""
        corpus = {**CORPUS, "name": "d", "parts": TESTS_ONLY}
        self.set(domain="ood", trained_on=other, corpus=corpus, **fields)
        self.others[other] = {"title": "Its", "domain": "id", "corpus": {**CORPUS}}

    def masks(self, **fields: Any) -> None:
        """A corpus of images, with masks if its reader names them."""
        columns = [[picture(n, mode) for n in range(4)] for mode in ("RGB", "L")]
        table = pa.table({"image": columns[0], "mask": columns[1], "label": [0, 1, 0, 1]})
        pq.write_table(table, self.folder / "m.parquet")
        self.set(corpus={"name": "m", "reader": {"kind": "parquet", "path": "m.parquet", **fields}})

    def fault(self) -> str | None:
        """What is said of the task first; None: nothing."""
        for number in range(6):
            path = self.folder / "photos" / self.classes[number % 3] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number))
        folder = self.folder / "tasks"
        folder.mkdir(exist_ok=True)
        for name, task in {**self.others, "mine": self.task}.items():
            (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **task}))
        if self.raw:
            (folder / "mine.yaml").write_text(self.raw)
        try:
            tasks = {n: load(n, [folder], str(self.folder)) for n in (*self.others, "mine")}
        except TaskError as error:
            return str(error)
        mine = tasks["mine"]
        said = [*faults(mine), *link_faults(mine, tasks), *data_faults(mine)]
        return said[0] if said else None


Follow = Callable[[Case, re.Match[str]], Any]
CASES = Table()
case = CASES.case


def set_to(**fields: Any) -> Follow:
    return lambda case, found: case.set(**fields)


def drop(*fields: str) -> Follow:
    return lambda case, found: case.drop(*fields)


def drop_named(case: Case, found: re.Match[str]) -> None:
    case.drop(found["field"])


# -- the file --------------------------------------------------------------------------------------


@case(r"rename .* or the task to (?P<name>\w+)$", lambda case, found: case.set(name=found["name"]))
def another_name_than_the_file_s(case: Case) -> None:
    case.set(name="yours")


@case(
    r"unknown field metrik \(did you mean (?P<name>\w+)\?\)",
    lambda case, found: case.set(**{found["name"]: case.task.pop("metrik")}),
)
def a_mistyped_field(case: Case) -> None:
    case.set(metrik="macro_f1")


@case(r"title is missing; give it a value$", set_to(title="Mine"))
def no_title(case: Case) -> None:
    case.drop("title")


@case(
    r"domain = 'ID': must be one of (?P<value>\w+),",
    lambda case, found: case.set(domain=found["value"]),
)
def another_domain(case: Case) -> None:
    case.set(domain="ID")


@case(
    r"metric = 'acuracy': .* did you mean (?P<name>\w+)\?",
    lambda case, found: case.set(metric=found["name"]),
)
def a_mistyped_metric(case: Case) -> None:
    case.set(metric="acuracy")


@case(
    r"not valid YAML: .* a second colon; put the value in quotes",
    lambda case, found: setattr(case, "raw", case.raw.replace("a: b", "'a: b'")),
)
def a_colon_in_a_title(case: Case) -> None:
    text = yaml.safe_dump({"name": "mine", **case.task}).replace("title: Mine", "title: a: b")
    case.raw = text


@case(
    r"classes: kept\.tsv cannot be read .*; correct it",
    lambda case, found: case.write("tasks/kept.tsv", "cat\ndog\n"),
)
def a_table_that_is_not_there(case: Case) -> None:
    case.set(classes={"file": "kept.tsv"})


@case(
    r"kept\.tsv names nothing; correct it",
    lambda case, found: case.write("tasks/kept.tsv", "cat\ndog\n"),
)
def an_empty_table(case: Case) -> None:
    (case.folder / "tasks").mkdir()
    case.write("tasks/kept.tsv", "# nothing\n")
    case.set(classes={"file": "kept.tsv"})


@case(
    r"kept\.tsv: a name begins two lines; keep it in one",
    lambda case, found: case.write("tasks/kept.tsv", "pet\tcat\tdog\nowl\n"),
)
def a_name_in_two_lines(case: Case) -> None:
    (case.folder / "tasks").mkdir()
    case.write("tasks/kept.tsv", "pet\tcat\npet\tdog\nowl\n")
    case.set(classes={"file": "kept.tsv"})


# -- ID and OOD ------------------------------------------------------------------------------------


@case(
    r"needs `(?P<field>trained_on)`: the ID task of its heads",
    lambda case, found: case.set(**{found["field"]: "animals"}),
)
def an_ood_task_without_heads(case: Case) -> None:
    case.tests("animals")
    case.drop("trained_on")


@case(
    r"ID task mine cannot have `trained_on`.*; leave them out",
    drop("trained_on"),
)
def an_id_task_with_heads_of_another(case: Case) -> None:
    case.set(trained_on="animals")


@case(
    r"cannot have `trained_on`.* or set `domain: (?P<value>ood)`",
    lambda case, found: case.set(domain=found["value"]),
)
def an_ood_task_called_an_id_task(case: Case) -> None:
    case.tests("animals")
    case.set(domain="id")


@case(
    r"trained_on: animal is not a task; name an ID task",
    set_to(trained_on="animals"),
)
def heads_of_no_task(case: Case) -> None:
    case.tests("animals")
    case.set(trained_on="animal")


@case(
    r"trained_on: sketches is an OOD task; name an ID task",
    set_to(trained_on="animals"),
)
def heads_of_an_ood_task(case: Case) -> None:
    case.tests("animals")
    case.others["sketches"] = {**case.task}
    case.set(trained_on="sketches")


@case(
    r"predicts a number from text, and this task a class from images; name an ID task like this",
    set_to(trained_on="animals"),
)
def heads_that_predict_numbers(case: Case) -> None:
    case.texts("text,label\na,0.5\nb,1\n", labels="numbers")
    case.others["stars"] = {**case.task, "target": "number", "metric": "pearson"}
    case.drop("source")
    case.tests("animals")
    case.set(trained_on="stars")


@case(
    r"animals has no class 'hound' \(2 such\); give (?P<field>answers): it has cat, dog, owl",
    lambda case, found: case.set(
        **{found["field"]: {"tabby": ["cat"], "hound": ["dog"], "owl": ["owl"]}}
    ),
)
def classes_of_other_names(case: Case) -> None:
    case.tests("animals")
    case.set(classes={"tabby": ["cat"], "hound": ["dog"], "owl": ["owl"]})


@case(
    r"has no class 'cta' .*; correct answers: it has (?P<names>.+)$",
    lambda case, found: case.set(answers={"cat": [found["names"].split(", ")[0]], "dog": ["dog"]}),
)
def an_answer_of_no_class(case: Case) -> None:
    case.tests("animals")
    case.set(classes={"cat": ["cat"], "dog": ["dog"]}, answers={"cat": ["cta"], "dog": ["dog"]})


@case(
    r"answers are for other classes than the task's; give them for (?P<names>.+)$",
    lambda case, found: case.set(answers={name: [name] for name in found["names"].split(", ")}),
)
def answers_for_other_classes(case: Case) -> None:
    case.tests("animals")
    case.set(answers={"cat": ["cat"]})


@case(
    r"the file of animals does not name its classes: give facts\.class_names",
    lambda case, found: case.others["animals"]["facts"].update(class_names=[*case.classes]),
)
def heads_of_a_task_whose_data_is_elsewhere(case: Case) -> None:
    case.tests("animals")
    case.others["animals"]["facts"] = {**FACTS}
    case.others["animals"]["corpus"] = {
        "name": "e",
        "reader": {"kind": "imagefolder", "path": "nowhere"},
    }


# -- source and corpus -----------------------------------------------------------------------------


@case(
    r"has given features, so it cannot have `corpus` or `shift`; leave them out",
    drop("corpus"),
)
def given_features_with_a_corpus(case: Case) -> None:
    case.set(source="features")


@case(
    r"cannot have `corpus` or `shift`; .* or correct `(?P<field>source)`",
    lambda case, found: case.set(**{found["field"]: "images"}),
)
def a_corpus_called_given_features(case: Case) -> None:
    case.set(source="features")


@case(
    r"needs a `corpus`, or `source: (?P<value>features)`",
    lambda case, found: case.set(source=found["value"]),
)
def no_corpus(case: Case) -> None:
    case.drop("corpus")


@case(
    r"has source images, and its corpus is of modality (?P<value>text); correct one of them",
    lambda case, found: case.set(source=found["value"]),
)
def texts_called_images(case: Case) -> None:
    case.texts()
    case.drop("source")


@case(r"shifts are for images; leave `(?P<field>shift)` out", drop_named)
def a_shift_of_texts(case: Case) -> None:
    case.texts()
    case.others["reviews"] = {**case.task}
    case.set(domain="ood", trained_on="reviews", shift={"kind": "rotate", "strength": 30})


@case(
    r"give corpus\.parts\.(?P<part>test) a share or a reader",
    lambda case, found: case.task["corpus"].update(
        parts={"train": 0.6, "validation": 0.2, found["part"]: 0.2}
    ),
)
def a_corpus_without_a_test_part(case: Case) -> None:
    case.task["corpus"]["parts"] = {"train": 0.8, "validation": 0.2, "test": 0}


# -- target and metric -----------------------------------------------------------------------------


@case(
    r"a class is judged by (?P<value>\w+), .*: use one of these",
    lambda case, found: case.set(metric=found["value"]),
)
def a_metric_of_numbers(case: Case) -> None:
    case.set(metric="pearson")


@case(
    r"predicts a number, which has no `classes` and no `answers`; leave them out",
    drop("classes", "answers"),
)
def classes_of_numbers(case: Case) -> None:
    case.texts("text,label\na,0.5\nb,1\n", labels="numbers")
    case.set(target="number", metric="pearson", classes={"low": [0]})


@case(
    r"give its features \(`source: (?P<value>features)`\)",
    lambda case, found: (case.set(source=found["value"]), case.drop("corpus")),
)
def numbers_of_images(case: Case) -> None:
    case.set(target="number", metric="pearson")


@case(
    r"set `labels: (?P<value>numbers)` in its reader",
    lambda case, found: case.texts("text,label\na,0.5\nb,1\n", labels=found["value"]),
)
def numbers_read_as_classes(case: Case) -> None:
    case.texts("text,label\na,0.5\nb,1\n")
    case.set(target="number", metric="pearson")


@case(
    r"set `labels: classes` in its reader, or correct (?P<field>target)",
    lambda case, found: case.set(**{found["field"]: "number", "metric": "pearson"}),
)
def classes_read_as_numbers(case: Case) -> None:
    case.texts("text,label\na,0.5\nb,1\n", labels="numbers")


@case(
    r"set `target: (?P<value>mask)`",
    lambda case, found: case.set(target=found["value"], metric="miou"),
)
def masks_called_classes(case: Case) -> None:
    case.masks(mask="mask", classes=["ground", "sky"])


@case(
    r"name its masks in the reader",
    lambda case, found: case.masks(mask="mask", classes=["ground", "sky"]),
)
def masks_that_the_reader_does_not_name(case: Case) -> None:
    case.masks(label="label", classes=["ground", "sky"])
    case.set(target="mask", metric="miou")


@case(
    r"give it `source: (?P<value>images)` and a reader with masks",
    lambda case, found: (
        case.masks(mask="mask", classes=["ground", "sky"]),
        case.set(source=found["value"]),
    ),
)
def masks_of_texts(case: Case) -> None:
    case.texts()
    case.set(target="mask", metric="miou")


@case(r"(?P<field>upsampling) is for `target: mask`; leave it out", drop_named)
def a_field_of_masks(case: Case) -> None:
    case.set(upsampling="bilinear")


@case(
    r"upsampling: bilinear, but scenes has (?P<value>nearest), .*; give both the same",
    lambda case, found: case.set(upsampling=found["value"]),
)
def masks_that_are_enlarged_otherwise_than_their_heads_were_tested(case: Case) -> None:
    case.masks(mask="mask", classes=["ground", "sky"])
    case.set(target="mask", metric="miou")
    case.others["scenes"] = {**case.task}
    corpus = {**case.task["corpus"], "name": "d", "parts": TESTS_ONLY}
    case.set(domain="ood", trained_on="scenes", corpus=corpus, upsampling="bilinear")


YES = {"no": ["no"], "yes": ["yes"]}


@case(
    r"counts one class of two; name both under `(?P<field>classes)`, the counted one last",
    lambda case, found: case.set(**{found["field"]: YES}),
)
def f1_without_classes(case: Case) -> None:
    case.texts()
    case.set(metric="f1")


@case(
    r"f1 needs two classes, not 3; name two",
    set_to(classes={"cat": ["cat"], "dog": ["dog"]}),
)
def f1_of_three_classes(case: Case) -> None:
    case.set(metric="f1", classes={name: [name] for name in case.classes})


@case(r"f1 needs two classes, not 3; .* or use another metric", set_to(metric="macro_f1"))
def f1_of_three_classes_that_all_count(case: Case) -> None:
    case.set(metric="f1", classes={name: [name] for name in case.classes})


# -- classes and answers ---------------------------------------------------------------------------


@case(r"(?P<field>classes) lists nothing; name the classes, or leave it out", drop_named)
def no_classes(case: Case) -> None:
    case.set(classes={})


@case(r"has a class without a name; give it one", set_to(classes={"cat": ["cat"], "dog": ["dog"]}))
def a_class_without_a_name(case: Case) -> None:
    case.set(classes={"cat": ["cat"], "": ["dog"]})


@case(r"make them one class", set_to(classes={"cat": ["cat", "dog"], "owl": ["owl"]}))
def classes_that_look_alike(case: Case) -> None:
    case.set(classes={"cat": ["cat"], "Cat": ["dog"], "owl": ["owl"]})


@case(r"classes\.dog lists nothing; name at least one", set_to(classes={"dog": ["dog"]}))
def a_class_without_members(case: Case) -> None:
    case.set(classes={"dog": []})


@case(
    r"'(?P<name>cat)' counts as two of classes; keep it in one of them",
    lambda case, found: case.set(classes={"cat": [found["name"]], "dog": ["dog"]}),
)
def a_member_of_two_classes(case: Case) -> None:
    case.set(classes={"cat": ["cat"], "dog": ["dog", "cat"]})


@case(
    r"only one names '(?P<name>owl)': name it in both, or in none",
    lambda case, found: case.task["answers"].pop(found["name"]),
)
def an_answer_of_a_class_that_is_left_out(case: Case) -> None:
    case.tests("animals")
    answers = {name: [name] for name in case.classes}
    case.set(classes={"cat": ["cat"], "dog": ["dog"]}, answers=answers)


@case(
    r"classes\.cat names 'kat', which the data lacks; use one of (?P<name>\w+),",
    lambda case, found: case.set(classes={"cat": [found["name"]], "dog": ["dog"]}),
)
def a_member_that_the_data_lacks(case: Case) -> None:
    case.set(classes={"cat": ["kat"], "dog": ["dog"]})


@case(
    r"write the name, in quotes: '(?P<name>\d)'",
    lambda case, found: case.set(classes={"one": [found["name"]], "two": ["2"]}),
)
def a_label_that_is_another_class_s_name(case: Case) -> None:
    case.classes = ("1", "2", "3")
    case.set(classes={"one": [1], "two": ["2"]})


@case(
    r"classes\.dog names 'cat', which classes\.cat names as 0; keep it in one of them",
    set_to(classes={"cat": [0], "dog": ["dog"]}),
)
def a_member_by_name_and_by_label(case: Case) -> None:
    case.set(classes={"cat": [0], "dog": ["dog", "cat"]})


@case(
    r"labels (?P<label>0) and 2 are called; write the label",
    lambda case, found: case.set(classes={"bird": [int(found["label"])], "machine": [2]}),
)
def a_name_that_two_classes_of_the_data_have(case: Case) -> None:
    case.write("names.txt", "cat crane\ndog fox\nowl crane\n")
    case.task["corpus"] = {**CORPUS, "reader": {**CORPUS["reader"], "class_names": "names.txt"}}
    case.set(classes={"bird": ["crane"], "machine": ["fox"]})


@case(
    r"no label of the data \((?P<names>.+)\) is a name of class yes; add the name",
    lambda case, found: case.set(
        classes={"no": ["no"], "yes": ["positive", found["names"].split(", ")[1]]}
    ),
)
def a_class_that_the_texts_call_otherwise(case: Case) -> None:
    case.texts()
    case.set(classes={"no": ["no"], "yes": ["positive"]})


@case(
    r"no class of the task has the name '(?P<name>\w+)', which the data has; add it to a class",
    lambda case, found: case.set(classes={"no": ["no", found["name"]], "yes": ["yes"]}),
)
def a_label_of_texts_that_is_no_class(case: Case) -> None:
    case.texts(f"{TEXTS}e,none\n")
    case.set(classes=YES)


@case(
    r"has the name '(?P<name>\w+)', .* or leave such rows out of the source",
    lambda case, found: case.texts(f"{TEXTS}e,none\n", unlabelled=[found["name"]]),
)
def a_label_of_texts_that_stands_for_none(case: Case) -> None:
    case.texts(f"{TEXTS}e,none\n")
    case.set(classes=YES)


# -- facts -----------------------------------------------------------------------------------------


@case(
    r"facts\.sizes lack reader; give the rows of each reader: (?P<reader>reader)$",
    lambda case, found: case.facts(sizes={found["reader"]: 6}),
)
def sizes_without_the_reader(case: Case) -> None:
    case.facts(sizes={"train": 6})


@case(
    r"facts\.sizes lack the rows of a part; give (?P<one>train) and (?P<two>test)",
    lambda case, found: case.facts(sizes={found["one"]: 4, found["two"]: 2}),
)
def sizes_of_given_features(case: Case) -> None:
    case.set(source="features")
    case.drop("corpus")
    case.facts(sizes={"test": 2})


@case(
    r"facts\.classes is 0, but the target is a class; correct one",
    lambda case, found: case.facts(classes=3),
)
def facts_without_classes(case: Case) -> None:
    case.facts(classes=0)


@case(
    r"2 class_names, but classes is 3; correct one",
    lambda case, found: case.facts(class_names=[*case.classes]),
)
def too_few_class_names(case: Case) -> None:
    case.facts(class_names=["cat", "dog"])


@case(
    r"names label 3 of 3 classes \(from (?P<first>\d)\); correct it",
    lambda case, found: case.set(classes={"cat": [int(found["first"])], "owl": [2]}),
)
def labels_from_one(case: Case) -> None:
    case.facts()
    case.set(classes={"cat": [1], "owl": [3]})


@case(
    r"classes\.cat names 'kat', which facts\.class_names lack; correct one",
    set_to(classes={"cat": ["cat"], "dog": ["dog"]}),
)
def a_member_that_the_facts_lack(case: Case) -> None:
    case.facts(class_names=[*case.classes])
    case.set(classes={"cat": ["kat"], "dog": ["dog"]})


@case(
    r"(?P<rows>\d+) rows, but facts\.sizes say 60; correct one",
    lambda case, found: case.facts(sizes={"reader": int(found["rows"])}),
)
def another_number_of_rows(case: Case) -> None:
    case.facts(sizes={"reader": 60})


@case(
    r"(?P<classes>\d+) classes, but facts\.classes say 4; correct one",
    lambda case, found: case.facts(classes=int(found["classes"])),
)
def another_number_of_classes(case: Case) -> None:
    case.facts(classes=4)


@case(
    r"class 'kat' is in only one of the data and facts\.class_names|class 'cat' is in only one .*; "
    r"correct one",
    lambda case, found: case.facts(class_names=[*case.classes]),
)
def another_name_of_a_class(case: Case) -> None:
    case.facts(class_names=["kat", "dog", "owl"])


@pytest.mark.parametrize("name", CASES)
def test_a_remedy_works_when_it_is_followed(name: str, tmp_path: Path) -> None:
    make, remedy, follow = CASES[name]
    refused = Case(tmp_path)
    make(refused)
    message = refused.fault()
    assert message is not None
    found = re.search(remedy, message)
    assert found is not None, message
    follow(refused, found)
    assert refused.fault() is None


def test_the_name_that_a_message_means_is_a_task() -> None:
    with pytest.raises(TaskError, match="did you mean digits-rotated") as caught:
        load("digit-rotated")
    meant = str(caught.value).partition("did you mean ")[2].rstrip("?").split(" or ")[0]
    assert load(meant).name == "digits-rotated"


def test_a_file_that_is_renamed_or_corrected_as_told_is_read(tmp_path: Path) -> None:
    text = f"name: digits\ntitle: x\ndomain: id\ncorpus: {CORPUS}\n"
    (tmp_path / "digits.yaml").write_text(text)
    with pytest.raises(TaskError, match=r"two files describe task digits: .*; rename one of them"):
        load("digits", [tmp_path])
    (tmp_path / "digits.yaml").rename(tmp_path / "mine.yaml")
    with pytest.raises(TaskError, match=r"rename the file to \w+\.yaml or the task to (\w+)$"):
        load("mine", [tmp_path])
    (tmp_path / "mine.yaml").write_text(text.replace("name: digits", "name: mine"))
    assert load("mine", [tmp_path]).name == "mine"


def test_a_file_that_is_no_text_is_removed_and_a_folder_named_as_told(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskError, match="correct it or remove it") as caught:
        load("mine", [tmp_path])
    Path(str(caught.value).partition(": ")[0]).unlink()
    assert "mine" not in names([tmp_path])
    with pytest.raises(TaskError, match="does not exist; correct its path"):
        names([tmp_path / "nowhere"])
